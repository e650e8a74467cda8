"""Attribution maps of facets: explained quantity, precision, and errors before the model runs."""

import captum.attr as ca
import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, LayerIntegratedGradients
from conftest import SPEC, fingerprint, same, small_cnn

import captum_mfv as mfv
from captum_mfv import FacetFinder, Unit, find_facets
from captum_mfv.attr import (
    AttributionCode,
    FacetAttribution,
    FacetModel,
    LayerFacetAttribution,
    check_method,
    explained,
    facet_maps,
    pure_code,
    unit_forward,
)
from captum_mfv.datasets import PLANTED_SPEC, planted_images, planted_network
from captum_mfv.errors import FacetError, ImageError

pytestmark = pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")  # Captum's DeepLift
HALVES = [torch.bfloat16, torch.float16]


def alike(found, wanted):
    """Return the cosine similarity of two tensors."""
    return torch.nn.functional.cosine_similarity(found.double().flatten(), wanted.double().flatten(), 0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("method", [None, "IntegratedGradients", "LayerGradCam"])
def test_maps_of_a_half_precision_model_equal_the_float32_models(method, dtype, facets, planted):
    images = planted[0][[0, 25, 45]]
    wanted = facet_maps(small_cnn(), facets, images, [0, 1, 2], method=method, input_spec=SPEC)
    found = facet_maps(small_cnn().to(dtype), facets, images, [0, 1, 2], method=method, input_spec=SPEC)
    assert found.dtype == torch.float32
    assert alike(found, wanted) > 0.99


def test_attributions_that_overflow_raise_an_error(facets, planted):
    """DeepLift divides by differences that float16 rounds to 0."""
    images = planted[0][[0, 25, 45]]
    with pytest.raises(FacetError, match="DeepLift gives attributions that aren't finite; use a model in float32"):
        facet_maps(small_cnn().half(), facets, images, [0, 1, 2], method="DeepLift", input_spec=SPEC)
    bfloat16 = facet_maps(small_cnn().bfloat16(), facets, images, [0, 1, 2], method="DeepLift", input_spec=SPEC)
    wanted = facet_maps(small_cnn(), facets, images, [0, 1, 2], method="DeepLift", input_spec=SPEC)
    assert alike(bfloat16, wanted) > 0.99


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("output", ["logits", "gated"])
def test_a_half_precision_model_has_the_float32_models_facets(output, dtype, facets, planted):
    images = planted[0]
    wanted, model = (
        FacetModel(small_cnn(), facets, output, SPEC),
        FacetModel(small_cnn().to(dtype), facets, output, SPEC),
    )
    assert model(images).dtype == torch.float32
    assert (model(images).argmax(1) == wanted(images).argmax(1)).float().mean() > 0.95
    assert alike(model(images), wanted(images)) > 0.999
    for explain in (lambda m: FacetAttribution(InputXGradient, m, contrast=True), lambda m: layer_attribution(m)):
        assert alike(explain(model).attribute(images[:2]), explain(wanted).attribute(images[:2])) > 0.98


def layer_attribution(model):
    return LayerFacetAttribution(ca.LayerGradientXActivation, model, model.model.relu2)


@pytest.mark.parametrize("dtype", HALVES)
def test_attribution_codes_of_a_half_precision_model_equal_the_float32_models(dtype, planted):
    images, unit = planted[0][:4], Unit("fc", 1)

    def codes(model):
        integrated = LayerIntegratedGradients(model, model.relu2)
        return (
            pure_code(model, unit, "relu2", input_spec=SPEC)(images),
            AttributionCode(integrated, input_spec=SPEC, target=1, n_steps=10)(images),
            unit_forward(model, unit)(SPEC(images)),
        )

    for found, wanted in zip(codes(small_cnn().to(dtype)), codes(small_cnn()), strict=True):
        assert found.dtype == torch.float32
        assert alike(found, wanted) > 0.99


@pytest.fixture(scope="module")
def scene():
    """Return a network whose unit sums four color detectors, images of discs, and the facets."""
    network, images = planted_network()[0], planted_images(n_each=10, distractor=8)[0]
    finder = FacetFinder(4, embedding=None, random_state=0)
    return network, images, find_facets(network, Unit("unit", 0), images, finder=finder, input_spec=PLANTED_SPEC)


@pytest.mark.parametrize("method", [None, "IntegratedGradients", "Occlusion", "LayerGradCam"])
def test_maps_of_a_single_facet_explain_the_unit_and_are_on_the_object(method, scene):
    network, images, facets = scene
    unit = facets.as_one_facet()
    shown = images[[0, 10, 20, 30]]
    drives = network[:2](shown)[:, :4].sum(1) > 0  # where one of the unit's detectors is active
    maps = facet_maps(network, unit, shown, 0, method=method, input_spec=PLANTED_SPEC)
    on, off = maps.abs()[drives].mean(), maps.abs()[~drives].mean()
    assert on > (5 if method == "Occlusion" else 50) * off  # patches reach beyond the object
    if method is None:  # gradient times activation of a linear unit: exactly its activation
        activations = unit_forward(network, unit.unit)(PLANTED_SPEC(shown))
        assert torch.allclose(maps.sum((1, 2)), activations, rtol=1e-4)


@pytest.mark.parametrize("output", ["logits", "gated"])
def test_a_facet_model_of_one_facet_returns_the_units_activation(output, scene):
    network, images, facets = scene
    model = FacetModel(network, facets.as_one_facet(), output, PLANTED_SPEC)
    assert torch.allclose(model(images), torch.from_numpy(facets.activations)[:, None])
    found = FacetAttribution(ca.DeepLift, model)
    assert found.attribute(images[:2]).shape == (2, 1, 3, 32, 32)


def test_the_explained_quantity_is_described_in_a_sentence(scene):
    facets = scene[2]
    assert "logit minus the mean logit of the other facets" in explained(facets)
    assert explained(facets.as_one_facet()) == "Attributions explain the activation of unit unit:0."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LayerActivation", "the same for every facet"),
        ("FeaturePermutation", "which images share a batch"),
        ("GuidedGradCam", "constructed with layer"),
        ("NoiseTunnel", "constructed with attribution_method"),
        ("LimeBase", "constructed with"),
        ("GradientShap", "needs baselines"),
        ("LayerDeepLiftShap", "needs baselines"),
        ("ShapleyValues", "needs feature_mask"),
        ("LayerAttribution", "no attribution"),
        ("NeuronGradient", "to a neuron"),
        ("LLMAttribution", "text"),
    ],
)
def test_an_unsupported_method_raises_an_error_before_the_model_runs(name, message, facets):
    with pytest.raises(FacetError, match=message):
        check_method(name)
    with pytest.raises(FacetError, match=message):
        facet_maps(None, facets, None, None, method=name)


