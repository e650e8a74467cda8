"""Layers that return tuples, lists, mappings and dataclasses, and layers that show which axis holds the channels."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from conftest import SPEC, fingerprint, same
from torch import Tensor, nn

from captum_mfv import Code, InputSpec, Unit, collect, find_facets, top_images
from captum_mfv.activations import capture, guard, trace
from captum_mfv.activations.layers import code_layer, resolve
from captum_mfv.attr import facet_maps, pure_code
from captum_mfv.concept import random_concepts, tcav_table
from captum_mfv.errors import UnitError
from captum_mfv.optvis import objectives

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Named(NamedTuple):
    maps: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Data:
    size: int
    maps: Tensor
    pooled: Tensor


KINDS = {  # how a layer returns maps and their means, how a later layer reads the maps, and the name of the means
    "tuple": (lambda maps, pooled: (maps, pooled), lambda output: output[0], "1"),
    "None first": (lambda maps, pooled: [None, maps, pooled], lambda output: output[1], "2"),
    "namedtuple": (Named, lambda output: output.maps, "pooled"),
    "dataclass": (lambda maps, pooled: Data(32, maps, pooled), lambda output: output.maps, "pooled"),
    "mapping": (
        lambda maps, pooled: OrderedDict(kind="maps", maps=maps, pooled=pooled),
        lambda output: output["maps"],
        "pooled",
    ),
}


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, x):
        maps = self.conv(x)
        return KINDS[self.kind][0](maps, maps.mean((2, 3))) if self.kind else maps


class Network(nn.Module):
    """A network whose block returns a container of a kind, or a tensor, before an in-place ReLU."""

    def __init__(self, kind=None):
        super().__init__()
        self.kind, self.read = kind, None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.block, self.relu, self.fc = Block(kind), nn.ReLU(inplace=True), nn.Linear(8, 4)
        self.eval()

    def forward(self, x):
        self.read = self.block(x)
        return self.fc(self.relu(KINDS[self.kind][1](self.read) if self.kind else self.read).mean((2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_tensor_of_a_container_is_captured_before_an_in_place_relu(kind):
    model = Network(kind)
    before = fingerprint(model)
    second = f"block[{KINDS[kind][2]}]"
    x = X.clone().requires_grad_()
    with guard(model), capture(model, ["block", second, "fc"]) as run:
        outputs = run(x)
        gradient = torch.autograd.grad(outputs["fc"].sum(), outputs["block"], retain_graph=True)[0]
    assert torch.equal(outputs["block"], model.block.conv(X))
    assert torch.equal(outputs[second], model.block.conv(X).mean((2, 3)))
    assert gradient.abs().sum() > 0
    assert torch.autograd.grad(outputs["fc"].sum(), x)[0].abs().sum() > 0
    assert type(model.read) is type(KINDS[kind][0](X, X))
    after = fingerprint(model)
    assert [key for key in before if not same(before[key], after[key])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_facets_and_attributions_of_a_container_equal_those_of_a_tensor(kind, planted):
    images, concepts = planted[0][::3], random_concepts(planted[0], 5, 6, input_spec=SPEC)
    found = []
    for model in (Network(), Network(kind)):
        facets = find_facets(model, "fc:1", images, n_facets=2, code="block", input_spec=SPEC)
        rows = tcav_table(model, SPEC(images), 1, concepts[:2], concepts[2:], layers=["block"])
        pure = pure_code(model, "fc:1", "block", input_spec=SPEC)(images)
        maps = facet_maps(model, facets, images[:4], 0, method="LayerGradientXActivation", input_spec=SPEC)
        found.append((torch.from_numpy(facets.codes), pure, maps, torch.tensor([row.score for row in rows])))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_other_tensors_of_a_container_have_names_of_their_own(planted):
    model, unit = Network("mapping"), Unit.parse("block[pooled]:3")
    calls = {call.name: call for call in trace(model, X)}
    assert list(calls) == ["block.conv", "block", "block[pooled]", "relu", "fc"]
    assert (calls["block"].copies, calls["block"].n_units, calls["block[pooled]"].n_units) == ("block.conv", 8, 8)
    assert code_layer(list(calls.values()), unit.layer_name) == unit.layer_name
    first, second = (collect(model, one, planted[0], input_spec=SPEC).activations for one in ("block:3", unit))
    assert first == pytest.approx(second, abs=1e-6)
    assert unit != Unit("block", 3)
    with pytest.raises(UnitError, match=r"no output block\[mean\], only block, block\[pooled\]"):
        find_facets(model, "block[mean]:3", planted[0], input_spec=SPEC)
    with capture(model, ["block[mean]"]) as run, pytest.raises(UnitError, match="OrderedDict of the tensors maps, poo"):
        run(X)


class Sizes(nn.Module):
    def forward(self, x):
        return {"size": x.shape}


def test_a_container_without_a_tensor_raises_an_error_that_names_the_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Sizes()))
    with capture(model, ["1.0"]) as run, pytest.raises(UnitError, match=r"layer 1\.0 returns a dict without a tensor"):
        run(X)
    with pytest.raises(UnitError, match=r"1\.0 .* doesn't return a tensor"):
        resolve(model, "1.0:0", None, SPEC)


def test_an_objective_reads_the_first_tensor_that_lucent_hooked(planted):
    model = Network("tuple")
    facets = find_facets(model, "block:1", planted[0], n_facets=2, input_spec=SPEC)
    with torch.no_grad():
        output = model.block(X)
        loss = objectives.unit(facets[0])(lambda name: {"block": output}[name])
    mean = abs(facets[0].activations).mean()
    assert float(loss) == pytest.approx(-float(output[0][:, 1].mean()) / mean, rel=1e-5)


class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("width", [12, 16])  # of 16 x 16 positions: the second shape shows nothing
def test_a_layer_norm_shows_which_axis_of_a_map_holds_the_channels(width, planted):
    model = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), Last(), nn.LayerNorm(width), nn.Flatten(1), nn.Dropout(0.1))
    spec = InputSpec(32)
    for layer in ("1", "2"):
        assert resolve(model, Unit(layer, 3, "max"), layer, spec)[0] == Unit(layer, 3, "max", "last")
    assert resolve(model, "4:3", "2", spec)[1] == Code("2", channels="last")
    assert resolve(model, "0:3", None, spec)[0] == Unit("0", 3)
    last, first = (top_images(model, Unit(layer, 3, "max"), planted[0], 9, input_spec=spec) for layer in ("1", "0"))
    assert last.indices.tolist() == first.indices.tolist()


def test_a_map_has_its_channels_where_layers_of_the_same_shape_have_them():
    last = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), Last(), nn.LayerNorm(12), Doubled(), nn.Flatten(1))
    assert resolve(last, "3:1", None, InputSpec(32))[0] == Unit("3", 1, channels="last")
    first = nn.Sequential(nn.Conv2d(3, 16, (1, 3), (2, 4), (0, 1)), Doubled(), nn.Flatten(1))
    assert resolve(first, "1:1", None, InputSpec(32))[0] == Unit("1", 1, channels="first")  # of shape 16 x 16 x 8
