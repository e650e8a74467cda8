"""A model's layers in the order in which they run, and units and codes that are checked against them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import batch_axis, guard, layer_name
from captum_mfv.activations.containers import named_tensors, split_name
from captum_mfv.activations.tokens import declared_prefix
from captum_mfv.errors import UnitError
from captum_mfv.images import InputSpec
from captum_mfv.units import Code, Unit, is_channels_last

__all__ = [
    "LayerCall",
    "PatchGrid",
    "code_layer",
    "count_units",
    "patch_grid",
    "resolve",
    "resolve_units",
    "spatial_layers",
    "trace",
]

T = TypeVar("T", Unit, Code)

# Layers that read and return maps with a certain channel axis; subclasses may permute their input
_CHANNELS: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d), "first"),
    **dict.fromkeys((nn.Linear, nn.LayerNorm), "last"),
}

_WIDENING = 2  # the default code passes over 1 x 1 convolutions to more than this many times as many channels


@dataclass(frozen=True)
class LayerCall:
    """One tensor of a layer's output in one forward pass."""

    name: str
    shape: tuple[int, ...]
    """The output's shape, the batch first if the output has a batch axis."""
    runs: int
    """Number of times that the layer runs in the pass."""
    copies: str | None
    """Name of the layer that computed the output, if this layer only returns it."""
    batch: int | None
    """The output's batch axis: 0, 1 for tokens first (tokens, N, C), or None if it has none."""
    channels: str | None
    """``first`` or ``last`` for a map that a layer of PyTorch returns or reads so, or of the shape of such a map."""
    container: bool
    """Whether the output is a tuple, a list, a mapping or a dataclass."""
    pointwise: bool = False
    """Whether the layer is a 1 x 1 convolution, a batch normalization or an activation function."""

    @property
    def first(self) -> bool:
        """Whether the output is the first tensor that the layer returns, named ``layer``, not ``layer[key]``."""
        return split_name(self.name)[1] is None

    @property
    def last(self) -> bool:
        """Whether channels are last: of tokens, and of maps by ``channels`` or, without it, by the shape."""
        if len(self.shape) != 4:
            return len(self.shape) == 3
        return is_channels_last(self.shape) if self.channels is None else self.channels == "last"

    @property
    def n_units(self) -> int | None:
        """Number of the output's channels, or None if the output has no batch axis or no channels."""
        if self.batch is None or len(self.shape) not in (2, 3, 4):
            return None
        return self.shape[-1 if self.last else 1]

    @property
    def spatial(self) -> bool:
        """Whether the output has several positions per row: a map, channels first or last, or tokens (N, tokens, C)."""
        if self.batch is None or len(self.shape) not in (3, 4):
            return False
        return math.prod(self.shape[1:-1] if self.last else self.shape[2:]) > 1


class PatchGrid(NamedTuple):
    """Where the patches of a square image are among a layer's tokens: row by row, after ``n_prefix`` other tokens."""

    n_prefix: int
    rows: int
    columns: int


_Key = tuple[tuple[int, ...], tuple[int, ...], int, int]


def _key(tensor: Tensor) -> _Key:
    return tuple(tensor.shape), tensor.stride(), tensor.data_ptr(), tensor._version


@dataclass
class _Notes:
    """Outputs in the order in which the layers finish, and what the layers show of the channel axis of maps."""

    outputs: list[tuple[str, _Key, bool]] = field(default_factory=list)
    channels: dict[Any, set[str]] = field(default_factory=lambda: defaultdict(set))  # by key and by shape
    pointwise: set[str] = field(default_factory=set)
    kept: list[Tensor] = field(default_factory=list)  # so that no address is used twice

    def hook(self, name: str, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        tensors = named_tensors(name, output)
        self.kept += tensors.values()
        self.outputs += [(part, _key(tensor), not isinstance(output, Tensor)) for part, tensor in tensors.items()]
        if _is_pointwise(module):
            self.pointwise.update(tensors)
        if (channels := _CHANNELS.get(type(module))) and len(getattr(module, "normalized_shape", "C")) == 1:
            for tensor in (*args, output):
                if isinstance(tensor, Tensor) and tensor.ndim == 4:
                    self.kept.append(tensor)
                    self.channels[_key(tensor)].add(channels)
                    self.channels[tuple(tensor.shape)].add(channels)

    def calls(self, n_rows: int) -> list[LayerCall]:
        runs = Counter(name for name, _, _ in self.outputs)
        maker: dict[_Key, str] = {}
        for name, key, _ in self.outputs:
            if runs[name] == 1:
                maker.setdefault(key, name)
        calls = {}
        for name, key, container in self.outputs:
            first, shape = maker.get(key, name), key[0]
            shown = self.channels.get(key) or self.channels.get(shape) or set()
            if (axis := _batch_axis(shape, n_rows)) == 1:
                shape = (shape[1], shape[0], *shape[2:])
            copies, channels = None if first == name else first, next(iter(shown)) if len(shown) == 1 else None
            pointwise = name in self.pointwise
            calls[name] = LayerCall(name, shape, runs[name], copies, axis, channels, container, pointwise)
        return list(calls.values())


def _is_pointwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1)
    activation = type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)
    return activation or isinstance(module, nn.BatchNorm2d)


