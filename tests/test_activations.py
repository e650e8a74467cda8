import gc
import weakref

import numpy as np
import pytest
import torch
from conftest import SPEC, Failing
from torch import nn

from captum_mfv import Code, InputSpec, Unit, collect, find_facets, top_images
from captum_mfv.activations import capture, guard, layer_name, trace
from captum_mfv.activations.layers import code_layer, resolve, spatial_layers
from captum_mfv.attr import pure_code
from captum_mfv.concept import random_concepts, tcav_table
from captum_mfv.errors import UnitError

X = torch.rand(2, 3, 32, 32)


def test_an_in_place_relu_does_not_change_an_output_captured_before_it(model):
    with torch.no_grad(), capture(model, ["conv2", "relu2"]) as run:
        outputs = run(X)
    assert (outputs["conv2"] < 0).any()
    assert torch.equal(outputs["conv2"].relu(), outputs["relu2"])


def test_the_forward_pass_stops_after_the_last_captured_layer(model):
    seen = []
    model.fc.register_forward_hook(lambda *args: seen.append(args))
    with capture(model, ["conv1", "conv2"]) as run:
        run(X)
        assert seen == []
    with capture(model, ["conv1"], stop=False) as run:
        run(X)
        assert len(seen) == 1


def test_gradients_flow_through_captured_outputs(model):
    x = X.clone().requires_grad_()
    with capture(model, ["conv2"]) as run:
        run(x)["conv2"].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("bad", [torch.rand(2, 4, 32, 32), torch.rand(7)])
def test_a_failing_forward_pass_leaves_no_hook(model, bad):
    with pytest.raises(RuntimeError), guard(model), capture(model, ["fc"]) as run:
        run(bad)


@pytest.mark.usefixtures("unchanged")
def test_ctrl_c_leaves_no_hook_and_no_changed_mode(model):
    with pytest.raises(KeyboardInterrupt), guard(model), capture(model, ["fc"]):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("unchanged")
def test_tracing_does_not_change_the_model(model):
    trace(model, X)


def test_a_layer_is_found_by_name_or_module_and_the_error_for_a_typo_lists_the_nearest(model):
    assert layer_name(model, model.conv2) == layer_name(model, "conv2") == "conv2"
    with pytest.raises(UnitError, match=r"no layer 'conv3'; the nearest are conv"):
        layer_name(model, "conv3")
    with pytest.raises(UnitError, match="no layer that is this Linear"):
        layer_name(model, nn.Linear(1, 1))


def test_the_default_code_is_the_last_layer_with_positions_other_than_dropout(model):
    assert code_layer(trace(model, X), "fc") == "relu2"
    assert code_layer(trace(model, X), "conv1") == "conv1"


def _widened(*layers: nn.Module, width: int) -> nn.Module:
    """Return a network of 8 channels, the given layers, and a class layer on top."""
    top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), *layers, *top)


@pytest.mark.parametrize(
    ("layers", "width", "code"),
    [
        ([nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32), nn.ReLU6()], 32, "1"),  # as in MobileNets and EfficientNets
        ([nn.Sequential(nn.Conv2d(8, 32, 1), nn.SiLU())], 32, "1"),
        ([nn.Conv2d(8, 16, 1), nn.ReLU6()], 16, "3"),  # as in blocks of depthwise and 1 x 1 convolutions
        ([nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.ReLU6()], 32, "4"),
        ([nn.Conv2d(8, 32, 1), nn.ReLU6(), nn.MaxPool2d(2)], 32, "4"),
    ],
)
def test_a_head_that_only_widens_is_no_default_code(layers, width, code):
    assert code_layer(trace(_widened(*layers, width=width).eval(), X), str(len(layers) + 4)) == code


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()
        self.unused = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.act(self.two(self.act(self.one(x)))), None


def test_a_layer_that_runs_twice_or_never_raises_an_error():
    model = Shared()
    with pytest.raises(UnitError, match="runs 2 times"):
        spatial_layers(trace(model, X), "act")
    with pytest.raises(UnitError, match="unused doesn't run"):
        spatial_layers(trace(model, X), "unused")
    with capture(model, ["unused"]) as run, pytest.raises(UnitError, match="unused doesn't run"):
        run(X)


def test_captures_can_be_nested_and_each_stops_one_forward_pass(model):
    x = torch.rand(2, 3, 32, 32)
    with capture(model, ["conv1"]) as outer:

        def inner(x):
            with capture(model, ["conv2"]) as run:
                return run(x)["conv2"]

        with pytest.raises(Exception) as stopped:
            inner(x)  # the outer capture ends the pass at conv1
        assert type(stopped.value).__name__ == "_Stop"
        assert outer(x)["conv1"].shape == (2, 12, 16, 16)
    assert inner(x).shape == (2, 24, 8, 8)


def test_no_output_is_kept_after_the_forward_pass(model):
    held = []
    model.relu1.register_forward_hook(lambda module, args, output: held.append(weakref.ref(output)))
    gc.disable()
    try:
        with capture(model, ["conv2"]) as run:
            for _ in range(3):
                run(torch.rand(2, 3, 32, 32))
            assert [ref() for ref in held] == [None] * 3
    finally:
        gc.enable()


