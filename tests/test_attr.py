import pytest
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from conftest import SPEC, fingerprint, same, small_cnn

from captum_mfv.attr import FacetModel
from captum_mfv.errors import FacetError


def unit_alone(model, facets):
    return lambda x: facets.unit.read(model(SPEC(x)))[:, None]


def test_gated_columns_sum_to_the_units_activation_and_logits_tell_the_facet(facets, planted):
    images, _ = planted
    model = small_cnn()
    gated = FacetModel(model, facets, "gated", SPEC)(images)
    assert torch.allclose(gated.sum(1), torch.from_numpy(facets.activations), atol=1e-5)
    logits = FacetModel(model, facets, input_spec=SPEC)(images)
    assert (logits.argmax(1).numpy() == facets.labels).all()


@pytest.mark.parametrize(
    ("method", "options"),
    [(IntegratedGradients, {"n_steps": 20}), (InputXGradient, {}), (FeatureAblation, {"feature_mask": "patches"})],
)
def test_attributions_of_the_facets_sum_to_the_units_own(method, options, facets, planted):
    x = planted[0][:3].clone().requires_grad_()
    if "feature_mask" in options:
        options = {"feature_mask": (torch.arange(32)[:, None] // 8 * 4 + torch.arange(32) // 8)[None, None]}
    model = small_cnn()
    explain = method(FacetModel(model, facets, "gated", SPEC))
    parts = sum(explain.attribute(x, target=k, **options) for k in range(3))
    whole = method(unit_alone(model, facets)).attribute(x, target=0, **options)
    assert (parts - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("target", [1, [0, 2, 1], torch.tensor([0, 2, 1])])
@pytest.mark.parametrize("output", ["logits", "gated"])
def test_targets_are_given_as_captum_has_them_and_no_hook_is_left(target, output, facets, planted):
    model = small_cnn()
    before = fingerprint(model)
    explained = FacetModel(model, facets, output, SPEC)
    x = planted[0][:3].clone().requires_grad_()
    attribution = NoiseTunnel(Saliency(explained)).attribute(x, target=target, nt_samples=2)
    assert attribution.shape == (3, 3, 32, 32)
    with pytest.raises((AssertionError, IndexError)):
        Saliency(explained).attribute(x, target=99)
    after = fingerprint(model)
    assert same(before["hooks"], after["hooks"])


def test_an_unknown_output_is_refused(facets):
    with pytest.raises(FacetError, match="logits or gated"):
        FacetModel(small_cnn(), facets, "probabilities")