def trace(model: nn.Module, x: Tensor, until: Collection[str] | None = None) -> list[LayerCall]:
    """Trace every layer that returns a tensor or holds one in its output, in the order in which the layers finish.

    The model is left unchanged.

    Args:
        model: the model.
        x: (N, …) input. Only one row shows the batch axis of a layer with N tokens first.
        until: names of layers after which errors of the forward pass are ignored: of a network that takes one input
            size only (convolutions, flatten, linear), early layers run on crops too.
    """
    notes = _Notes()
    hooks = [module.register_forward_hook(partial(notes.hook, name)) for name, module in model.named_modules() if name]
    try:
        with guard(model), torch.no_grad():
            model(x)
    except Exception:
        found = {name for name, *_ in notes.outputs}
        if until is None or not found or not found.issuperset(until):
            raise
    finally:
        for hook in hooks:
            hook.remove()
    return notes.calls(len(x))


def _batch_axis(shape: tuple[int, ...], n_rows: int) -> int | None:
    try:
        return batch_axis(shape, n_rows) or 0
    except UnitError:
        return None


def _place(calls: list[LayerCall], layer: str) -> int:
    """Return a layer's position in the order of finishing; UnitError if it doesn't run once or returns no batch."""
    names = [call.name for call in calls]
    if layer not in names:
        same = ", ".join(name for name in names if split_name(name)[0] == split_name(layer)[0])
        if same:
            raise UnitError(f"there is no output {layer}, only {same}")
        raise UnitError(f"layer {layer} doesn't run in the model's forward pass, or doesn't return a tensor")
    call = calls[names.index(layer)]
    if call.runs > 1:
        raise UnitError(f"layer {layer} runs {call.runs} times in a pass; name a layer around it that runs once")
    if call.batch is None:
        raise UnitError(f"layer {layer} returns a tensor of shape {call.shape}, which has no batch axis; name another")
    return names.index(layer)


def spatial_layers(calls: list[LayerCall], before: str) -> list[str]:
    """Return the layers with positions that finish before the named one, each tensor once.

    Layers inside the named one, layers that run several times, layers of one channel (such as a pooled sequence,
    (N, C, 1)) and layers that only return another's output (dropout, identity, containers) are left out, and of a tuple
    or another container all but the first tensor.

    Raises:
        UnitError: if the named layer doesn't run once, or returns no batch.
    """
    layer, _ = split_name(before)
    return [
        call.name
        for call in calls[: _place(calls, before)]
        if call.spatial and call.runs == 1 and call.first and not call.copies and call.n_units != 1
        if call.name != layer and not call.name.startswith(f"{layer}.")
    ]


def code_layer(calls: list[LayerCall], before: str) -> str:
    """Return the layer of the default code: the last one with positions before the named one.

    Where 1 x 1 convolutions made it more than twice as wide as the layer below them, as the heads of MobileNets and
    EfficientNets do, that layer is returned: other networks agree more with facets found there. Without any layer with
    positions, the named layer itself is returned.
    """
    names = spatial_layers(calls, before)
    if not names:
        return before
    by_name = {call.name: call for call in calls}
    width = by_name[names[-1]].n_units or 0
    for call in (by_name[name] for name in reversed(names)):
        if _WIDENING * (call.n_units or 0) < width:
            return call.name
        if not call.pointwise:
            break
    return names[-1]


def resolve(
    model: nn.Module, unit: Unit | str, code: Code | str | nn.Module | None, spec: InputSpec
) -> tuple[Unit, Code]:
    """Check a unit and a code in one forward pass of two gray images; return both complete.

    Layers are then named; channels-last maps and prefix tokens are those that the pass and the model show.

    The default code is `code_layer`'s output, averaged over positions.

    Raises:
        TypeError: if the unit or the code is of another type.
        UnitError: if a layer isn't in the model, doesn't run once, or has no such channel.
    """
    code = Code.parse(layer_name(model, code) if isinstance(code, nn.Module) else code)
    (unit,), calls = _checked(model, [unit], [] if code is None else [layer_name(model, code.layer)], spec)
    if code is None:
        call = calls[_place(calls, code_layer(calls, unit.layer_name))]
        code = Code(call.name, channels="last" if len(call.shape) == 4 and call.last else None)
    code = _completed(code, code.layer, model, calls)
    if code.read(_output(calls, code.layer)).ndim != 2:
        raise UnitError(f"the code of layer {code.layer} isn't (N, D)")
    return unit, code