def test_a_method_is_accepted_with_the_arguments_it_needs_and_no_others(facets, planted):
    check_method("GradientShap", {"baselines"})
    with pytest.raises(FacetError, match="Saliency has no argument n_step"):
        facet_maps(None, facets, None, None, method="Saliency", n_step=3)
    baselines = {"baselines": torch.zeros(2, 3, 32, 32), "n_samples": 2}
    found = facet_maps(small_cnn(), facets, planted[0][:2], 0, method="GradientShap", input_spec=SPEC, **baselines)
    assert found.shape == (2, 32, 32)


@pytest.mark.parametrize("method", ["ShapleyValueSampling", "KernelShap"])
def test_random_methods_are_reproducible_and_do_not_change_global_generators(method, facets, planted):
    model, images = small_cnn(), planted[0][:2]
    before = fingerprint(model)
    halves = torch.arange(32).lt(16).long().repeat(1, 1, 32, 1)
    options = {"n_samples": 2, **({} if method == "KernelShap" else {"feature_mask": halves})}
    maps = [facet_maps(model, facets, images, [0, 0], method=method, input_spec=SPEC, **options) for _ in range(2)]
    assert torch.equal(*maps)
    assert maps[0].abs().sum() > 0
    after = fingerprint(model)
    assert [key for key in before if not same(before[key], after[key])] == []


