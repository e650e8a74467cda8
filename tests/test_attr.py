"""Captum's methods: each explains facets or raises an error with the reason, and leaves no hook."""

import threading

import captum.attr as ca
import pytest
import torch
from captum._utils.models.linear_model import SkLearnRidge
from conftest import SPEC, fingerprint, same, small_cnn
from torch import nn

import captum_mfv as mfv
from captum_mfv.attr import FacetAttribution, FacetModel, LayerFacetAttribution
from captum_mfv.errors import FacetError, UnitError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on which DataParallel works
PATCHES = (torch.arange(32)[:, None] // 16 * 2 + torch.arange(32) // 16)[None, None]  # quarters


class TwoInputs(nn.Module):
    """A network that adds two inputs, without in-place ReLU and dropout, as some methods require."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_cnn()
        self.net.relu1, self.net.relu2 = nn.ReLU(), nn.ReLU()
        del self.net.drop, self.net.flatten
        self.net.fc = nn.Conv2d(24, 5, 1)

    def forward(self, x, y=None):
        return self.net(x if y is None else x + y).flatten(1)


@pytest.fixture(scope="module")
def images(planted):
    return SPEC(planted[0][[0, 25, 45]])


@pytest.fixture(scope="module")
def table_facets(planted):
    return mfv.find_facets(TwoInputs().eval(), mfv.Unit("net.fc", 1), planted[0], n_facets=3, input_spec=SPEC)


def baselines(x):
    return {"baselines": torch.zeros_like(x[:2]) if isinstance(x, torch.Tensor) else tuple(map(torch.zeros_like, x))}


def masks(x):
    if isinstance(x, torch.Tensor):
        return {"feature_mask": PATCHES.to(x.device)}
    return {"feature_mask": (PATCHES.to(x[0].device), PATCHES.to(x[0].device) + 4)}


def windows(x):
    window = (3, 16, 16)
    pair = not isinstance(x, torch.Tensor)
    return {"sliding_window_shapes": (window, window) if pair else window, "strides": (16, 16) if pair else 16}


INPUT = {
    "Saliency": (ca.Saliency, None),
    "InputXGradient": (ca.InputXGradient, None),
    "IntegratedGradients": (ca.IntegratedGradients, lambda x: {"n_steps": 4}),
    "GradientShap": (ca.GradientShap, lambda x: {**baselines(x), "n_samples": 2}),
    "DeepLift": (ca.DeepLift, None),
    "DeepLiftShap": (ca.DeepLiftShap, baselines),
    "GuidedBackprop": (ca.GuidedBackprop, None),
    "Deconvolution": (ca.Deconvolution, None),
    "LRP": (ca.LRP, None),
    "GuidedGradCam": (lambda f: ca.GuidedGradCam(f, inner(f).relu2), None),
    "FeatureAblation": (ca.FeatureAblation, masks),
    "FeaturePermutation": (ca.FeaturePermutation, masks),
    "Occlusion": (ca.Occlusion, windows),
    "ShapleyValueSampling": (ca.ShapleyValueSampling, lambda x: {**masks(x), "n_samples": 2}),
    "ShapleyValues": (ca.ShapleyValues, lambda x: {"feature_mask": halves(x)}),
    "KernelShap": (ca.KernelShap, lambda x: {**masks(x), "n_samples": 5}),
    "Lime": (lambda f: ca.Lime(f, SkLearnRidge(alpha=1e-3)), lambda x: {**masks(x), "n_samples": 5}),
    "NoiseTunnel": (lambda f: ca.NoiseTunnel(ca.Saliency(f)), lambda x: {"nt_samples": 2}),
}
LAYER = {
    "LayerConductance": lambda x: {"n_steps": 4},
    "InternalInfluence": lambda x: {"n_steps": 4},
    "LayerGradientXActivation": None,
    "LayerGradCam": None,
    "LayerDeepLift": None,
    "LayerDeepLiftShap": baselines,
    "LayerGradientShap": lambda x: {**baselines(x), "n_samples": 2},
    "LayerIntegratedGradients": lambda x: {"n_steps": 4},
    "LayerLRP": None,
    "LayerFeatureAblation": lambda x: {"layer_mask": torch.arange(24, device=DEVICE)[None, :, None, None] // 4},
}
REFUSED = {
    "LayerActivation": "the same for every facet",
    "LayerFeaturePermutation": "Captum 0.9 fails",
    "DataLoaderAttribution": "give it a FacetAttribution",
    "LLMAttribution": "text",
    "LLMGradientAttribution": "text",
    "RemoteLLMAttribution": "text",
}
ABSTRACT = {"Attribution", "GradientAttribution", "PerturbationAttribution", "LayerAttribution", "NeuronAttribution"}
NEEDS_PARTS = {"LimeBase"}  # a user's interpretable model, similarity and sampler; Lime has defaults


def halves(x):
    half = PATCHES.to(x.device if isinstance(x, torch.Tensor) else x[0].device) // 2
    return half if isinstance(x, torch.Tensor) else (half, half)


def inner(forward_func):
    while not isinstance(forward_func, FacetModel):
        forward_func = forward_func.module if isinstance(forward_func, nn.DataParallel) else forward_func.forward_func
    return forward_func.model.net


def test_every_attribution_that_captum_exports_is_in_the_table():
    exported = {
        name
        for name in ca.__all__
        if isinstance(getattr(ca, name), type) and issubclass(getattr(ca, name), ca.Attribution)
    }
    assert {name for name in exported - ABSTRACT - NEEDS_PARTS if not name.startswith("Neuron")} == {
        *INPUT,
        *LAYER,
        *REFUSED,
    } & exported
    assert {*INPUT, *LAYER} <= exported


def explainer(name, model, contrast=False):
    if name in INPUT:
        return FacetAttribution(INPUT[name][0], model, contrast=contrast), INPUT[name][1]
    layer = inner(model).conv2 if name == "LayerLRP" else inner(model).relu2  # LRP needs modules with weights
    return LayerFacetAttribution(getattr(ca, name), model, layer, contrast=contrast), LAYER[name]


def explain(name, model, x, target, contrast=False):
    """Return attributions by a method of the table."""
    found, options = explainer(name, model, contrast)
    return found.attribute(x, target=target, **({} if options is None else options(x)))


# Captum's own warnings
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks"),
    pytest.mark.filterwarnings("ignore:You are providing multiple inputs for Lime"),
]
TARGETS = {"int": 1, "list": [0, 2, 1], "tensor": torch.tensor([0, 2, 1]), "all": None}


@pytest.mark.parametrize("output", ["logits", "gated"])
@pytest.mark.parametrize("name", [*INPUT, *LAYER])
def test_every_method_explains_facets_or_raises_an_error(name, output, table_facets, images):
    model, images = TwoInputs().eval().to(DEVICE), images.to(DEVICE)
    facet_model = FacetModel(model, table_facets, output)
    if output == "gated" and ("DeepLift" in name or "LRP" in name):
        with pytest.raises(FacetError, match="explain 'logits'"):
            explainer(name, facet_model)
        return
    before = fingerprint(model)
    shape = (24, 8, 8) if name in LAYER else (3, 32, 32)
    shape = (1, 8, 8) if name == "LayerGradCam" else shape
    if output == "gated":
        found = explain(name, facet_model, images, 1)
        assert found.shape == (3, *shape)
        assert torch.isfinite(found).all()
        return
    for kind, target in TARGETS.items():
        parallel = kind == "list"
        if name == "LayerFeatureAblation" and DEVICE == "cpu":
            parallel = False  # Captum scatters the layer to devices, which a DataParallel on the CPU lacks
        found = explain(name, nn.DataParallel(facet_model) if parallel else facet_model, images, target)
        assert found.shape == ((3, 3, *shape) if target is None else (3, *shape))
        assert torch.isfinite(found).all()
        assert found.abs().sum() > 0 or name == "GuidedGradCam"  # its ReLU can set all attributions to 0
    pair = explain(name, facet_model, (images, images / 2), 1)
    if name in LAYER:
        assert pair.shape == (3, *shape)
    else:
        assert [part.shape for part in pair] == [(3, *shape)] * 2
    after = fingerprint(model)
    assert [key for key in ("weights", "hooks", "training", "requires_grad") if not same(before[key], after[key])] == []


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_methods_raise_an_error_with_the_reason(name, table_facets):
    made = LayerFacetAttribution if name.startswith("Layer") else FacetAttribution
    layer = {"layer": None} if name.startswith("Layer") else {}
    with pytest.raises(FacetError, match=REFUSED[name]):
        made(getattr(ca, name), FacetModel(TwoInputs(), table_facets), **layer)


@pytest.mark.parametrize(
    "name", ["Saliency", "InputXGradient", "IntegratedGradients", "FeatureAblation", "Occlusion", "ShapleyValues"]
)
@pytest.mark.parametrize(("output", "contrast"), [("logits", True), ("gated", False)])
def test_attributions_of_all_facets_equal_those_of_each_facet(name, output, contrast, table_facets, images):
    model, images = FacetModel(TwoInputs().eval().double(), table_facets, output), images.double()
    for x in (images, images[:1], (images, images / 2)):
        together = explain(name, model, x, None, contrast)
        alone = [explain(name, model, x, k, contrast) for k in range(3)]
        for part in range(1 if isinstance(x, torch.Tensor) else 2):
            got = together if isinstance(x, torch.Tensor) else together[part]
            want = torch.stack([one if isinstance(x, torch.Tensor) else one[part] for one in alone], 1)
            assert torch.allclose(got, want, atol=1e-6 * float(want.abs().max()))


def test_rows_of_baselines_masks_and_forward_arguments_match_their_inputs(table_facets, images):
    model = FacetModel(TwoInputs().eval(), table_facets)
    options = {"baselines": images.flip(0), "additional_forward_args": images / 3}
    found = FacetAttribution(ca.IntegratedGradients, model).attribute(images, n_steps=5, **options)
    rows = [
        ca.IntegratedGradients(model).attribute(
            images[n : n + 1],
            baselines=images.flip(0)[n : n + 1],
            additional_forward_args=images[n : n + 1] / 3,
            target=k,
            n_steps=5,
        )[0]
        for n in range(3)
        for k in range(3)
    ]
    assert torch.allclose(found.flatten(0, 1), torch.stack(rows), atol=1e-5 * float(found.abs().max()))
    mask = torch.stack([PATCHES[0], PATCHES[0].flip(2), PATCHES[0].flip(1)])
    ablate = FacetAttribution(ca.FeatureAblation, model)
    together = ablate.attribute(images, feature_mask=mask, perturbations_per_eval=2)
    alone = torch.stack([ablate.attribute(images, target=k, feature_mask=mask) for k in range(3)], 1)
    assert torch.allclose(together, alone, atol=1e-5 * float(alone.abs().max()))


def test_all_facets_together_run_the_model_once(table_facets, images):
    network = TwoInputs().eval()
    seen = []
    network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    FacetAttribution(ca.InputXGradient, FacetModel(network, table_facets)).attribute(images)
    assert seen == [3]
    seen.clear()
    FacetAttribution(ca.IntegratedGradients, FacetModel(network, table_facets)).attribute((images,), n_steps=7)
    assert seen == [21]


def test_a_method_keeps_captums_properties(table_facets, images):
    model = FacetModel(TwoInputs().eval(), table_facets)
    exact = FacetAttribution(ca.IntegratedGradients, model)
    assert exact.multiplies_by_inputs
    assert exact.has_convergence_delta()
    assert not FacetAttribution(ca.IntegratedGradients, model, multiply_by_inputs=False).multiplies_by_inputs
    assert not FacetAttribution(ca.Saliency, model).has_convergence_delta()
    found, delta = exact.attribute(images, n_steps=200, return_convergence_delta=True)
    assert (found.shape, delta.shape) == ((3, 3, 3, 32, 32), (3, 3))
    scores = (model(images) - model(torch.zeros_like(images))).detach()
    assert torch.allclose(found.sum((2, 3, 4)), scores, atol=0.02 * float(scores.abs().max()))
    assert torch.allclose(delta, found.sum((2, 3, 4)) - scores, atol=1e-4)
    tunnel = ca.NoiseTunnel(exact).attribute(images, nt_samples=2, n_steps=4)
    assert tunnel.shape == (3, 3, 3, 32, 32)


@pytest.mark.filterwarnings("ignore:The neuron_selector provided is a callable")
def test_captums_neuron_methods_accept_a_facet_model(table_facets, images):
    model = FacetModel(TwoInputs().eval(), table_facets)
    through = ca.NeuronConductance(model, model.model.net.relu2)
    found = through.attribute(images, lambda layer: layer.flatten(1).sum(1), target=1, n_steps=4)
    assert found.shape == (3, 3, 32, 32)
    assert found.abs().sum() > 0
    of_facet = ca.NeuronGradient(model, model.head).attribute(images.clone().requires_grad_(), 1)
    assert torch.allclose(of_facet, FacetAttribution(ca.Saliency, model).attribute(images, target=1, abs=False))


def test_contrast_is_a_facet_against_the_mean_of_the_others(table_facets, images):
    model = FacetModel(TwoInputs().eval(), table_facets, "gated")
    each = FacetAttribution(ca.InputXGradient, model).attribute(images)
    against = FacetAttribution(ca.InputXGradient, model, contrast=True).attribute(images)
    others = (each.sum(1, keepdim=True) - each) / 2
    assert torch.allclose(against, each - others, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda m: FacetAttribution(ca.LayerGradCam, m, layer=m.model.net.relu2), TypeError, "needs Layer"),
        (lambda m: LayerFacetAttribution(ca.NeuronGradient, m, m.model.net.relu2), TypeError, "the FacetModel itself"),
        (lambda m: LayerFacetAttribution(ca.Saliency, m, m.model.net.relu2), TypeError, "needs FacetAttribution"),
        (lambda m: FacetAttribution(ca.Saliency, m.model), TypeError, "must be a FacetModel"),
        (lambda m: FacetAttribution("Saliency", m), TypeError, "a class of captum.attr"),
        (lambda m: FacetAttribution(lambda f: f, m), TypeError, "not an attribution"),
        (
            lambda m: FacetAttribution(ca.Saliency, m).attribute(torch.zeros(2, 3, 32, 32), target=3),
            FacetError,
            "0 to 2",
        ),
        (
            lambda m: FacetAttribution(ca.Saliency, m).attribute(torch.zeros(2, 3, 32, 32), target=[0, -1]),
            FacetError,
            "0 to 2",
        ),
    ],
)
def test_wrong_arguments_raise_an_error_that_names_the_right_one(make, error, match, table_facets):
    with pytest.raises(error, match=match):
        make(FacetModel(TwoInputs(), table_facets))


@pytest.mark.parametrize("method", [ca.IntegratedGradients, ca.DeepLift, ca.GuidedBackprop, ca.LRP, ca.Occlusion])
def test_a_bad_target_in_captums_own_call_leaves_no_hook(method, table_facets, images):
    model = FacetModel(TwoInputs().eval(), table_facets)
    before = fingerprint(model)
    with pytest.raises((AssertionError, IndexError)):
        method(model).attribute(
            images.clone().requires_grad_(), target=99, **(windows(images) if method is ca.Occlusion else {})
        )
    assert same(before["hooks"], fingerprint(model)["hooks"])


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("no")


@pytest.mark.parametrize("name", ["IntegratedGradients", "Occlusion", "DeepLift", "LRP", "LayerGradCam"])
def test_a_failing_module_leaves_no_hook(name, table_facets, images):
    network = TwoInputs().eval()
    model = FacetModel(network, table_facets)
    network.net.bn1 = Failing()
    before = fingerprint(network)
    with pytest.raises((RuntimeError, TypeError)):
        explain(name, model, images, 0)
    assert same(before["hooks"], fingerprint(network)["hooks"])


def test_replicas_that_share_hooks_use_their_own_layers(table_facets, images):
    model = FacetModel(TwoInputs().eval(), table_facets, "gated")
    wanted = model(images)

    def replica(module):
        copy = module._replicate_for_data_parallel()  # what DataParallel does on every device
        for name, child in module.named_children():
            setattr(copy, name, replica(child))
        for name, weight in module._parameters.items():
            setattr(copy, name, weight)
        return copy

    copies = [replica(model) for _ in range(4)]
    found = [None] * 4
    for _ in range(5):
        threads = [
            threading.Thread(target=lambda n=n: found.__setitem__(n, copies[n](images[[n % 3]]))) for n in range(4)
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        for n in range(4):
            assert torch.allclose(found[n][0], wanted[n % 3], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:Converting a tensor to a Python boolean")
@pytest.mark.parametrize("output", ["logits", "gated"])
def test_a_traced_facet_model_equals_the_facet_model(output, table_facets, images):
    model = FacetModel(TwoInputs().eval(), table_facets, output)
    traced = torch.jit.trace(model, images)
    assert torch.allclose(traced(images / 2), model(images / 2), atol=1e-5)
    for method, options in ((ca.IntegratedGradients, {"n_steps": 4}), (ca.FeatureAblation, masks(images))):
        found = method(traced).attribute(images, target=1, **options)
        assert torch.allclose(found, method(model).attribute(images, target=1, **options), atol=1e-5)


def unit_alone(model, facets):
    return lambda x: facets.unit.read(model(SPEC(x)))[:, None]


def test_gated_outputs_sum_to_the_units_activation_and_the_largest_logit_is_the_facets(facets, planted):
    images, _ = planted
    model = small_cnn()
    gated = FacetModel(model, facets, "gated", SPEC)(images)
    assert torch.allclose(gated.sum(1), torch.from_numpy(facets.activations), atol=1e-5)
    logits = FacetModel(model, facets, input_spec=SPEC)(images)
    assert (logits.argmax(1).numpy() == facets.labels).all()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (ca.IntegratedGradients, {"n_steps": 20}),
        (ca.InputXGradient, {}),
        (ca.FeatureAblation, {"feature_mask": "patches"}),
    ],
)
def test_attributions_of_the_facets_sum_to_the_units(method, options, facets, planted):
    x = planted[0][:3].clone().requires_grad_()
    if "feature_mask" in options:
        options = {"feature_mask": (torch.arange(32)[:, None] // 8 * 4 + torch.arange(32) // 8)[None, None]}
    model = small_cnn()
    explain = method(FacetModel(model, facets, "gated", SPEC))
    parts = sum(explain.attribute(x, target=k, **options) for k in range(3))
    whole = method(unit_alone(model, facets)).attribute(x, target=0, **options)
    assert (parts - whole).abs().max() < 1e-5 * whole.abs().max()


def test_an_unknown_output_or_layer_raises_an_error(table_facets):
    with pytest.raises(FacetError, match="logits or gated"):
        FacetModel(TwoInputs(), table_facets, "probabilities")
    with pytest.raises(UnitError, match="the nearest are"):
        FacetModel(small_cnn(), table_facets)