def resolve_units(model: nn.Module, units: Sequence[Unit | str], spec: InputSpec) -> list[Unit]:
    """Check units as `resolve` does, in one forward pass; return them complete."""
    return _checked(model, units, [], spec)[0]


def count_units(model: nn.Module, unit: Unit, spec: InputSpec) -> int:
    """Return the number of units of a unit's layer: channels, neurons, or an encoder's latents."""
    (found,), calls = _checked(model, [unit], [], spec)
    return found.read_channels(_output(calls, found.layer_name)).shape[1]


def _checked(
    model: nn.Module, units: Sequence[Unit | str], layers: list[str], spec: InputSpec
) -> tuple[list[Unit], list[LayerCall]]:
    """Return checked units, and the layers of a pass that runs at least theirs and those of ``layers``."""
    found = [replace(unit, layer=layer_name(model, unit.layer)) for unit in map(Unit.parse, units)]
    two = spec.gray().expand(2, -1, -1, -1)  # a tensor that doesn't grow with the batch, such as a weight, has no units
    calls = trace(model, spec.feed(model)(two), until=[*layers, *(unit.layer_name for unit in found)])
    found = [_completed(unit, unit.layer_name, model, calls) for unit in found]
    for unit in found:
        unit.read(_output(calls, unit.layer_name))
    return found, calls


def _output(calls: list[LayerCall], layer: str) -> Tensor:
    """Return a meta tensor of the shape of a layer's output."""
    return torch.empty(calls[_place(calls, layer)].shape, device="meta")


def _completed(of: T, layer: str, model: nn.Module, calls: list[LayerCall]) -> T:
    """Return a unit or a code of a layer with ``channels`` and ``n_prefix`` as the pass and the model show them."""
    place = _place(calls, layer)
    call = calls[place]
    if of.channels is None and call.channels and (call.channels == "last" or is_channels_last(call.shape)):
        return replace(of, channels=call.channels)
    if of.n_prefix is None and of.reduce in ("cls", "patches") and len(call.shape) == 3:
        n_prefix, _ = _patches(model, layer, call.shape[2 if of.channels == "first" else 1], calls[:place])
        if of.reduce == "patches":
            return replace(of, n_prefix=n_prefix)
        if n_prefix == 0:
            raise UnitError(f"the tokens of layer {layer} are patches only; reduce='cls' needs a class token")
    return of


def patch_grid(model: nn.Module, unit: Unit, spec: InputSpec) -> PatchGrid | None:
    """Return where the patches are among the tokens of a unit's layer; None if the layer doesn't return tokens.

    Raises:
        UnitError: if the model doesn't show it, or the patches don't divide the input.
    """
    layer = unit.layer_name
    calls = trace(model, spec.feed(model)(spec.gray()), until=[layer])
    place = _place(calls, layer)
    if len(calls[place].shape) != 3:
        return None
    n_tokens = calls[place].shape[2 if unit.channels == "first" else 1]
    n_prefix, sides = _patches(model, layer, n_tokens, calls[:place], unit.n_prefix)
    if n_prefix is None or sides is None or any(spec.size % side for side in sides):
        raise UnitError(
            f"the positions of the tokens of layer {layer} in the image aren't known; give n_prefix=, the number of "
            f"class and register tokens, if the model doesn't declare it"
        )
    return PatchGrid(n_prefix, *sides)


def _patches(
    model: nn.Module, layer: str, n_tokens: int, before: list[LayerCall], n_prefix: int | None = None
) -> tuple[int | None, tuple[int, int] | None]:
    """Return how many tokens precede the patches, and the rows and columns of the patches; None for what is unknown.

    If ``n_prefix`` isn't given, the model declares it. The other tokens must be as many as the positions of an earlier
    map; layers inside the patch embedding return the patches alone.
    """
    grids = {math.prod(call.shape[2:]): call.shape[2:] for call in before if len(call.shape) == 4 and not call.last}
    declared = declared_prefix(model, split_name(layer)[0]) if n_prefix is None else n_prefix
    for count in () if declared is None else (declared, 0):
        if (sides := grids.get(n_tokens - count)) and (n_prefix is None or count == n_prefix):
            return count, (sides[0], sides[1])
    return 0 if declared == 0 else n_prefix, None
