import gc
import weakref

import pytest
import torch
from torch import nn

from captum_mfv.activations import capture, guard, layer_name, trace
from captum_mfv.activations.layers import code_layer, spatial_layers
from captum_mfv.errors import UnitError

X = torch.rand(2, 3, 32, 32)


def test_an_in_place_relu_does_not_change_what_was_captured_before_it(model):
    with torch.no_grad(), capture(model, ["conv2", "relu2"]) as run:
        outputs = run(X)
    assert (outputs["conv2"] < 0).any()
    assert torch.equal(outputs["conv2"].relu(), outputs["relu2"])


def test_the_forward_pass_stops_after_the_last_layer_wanted(model):
    seen = []
    model.fc.register_forward_hook(lambda *args: seen.append(args))
    with capture(model, ["conv1", "conv2"]) as run:
        run(X)
        assert seen == []
    with capture(model, ["conv1"], stop=False) as run:
        run(X)
        assert len(seen) == 1


def test_gradients_flow_through_what_was_captured(model):
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
def test_ctrl_c_leaves_no_hook_and_no_mode(model):
    with pytest.raises(KeyboardInterrupt), guard(model), capture(model, ["fc"]):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("unchanged")
def test_tracing_changes_nothing(model):
    trace(model, X)


def test_a_layer_is_found_by_name_or_as_itself_and_a_typo_is_told_the_nearest(model):
    assert layer_name(model, model.conv2) == layer_name(model, "conv2") == "conv2"
    with pytest.raises(UnitError, match=r"no layer 'conv3'; the nearest are conv"):
        layer_name(model, "conv3")
    with pytest.raises(UnitError, match="no layer that is this Linear"):
        layer_name(model, nn.Linear(1, 1))


def test_the_default_code_is_the_last_layer_with_positions_that_is_not_mere_dropout(model):
    assert code_layer(trace(model, X), "fc") == "relu2"
    assert code_layer(trace(model, X), "conv1") == "conv1"


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()
        self.unused = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.act(self.two(self.act(self.one(x)))), None


def test_a_layer_that_runs_twice_is_ambiguous_and_one_that_never_runs_is_named():
    model = Shared()
    with pytest.raises(UnitError, match="runs 2 times"):
        spatial_layers(trace(model, X), "act")
    with pytest.raises(UnitError, match="unused doesn't run"):
        spatial_layers(trace(model, X), "unused")
    with capture(model, ["unused"]) as run, pytest.raises(UnitError, match="unused doesn't run"):
        run(X)


def test_captures_may_be_nested_and_each_ends_its_own_pass(model):
    x = torch.rand(2, 3, 32, 32)
    with capture(model, ["conv1"]) as outer:

        def inner(x):
            with capture(model, ["conv2"]) as run:
                return run(x)["conv2"]

        with pytest.raises(Exception) as stopped:
            inner(x)  # conv1, which the outer one wants, comes first
        assert type(stopped.value).__name__ == "_Stop"
        assert outer(x)["conv1"].shape == (2, 12, 16, 16)
    assert inner(x).shape == (2, 24, 8, 8)


def test_nothing_of_a_pass_is_kept_once_it_is_over(model):
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