class TokensFirst(nn.Module):
    """A transformer of 16 tokens whose layers return (tokens, N, C), or (N, tokens, C) with ``batch_first``."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.position = nn.Embedding(16, 8)
        self.one = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.two = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position(torch.arange(16))[None]
        if self.batch_first:
            return self.head(self.two(self.one(tokens)).mean(1))
        return self.head(self.two(self.one(tokens.transpose(0, 1))).mean(0))


@pytest.fixture(scope="module")
def token_models():
    """Return the same network token-first and batch-first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = TokensFirst(False).eval(), TokensFirst(True).eval()
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize("n", [1, 2, 16])
def test_a_token_first_layer_is_captured_batch_first(token_models, n):
    x = torch.rand(n, 3, 32, 32)
    found = []
    for model in token_models:
        with guard(model), capture(model, ["one", "two"]) as run:
            outputs = run(x.requires_grad_())
        gradient = torch.autograd.grad(outputs["two"][:, 0].sum(), outputs["one"])[0]
        found.append((outputs["two"], gradient))
    for one, other in zip(*found, strict=True):
        assert one.shape == (n, 16, 8)
        assert torch.allclose(one, other, atol=1e-5)


def test_facets_of_a_token_first_network_equal_those_of_the_batch_first_network(token_models):
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for unit in ("two:3", Unit("one", 2, "max"), "head:1"):
        first, second = (
            collect(model, unit, images, input_spec=InputSpec(32), batch_size=16) for model in token_models
        )
        assert first.code == second.code
        assert np.allclose(first.activations, second.activations, atol=1e-5)
        assert np.allclose(first.codes, second.codes, atol=1e-5)


def test_attributions_to_a_token_first_layer_equal_those_of_the_batch_first_network(token_models):
    images = torch.rand(16, 3, 32, 32)  # as many as tokens
    first, second = (pure_code(model, "head:1", "one", input_spec=InputSpec(32))(images) for model in token_models)
    assert first.shape == (16, 8)
    assert torch.allclose(first, second, atol=1e-5)
    concepts = random_concepts(images, 5, 6, input_spec=InputSpec(32))
    rows = [tcav_table(model, images, 1, concepts[:2], concepts[2:], layers=["one"]) for model in token_models]
    assert [row.score for row in rows[0]] == pytest.approx([row.score for row in rows[1]], abs=0.1)


def test_a_layer_without_a_batch_axis_raises_an_error(token_models):
    with pytest.raises(UnitError, match=r"position .* has no batch axis"):
        resolve(token_models[0], "position:3", None, InputSpec(32))


def fixed_size():
    """Return a network that accepts only 32-pixel images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(512, 3)).eval()


def test_crops_run_only_the_layers_up_to_the_unit(planted):
    model = fixed_size()
    top = top_images(model, Unit("2", 3, "max"), planted[0], 20, input_spec=InputSpec(32))
    assert top.cropped
    facets = find_facets(model, top.unit, top, n_facets=2, input_spec=top.input_spec)
    assert len(facets.labels) == 20
    assert pure_code(model, top.unit, input_spec=top.input_spec)(torch.stack([top[0], top[1]])).shape == (2, 6)
    with pytest.raises(RuntimeError, match="shapes"):
        find_facets(model, "5:1", top, n_facets=2, input_spec=top.input_spec)


def test_units_and_codes_can_be_strings_and_modules(model, planted):
    options = {"n_facets": 3, "input_spec": SPEC}
    by_names = find_facets(model, "fc:1", planted[0], code="relu2:max", **options)
    assert (by_names.unit, by_names.code) == (Unit("fc", 1), Code("relu2", "max"))
    assert find_facets(model, "fc:1", planted[0], code=model.relu2, **options).code == Code("relu2")
    other = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    assert find_facets(model, "fc:1", planted[0], code=other, **options).code == Code("relu2")
    top = top_images(model, ["fc:1", Unit("fc", 2)], planted[0], 5, input_spec=SPEC)
    assert [one.unit for one in top] == [Unit("fc", 1), Unit("fc", 2)]
    for unit in (None, 3):
        with pytest.raises(TypeError, match="unit must be a Unit or 'LAYER:INDEX'"):
            find_facets(model, unit, planted[0], **options)
    with pytest.raises(UnitError, match="LAYER:INDEX"):
        top_images(model, ("fc", 1), planted[0], input_spec=SPEC)
    with pytest.raises(UnitError, match="the nearest are"):
        find_facets(model, "fcc:1", planted[0], **options)


@pytest.mark.parametrize("work", [collect, find_facets, top_images])
def test_a_batch_size_below_one_raises_an_error_before_the_model_runs(model, work):
    model.register_forward_hook(Failing(AssertionError("the model ran"), 0))
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        work(model, "fc:1", X, batch_size=0)
