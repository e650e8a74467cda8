"""Losses of images: known values, and units that do not depend on the model."""

import numpy as np
import pytest
import torch
from conftest import SPEC, small_cnn

from captum_mfv import FacetFinder, Unit, find_facets
from captum_mfv.activations import capture
from captum_mfv.attr import pure_code
from captum_mfv.datasets import PLANTED_SPEC, planted_images, planted_network
from captum_mfv.errors import FacetError, RecipeError
from captum_mfv.optvis import terms
from captum_mfv.optvis.reference import distribution_term, measure_probe, measure_reference, probe_term


def members(facets, planted, n=1):
    return planted[0][torch.as_tensor(np.concatenate([facet.members[:n] for facet in facets]))]


def outputs_of(model, term, images, spec=SPEC):
    with torch.enable_grad(), capture(model, [layer for layer in term.layers if layer != terms.INPUT]) as run:
        outputs = run(spec(images.requires_grad_()))
    return {**outputs, terms.INPUT: images}


def test_the_unit_is_measured_relative_to_its_mean_on_the_facets_images(facets, planted):
    term = terms.unit_term(facets)
    for k, facet in enumerate(facets):
        images = planted[0][facet.members].clone()
        loss = term.rows([k] * len(facet))(outputs_of(small_cnn(), term, images))
        assert loss.mean().item() == pytest.approx(-np.sign(facet.activations).mean(), abs=1e-4)


def test_a_capped_unit_is_best_at_the_cap_and_equals_the_unit_below(facets):
    facet = facets[0]
    most, mean = float(facets.activations.max()), float(abs(facet.activations).mean())
    activations = (most * torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0])).requires_grad_()
    outputs = {"fc": activations[:, None].expand(-1, 5)}
    rows = [0] * len(activations)
    plain = terms.unit_term(facets).rows(rows)(outputs)
    capped = terms.unit_term(facets, cap=1.5).rows(rows)(outputs)
    assert torch.allclose(capped[:4], plain[:4], atol=0.02 * most / mean)
    assert torch.allclose(capped[5:], -(3 * most - activations[5:]) / mean, rtol=0.1), "as far below the cap"
    assert capped.argmin() == 4
    (slope,) = torch.autograd.grad(capped.sum(), activations)
    assert torch.allclose(slope[:4] * mean, torch.tensor(-1.0), atol=0.08)
    assert torch.allclose(slope[5:] * mean, torch.tensor(1.0), atol=0.08)


def test_a_facets_code_loss_is_lowest_at_its_center_and_contrast_uses_the_nearest_other(facets):
    centers = torch.from_numpy(facets.centers)
    layer = facets.code.layer
    maps = {layer: centers[:, :, None, None].expand(-1, -1, 3, 3)}
    assert torch.allclose(terms.code_term(facets)(maps), torch.tensor(-1.0), atol=1e-5)
    codes = centers - torch.from_numpy(facets[0].origin)
    cosines = torch.nn.functional.normalize(codes) @ torch.nn.functional.normalize(codes).T
    nearest = (cosines - 2 * torch.eye(3)).max(1).values
    contrasted = terms.code_term(facets, contrast=1.0)(maps) + 1
    assert torch.allclose(contrasted, nearest, atol=np.log(2) / 10 + 1e-4)  # a soft maximum of two
    alone = terms.code_term([facets[1]], contrast=1.0)
    assert alone.constants["others"].shape == (1, 2, centers.shape[1])


def test_rows_can_be_read_twice_and_in_any_order(facets, planted):
    reference = measure_reference(small_cnn(), facets, planted[0], input_spec=SPEC)
    for term in (terms.unit_term(facets), terms.code_term(facets, 0.5), distribution_term(reference)):
        images = members(facets, planted)
        whole = term(outputs_of(small_cnn(), term, images.clone()))
        again = term.rows([2, 0, 2])(outputs_of(small_cnn(), term, images[[2, 0, 2]].clone()))
        assert torch.allclose(again, whole[[2, 0, 2]], atol=1e-5)


def test_a_probe_finds_the_detector_that_distinguishes_its_facet():
    network, (images, labels) = planted_network()[0], planted_images()
    unit = Unit("unit", 0)
    code = pure_code(network, unit, input_spec=PLANTED_SPEC)
    finder = FacetFinder(4, embedding=None, random_state=0)
    facets = find_facets(network, unit, images, code=code, finder=finder, input_spec=PLANTED_SPEC)
    probe = measure_probe(network, facets, images, layer="rectified", input_spec=PLANTED_SPEC)
    assert probe.weights.shape == (4, 5)
    own = [int(labels[facet.members[0]]) for facet in facets]
    assert probe.weights.argmax(1).tolist() == own
    term = probe_term(facets, probe)
    pictures = images[torch.tensor([int(facet.members[0]) for facet in facets])]
    losses = torch.stack(
        [term.rows([k] * 4)(outputs_of(network, term, pictures.clone(), PLANTED_SPEC)) for k in range(4)]
    )
    assert losses.argmin(1).tolist() == [0, 1, 2, 3]


def test_a_probe_needs_other_images(facets, planted):
    own = planted[0][torch.as_tensor(facets[0].members)]
    alone = find_facets(small_cnn(), facets.unit, own, n_facets=1, input_spec=SPEC)
    with pytest.raises(FacetError, match="facet 0 holds every image"):
        measure_probe(small_cnn(), alone, own, input_spec=SPEC)


def test_total_variation_does_not_depend_on_the_images_size():
    loss = terms.total_variation_term()
    for size in (32, 128):
        stripes = (torch.arange(size) // (size // 8) % 2).float().expand(2, 3, size, size)  # 7 edges per row
        assert torch.allclose(loss({terms.INPUT: stripes}), torch.tensor([3.5, 3.5]))
        assert loss({terms.INPUT: torch.full((1, 3, size, size), 0.3)}).item() == 0


def test_a_boundary_of_the_images_color_has_no_loss():
    image = torch.full((1, 3, 40, 40), 0.5)
    assert terms.boundary_term()({terms.INPUT: image}).item() == 0
    image[..., 15:25, 15:20] = 1
    image[..., 15:25, 20:25] = 0  # the same mean color
    assert terms.boundary_term()({terms.INPUT: image}).item() == 0
    image[..., :4, :] = 1
    assert terms.boundary_term()({terms.INPUT: image}).item() > 0.05


def test_gray_has_no_loss_and_black_and_white_have_equal_losses():
    assert terms.gray_term()({terms.INPUT: torch.tensor([0.5, 0, 1]).view(3, 1, 1, 1)}).tolist() == [0, 0.25, 0.25]


def test_probability_is_of_one_unit_in_its_layer(facets):
    loss = terms.probability_term(facets)({"fc": torch.zeros(3, 5)})
    assert torch.allclose(loss, torch.tensor(5.0).log())
    direction = find_facets(
        small_cnn(), Unit("fc", [1.0, 0, 0, 0, -1]), torch.rand(9, 3, 32, 32), n_facets=2, input_spec=SPEC
    )
    with pytest.raises(RecipeError, match="probability of a direction"):
        terms.probability_term(direction)


def test_losses_do_not_depend_on_the_images_precision(facets, planted):
    reference = measure_reference(small_cnn(), facets, planted[0], input_spec=SPEC)
    for term in (terms.unit_term(facets), terms.code_term(facets), distribution_term(reference)):
        images = members(facets, planted)
        outputs = outputs_of(small_cnn(), term, images.clone())
        half = {name: value.bfloat16() for name, value in outputs.items()}
        assert term(half).dtype == torch.float32
        assert torch.allclose(term(half), term(outputs), atol=0.02)
