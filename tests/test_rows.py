"""Facets of several units and facet sets in one batch: each image is of its own facet."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SPEC, small_cnn

from captum_mfv import Unit, find_facets
from captum_mfv.activations import capture
from captum_mfv.errors import FacetError, MFVError, RecipeError, UnitError
from captum_mfv.optvis import initializer, objectives, terms
from captum_mfv.optvis.recipes import RECIPES, get_recipe
from captum_mfv.optvis.reference import measure_probe, measure_reference
from captum_mfv.optvis.render import render_facets


@pytest.fixture(scope="module")
def others(planted):
    """Return facets of another unit of the layer, with another number of facets, other centers and another origin."""
    return find_facets(small_cnn(), Unit("fc", 3), planted[0][10:], n_facets=2, input_spec=SPEC)


@pytest.fixture(scope="module")
def direction(planted):
    unit = Unit("fc", [1.0, 0.0, -1.0, 0.5, 0.0])
    return find_facets(small_cnn(), unit, planted[0], n_facets=2, input_spec=SPEC)


def outputs_of(images, layers):
    with torch.enable_grad(), capture(small_cnn(), layers) as run:
        return run(SPEC(images.requires_grad_()))


@pytest.mark.parametrize("recipe", RECIPES)
def test_facets_are_rendered_the_same_alone_and_with_another_units_facets(recipe, facets, others, planted):
    steps = max(2, len(get_recipe(recipe).phases))

    def draw(which):
        return render_facets(small_cnn(), which, planted[0], recipe=recipe, steps=steps, size=24, input_spec=SPEC)

    together = draw([others[0], facets[2], others[1]])
    for alone, mixed in ((draw(facets[2]), together[1:2]), (draw(others), together[::2])):
        for one, other in zip(alone, mixed, strict=True):
            assert one.facet is other.facet
            assert torch.allclose(one.image, other.image, atol=0.01)  # Adam's first steps amplify rounding errors
            assert torch.allclose(one.transparency, other.transparency, atol=0.02)
            for name, values in one.history.items():
                assert np.allclose(values, other.history[name], rtol=1e-3, atol=1e-3, equal_nan=True), name


def test_facets_of_two_sets_keep_their_own_centers(facets, others, planted):
    batch = [others[1], facets[0], facets[2]]
    images = torch.stack([planted[0][facet.members[0]] for facet in batch])
    outputs = outputs_of(images, [facets.code.layer, "fc"])
    for contrast in (0.0, 1.0):
        losses = terms.code_term(batch, contrast)(outputs)
        apart = [terms.code_term([facet], contrast).rows([0, 0, 0])(outputs)[i] for i, facet in enumerate(batch)]
        assert torch.allclose(losses, torch.stack(apart), atol=1e-6)
        lucent = objectives.code(batch, contrast=contrast)(lambda name: outputs[name])
        assert lucent.item() == pytest.approx(losses.mean().item())


def test_a_facet_without_others_has_no_contrast(facets, planted):
    alone = find_facets(small_cnn(), Unit("fc", 1), planted[0][:20], n_facets=1, input_spec=SPEC)
    images = torch.stack([planted[0][facet.members[0]] for facet in (facets[0], alone[0])])
    outputs = outputs_of(images, [facets.code.layer])
    losses = terms.code_term([facets[0], alone[0]], contrast=1.0)(outputs)
    assert torch.allclose(losses[0], terms.code_term([facets[0]], contrast=1.0).rows([0, 0])(outputs)[0])
    assert torch.allclose(losses[1], terms.code_term([alone[0]]).rows([0, 0])(outputs)[1])
    (gradient,) = torch.autograd.grad(losses.sum(), outputs[facets.code.layer])
    assert gradient.isfinite().all()


def test_each_row_reads_its_own_unit_directions_included(facets, others, direction):
    batch = [others[0], direction[0], facets[0]]
    output = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    wanted = torch.stack([facet.unit.read(output)[i] for i, facet in enumerate(batch)])
    assert torch.allclose(terms.activation_term(batch)({"fc": output}), wanted)
    scales = torch.tensor([float(abs(facet.activations).mean()) for facet in batch])
    assert torch.allclose(terms.unit_term(batch)({"fc": output}), -wanted / scales)
    dead = [replace(facets[0], peak=0.0), facets[1]]
    high = torch.full((2, 5), 100.0)
    assert terms.unit_term(dead, cap=1.5)({"fc": high}).tolist() == pytest.approx(
        [-100 / scales[2].item(), (100 - 3 * facets[1].peak) / float(abs(facets[1].activations).mean())], rel=0.01
    )
    shares = terms.probability_term([others[0], facets[0]])({"fc": output[:2]})
    assert torch.allclose(shares, -output[:2].log_softmax(1)[[0, 1], [3, 1]])
    with pytest.raises(RecipeError, match="probability of a direction"):
        terms.probability_term(batch)
    with pytest.raises(UnitError, match="there is no unit 3"):
        terms.activation_term([facets[0], others[0]])({"fc": output[:2, :2]})
    with pytest.raises(UnitError, match="has 4 channels, not 5"):
        terms.activation_term(batch)({"fc": output[:, :4]})


def test_references_and_probes_are_measured_for_each_facets_own_unit(facets, others, planted):
    model, batch = small_cnn(), [others[1], facets[0]]
    together = measure_reference(model, batch, planted[0], input_spec=SPEC)
    probes = measure_probe(model, batch, planted[0], input_spec=SPEC)
    for row, facet in enumerate(batch):
        alone = measure_reference(model, facet, planted[0], input_spec=SPEC)
        for part in ("values", "variances", "weights"):
            for layer, values in getattr(together, part).items():
                assert torch.allclose(values[row], getattr(alone, part)[layer][0], atol=1e-5)
        probe = measure_probe(model, facet, planted[0], input_spec=SPEC)
        assert torch.allclose(probes.weights[row], probe.weights[0], atol=1e-5)
        assert torch.allclose(probes.scales[row], probe.scales[0], atol=1e-5)


def test_facets_of_other_layers_are_an_error_that_names_them(facets, planted):
    hidden = find_facets(small_cnn(), Unit("conv2", 3, reduce="max"), planted[0], n_facets=2, input_spec=SPEC)
    coded = find_facets(small_cnn(), Unit("fc", 1), planted[0], code="conv2", n_facets=2, input_spec=SPEC)
    for other, what in ((hidden, r"unit layer is fc .* conv2 \(reduce=max"), (coded, "code is relu2 .* conv2")):
        with pytest.raises(FacetError, match=f"{what}.*once for each group"):
            render_facets(small_cnn(), [facets[0], other[0]], planted[0], input_spec=SPEC)
        with pytest.raises(FacetError, match=what):
            objectives.facet([facets[0], other[0]])
    assert len(initializer.mean_images([facets[0], hidden[0]], planted[0])) == 2


def test_a_list_of_facets_needs_as_many_images(facets, planted):
    model, batch = small_cnn(), list(facets)
    reference = measure_reference(model, facets, planted[0], input_spec=SPEC)
    probe = measure_probe(model, facets, planted[0], input_spec=SPEC)
    outputs = outputs_of(planted[0][:1].clone(), [*reference.values, probe.layer, "fc"])
    made = {
        "unit": objectives.unit(batch),
        "probability": objectives.probability(batch),
        "code": objectives.code(batch),
        "distribution": objectives.distribution(batch, reference),
        "probe": objectives.probe(batch, probe),
        "facet": objectives.facet(batch, reference),
    }
    for objective in made.values():
        with pytest.raises(FacetError, match="has 3 facets, but the batch has 1 images"):
            objective(lambda name: outputs[name])
    assert objectives.facet(batch[0])(lambda name: outputs[name]).isfinite()
    for wrong in (lambda: objectives.distribution(batch[0], reference), lambda: objectives.facet(batch[:2], reference)):
        with pytest.raises(FacetError, match="distribution was measured on 3 facets, but"):
            wrong()
    with pytest.raises(FacetError, match="probe was measured on 3 facets, but 1"):
        objectives.probe(batch[0], probe)


def test_numpy_integers_are_accepted_as_integers_and_nothing_else_is(facets, planted):
    def draw(**options):
        return render_facets(small_cnn(), facets[0], planted[0], recipe="logit", input_spec=SPEC, **options)

    seeds = np.array([2, 5])
    made = draw(steps=np.int64(1), size=np.int32(16), max_batch=np.int64(1), seed=seeds)
    assert [rendering.seed for rendering in made] == [2, 5]
    assert made[0].image.equal(draw(steps=1, size=16, seed=seeds[0])[0].image)
    assert made[0].image.equal(draw(steps=1, size=16, seed=[2])[0].image)
    for name in ("seed", "steps", "size", "max_batch"):
        for wrong in ("1", 1.0, True, None) if name == "seed" else ("1", 1.0, True):
            with pytest.raises(TypeError, match=f"{name} must be an integer, not {wrong!r}"):
                draw(**{name: wrong})
    with pytest.raises(MFVError, match="at least one seed"):
        draw(seed=[])
    noise = [initializer.noise_image(facets[0], planted[0], seed=seed)()[0][0] for seed in (3, np.uint8(3))]
    assert noise[0].equal(noise[1])
    with pytest.raises(TypeError, match="seed must be an integer, not '3'"):
        initializer.maco_image(facets[0], planted[0], seed="3")
