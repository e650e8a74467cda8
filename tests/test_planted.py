"""A network with hand-set weights, whose unit is the OR of known detectors, which must be recovered."""

from itertools import permutations

import captum.attr
import pytest
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from conftest import fingerprint, same
from sklearn.metrics import adjusted_rand_score

from captum_mfv import FacetFinder, Unit, find_facets
from captum_mfv.attr import (
    AttributionCode,
    FacetAttribution,
    FacetModel,
    LayerFacetAttribution,
    pure_code,
    unit_forward,
)
from captum_mfv.datasets import PLANTED_SPEC, planted_images, planted_network
from captum_mfv.optvis.render import render_facets

UNIT = Unit("unit", 0)


@pytest.fixture(scope="module")
def network():
    return planted_network()[0]


@pytest.fixture(scope="module")
def scene():
    return planted_images()


def test_the_unit_is_the_or_of_its_four_detectors(network):
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    images = colors[:, :, None, None].expand(-1, -1, 32, 32)
    assert UNIT.read(network(images)).tolist() == [0.5, 0.5, 0.5, 0.5, 0, 0, 0]


def codes(network):
    layer = network.rectified
    return {
        "pure": pure_code(network, UNIT, input_spec=PLANTED_SPEC),
        "grad x activation": AttributionCode(
            LayerGradientXActivation(unit_forward(network, UNIT), layer), input_spec=PLANTED_SPEC
        ),
        "integrated gradients": AttributionCode(
            LayerIntegratedGradients(unit_forward(network, UNIT), layer), input_spec=PLANTED_SPEC, n_steps=5
        ),
        "another network": lambda images: images.mean(dim=(2, 3)),
    }


@pytest.mark.parametrize("name", ["pure", "grad x activation", "integrated gradients"])
def test_attributions_recover_the_detectors_despite_distractors(name, network, scene):
    before = fingerprint(network)
    finder = FacetFinder(4, embedding=None, random_state=0)
    found = find_facets(network, UNIT, scene[0], code=codes(network)[name], finder=finder, input_spec=PLANTED_SPEC)
    assert adjusted_rand_score(scene[1], found.labels) >= 0.98
    assert found.code.layer == "rectified"
    assert found.codes.shape == (120, 5)
    after = fingerprint(network)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_pure_codes_contain_only_the_detectors_that_drive_the_unit(network, scene):
    code = pure_code(network, UNIT, input_spec=PLANTED_SPEC)(scene[0])
    assert code.shape == (120, 5)
    assert (code.argmax(1) == scene[1]).all()
    assert code[:, 4].abs().max() == 0
    assert torch.allclose(code.sum(1), UNIT.read(network(scene[0])), atol=1e-6)


def test_any_function_of_images_can_be_the_code(network, scene):
    found = find_facets(
        network, UNIT, scene[0], n_facets=4, code=codes(network)["another network"], input_spec=PLANTED_SPEC
    )
    assert len(found) == 4
    with pytest.raises(TypeError, match=r"must return \(32, D\) for 32 images, not \(32, 3, 32, 32\)"):
        find_facets(network, UNIT, scene[0], n_facets=4, code=lambda x: x, input_spec=PLANTED_SPEC)
    with pytest.raises(TypeError, match="LayerAttribution"):
        AttributionCode(network)


def test_each_facets_image_activates_its_own_detector_most(network, scene):
    code = pure_code(network, UNIT, input_spec=PLANTED_SPEC)
    finder = FacetFinder(4, embedding=None, random_state=0)
    facets = find_facets(network, UNIT, scene[0], code=code, finder=finder, input_spec=PLANTED_SPEC)
    made = render_facets(network, facets, scene[0], steps=80, input_spec=PLANTED_SPEC)
    driven = code(torch.stack([rendering.image for rendering in made]))
    own = [int(scene[1][facet.members[0]]) for facet in facets]
    assert driven.argmax(1).tolist() == own
    assert (driven.max(1).values > 3 * (driven.sum(1) - driven.max(1).values)).all()


MOSAIC = {
    "InputXGradient": {},
    "IntegratedGradients": {"n_steps": 20},
    "DeepLift": {},
    "FeatureAblation": {"feature_mask": (torch.arange(32)[:, None] // 4 * 16 + torch.arange(64) // 4)[None, None]},
    "Occlusion": {"sliding_window_shapes": (3, 8, 8), "strides": 4},
    "LayerGradCam": {},
    "LayerIntegratedGradients": {"n_steps": 20},
}


@pytest.fixture(scope="module")
def mosaics(network):
    """Return the facets, an image of two facets' nearest members for each pair of facets, and the pairs."""
    images = planted_images(distractor=8)[0]
    finder = FacetFinder(4, embedding=None, random_state=0)
    facets = find_facets(network, UNIT, images, finder=finder, input_spec=PLANTED_SPEC)
    pairs = list(permutations(range(4), 2))
    made = [torch.cat([images[facets[k].members[0]] for k in pair], -1) for pair in pairs]
    return facets, torch.stack(made), pairs


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")  # Captum's DeepLift
@pytest.mark.parametrize(("output", "contrast"), [("logits", True), ("gated", False), ("gated", True)])
@pytest.mark.parametrize("name", MOSAIC)
def test_each_of_two_facets_is_attributed_to_its_half_of_the_image(name, output, contrast, network, mosaics):
    facets, images, pairs = mosaics
    model = FacetModel(network, facets, output)
    if name == "DeepLift" and output == "gated":
        pytest.skip("its rules don't see a softmax and a product")
    method = getattr(captum.attr, name)
    if issubclass(method, captum.attr.LayerAttribution):
        explain = LayerFacetAttribution(method, model, network.rectified, contrast=contrast)
    else:
        explain = FacetAttribution(method, model, contrast=contrast)
    for side, half in enumerate((slice(0, 32), slice(32, 64))):
        targets = [pair[side] for pair in pairs]
        mass = explain.attribute(images, target=targets, **MOSAIC[name]).sum(1).clamp_min(0)
        assert (mass[..., half].sum((1, 2)) > 0.9 * mass.sum((1, 2))).all()


@pytest.mark.parametrize("embedding", ["tsne", None])
def test_activations_recover_the_detectors_with_small_distractors(embedding, network):
    images, labels = planted_images(distractor=8)
    for k in (4, "auto"):
        finder = FacetFinder(k, embedding=embedding, random_state=0)
        found = find_facets(network, UNIT, images, finder=finder, input_spec=PLANTED_SPEC)
        assert adjusted_rand_score(labels, found.labels) >= 0.98