TARGETS = [
    np.array([0, 1, 2]),
    [np.int64(0), np.int64(1), np.int64(2)],
    torch.tensor([0, 1, 2]),
    range(3),
    (0, 1, 2),
]


@pytest.mark.parametrize("targets", TARGETS, ids=lambda targets: type(targets).__name__)
def test_targets_can_be_integers_of_any_type(targets, facets, planted):
    images = planted[0][[0, 25, 45]]
    wanted = facet_maps(small_cnn(), facets, images, [0, 1, 2], input_spec=SPEC)
    assert torch.equal(facet_maps(small_cnn(), facets, images, targets, input_spec=SPEC), wanted)
    explain = FacetAttribution(ca.Saliency, FacetModel(small_cnn(), facets))
    assert torch.equal(
        explain.attribute(SPEC(images), target=targets), explain.attribute(SPEC(images), target=[0, 1, 2])
    )


@pytest.mark.parametrize("targets", [1, np.int64(1), torch.tensor(1), np.array([1, 1])])
def test_one_target_is_the_target_of_all_images(targets, facets, planted):
    wanted = facet_maps(small_cnn(), facets, planted[0][:2], [1, 1], input_spec=SPEC)
    assert torch.equal(facet_maps(small_cnn(), facets, planted[0][:2], targets, input_spec=SPEC), wanted)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 1], "each of the 3 inputs, not 2"),
        (np.array([0, 1, 3]), "0 to 2"),
        ([0, 1, -1], "0 to 2"),
        (np.array([0.0, 1.0, 2.0]), "0 to 2"),
        ("012", "0 to 2"),
    ],
)
def test_wrong_targets_are_named_before_the_model_runs(targets, message, facets, planted):
    with pytest.raises(FacetError, match=message):
        facet_maps(None, facets, planted[0][:3], targets, input_spec=SPEC)


def test_images_outside_0_to_1_are_an_error(facets, planted):
    images = planted[0][:2] * 255
    with pytest.raises(ImageError, match=r"item 0 must lie in \[0, 1\]"):
        facet_maps(None, facets, images, 0, input_spec=SPEC)
    with pytest.raises(ImageError, match=r"\[0, 1\]"):
        FacetAttribution(ca.Saliency, FacetModel(small_cnn(), facets, input_spec=SPEC)).attribute(images)
    with pytest.raises(ImageError, match=r"\[0, 1\]"):
        pure_code(small_cnn(), Unit("fc", 1), input_spec=SPEC)(images)
    FacetAttribution(ca.Saliency, FacetModel(small_cnn(), facets)).attribute(images)  # the model's own inputs
    with pytest.raises(FacetError, match="at least one image"):
        facet_maps(None, facets, images[:0], [], input_spec=SPEC)


def test_a_layer_without_positions_is_an_error_before_attributions_are_computed(planted):
    found = mfv.find_facets(small_cnn(), Unit("fc", 1), planted[0], n_facets=3, code="flatten", input_spec=SPEC)
    with pytest.raises(FacetError, match="flatten, whose output of shape"):
        facet_maps(small_cnn(), found, planted[0][:1], 0, method="LayerGradientXActivation", input_spec=SPEC)


class TokenFirst(torch.nn.Module):
    """Patches as 16 tokens, (tokens, N, C), as in a transformer with ``batch_first=False``."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patches, self.mix, self.fc = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.mix(self.patches(x).flatten(2).permute(2, 0, 1)).relu()
        return self.fc(tokens.mean(0))


def test_attribution_codes_of_a_token_first_layer_have_one_row_per_image(planted):
    code = pure_code(TokenFirst().eval(), Unit("fc", 1), "mix", input_spec=SPEC)
    images = planted[0][:32:2]  # as many images as tokens
    found = code(images)
    assert found.shape == (16, 8)
    assert torch.allclose(found, torch.cat([code(image[None]) for image in images]), atol=1e-5)
    assert torch.allclose(found[:5], code(images[:5]), atol=1e-5)
