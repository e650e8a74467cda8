"""A model's layers in the order in which they run, and units and codes that are checked against them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import batch_axis, guard, layer_name
from captum_mfv.errors import UnitError
from captum_mfv.images import InputSpec
from captum_mfv.units import Code, Unit, channels_second, is_channels_last

__all__ = ["LayerCall", "code_layer", "resolve", "resolve_units", "spatial_layers", "trace"]


@dataclass(frozen=True)
class LayerCall:
    """A layer's run in one forward pass."""

    name: str
    shape: tuple[int, ...]
    """The output's shape, the batch first if the output has a batch axis."""
    runs: int
    """Number of times that the layer runs in the pass."""
    copies: str | None
    """Name of the layer that computed the output, if this layer only returns it."""
    batch: int | None
    """The output's batch axis: 0, 1 for tokens first (tokens, N, C), or None if it has none."""

    @property
    def n_units(self) -> int | None:
        """Number of the output's channels, or None if the output has no batch axis or no channels."""
        if self.batch is None or len(self.shape) not in (2, 3, 4):
            return None
        return channels_second(torch.empty(self.shape, device="meta")).shape[1]

    @property
    def spatial(self) -> bool:
        """Whether the output has several positions per row: a map, channels first or last, or tokens (N, tokens, C)."""
        if self.batch is None or len(self.shape) not in (3, 4):
            return False
        tokens_or_last = len(self.shape) == 3 or is_channels_last(self.shape)
        return math.prod(self.shape[1:-1] if tokens_or_last else self.shape[2:]) > 1


def trace(model: nn.Module, x: Tensor, until: Collection[str] | None = None) -> list[LayerCall]:
    """Trace every layer that returns a tensor, in the order in which the layers finish; the model is left unchanged.

    Args:
        model: the model.
        x: (N, …) input. Only one row shows the batch axis of a layer with N tokens first.
        until: names of layers after which errors of the forward pass are ignored: of a network that takes one input
            size only (convolutions, flatten, linear), early layers run on crops too.
    """
    found: list[tuple[str, tuple[tuple[int, ...], int, int]]] = []
    kept: list[Tensor] = []  # so that no address is used twice

    def note(name: str, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            kept.append(output)
            found.append((name, (tuple(output.shape), output.data_ptr(), output._version)))

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in model.named_modules() if name]
    try:
        with guard(model), torch.no_grad():
            model(x)
    except Exception:
        if until is None or not found or not {name for name, _ in found}.issuperset(until):
            raise
    finally:
        for hook in hooks:
            hook.remove()
    runs = Counter(name for name, _ in found)
    maker: dict[tuple[tuple[int, ...], int, int], str] = {}
    for name, tensor in found:
        if runs[name] == 1:
            maker.setdefault(tensor, name)
    calls = {}
    for name, tensor in found:
        first = maker.get(tensor, name)
        shape, axis = tensor[0], _batch_axis(tensor[0], len(x))
        if axis == 1:
            shape = (shape[1], shape[0], *shape[2:])
        calls[name] = LayerCall(name, shape, runs[name], None if first == name else first, axis)
    return list(calls.values())


def _batch_axis(shape: tuple[int, ...], n_rows: int) -> int | None:
    try:
        return batch_axis(shape, n_rows) or 0
    except UnitError:
        return None


def _place(calls: list[LayerCall], layer: str) -> int:
    """Return a layer's position in the order of finishing; UnitError if it doesn't run once or returns no batch."""
    names = [call.name for call in calls]
    if layer not in names:
        raise UnitError(f"layer {layer} doesn't run in the model's forward pass, or doesn't return a tensor")
    call = calls[names.index(layer)]
    if call.runs > 1:
        raise UnitError(f"layer {layer} runs {call.runs} times in a pass; name a layer around it that runs once")
    if call.batch is None:
        raise UnitError(f"layer {layer} returns a tensor of shape {call.shape}, which has no batch axis; name another")
    return names.index(layer)


def spatial_layers(calls: list[LayerCall], before: str) -> list[str]:
    """Return the layers with positions that finish before the named one, each tensor once.

    Layers inside the named one, layers that run several times and layers that only return another's output (dropout,
    identity, containers) are left out.

    Raises:
        UnitError: if the named layer doesn't run once, or returns no batch.
    """
    return [
        call.name
        for call in calls[: _place(calls, before)]
        if call.spatial and call.runs == 1 and not call.copies and not call.name.startswith(f"{before}.")
    ]


def code_layer(calls: list[LayerCall], before: str) -> str:
    """Return the last layer with positions before the named one; the named one itself if there is none."""
    return next(reversed(spatial_layers(calls, before)), before)


def resolve(
    model: nn.Module, unit: Unit | str, code: Code | str | nn.Module | None, spec: InputSpec
) -> tuple[Unit, Code]:
    """Check a unit and a code in one forward pass of two gray images; return both with their layers by name.

    The default code is the last layer with positions before the unit, averaged over positions.

    Raises:
        TypeError: if the unit or the code is of another type.
        UnitError: if a layer isn't in the model, doesn't run once, or has no such channel.
    """
    code = Code.parse(layer_name(model, code) if isinstance(code, nn.Module) else code)
    (unit,), calls = _checked(model, [unit], [] if code is None else [layer_name(model, code.layer)], spec)
    if code is None:
        call = calls[_place(calls, code_layer(calls, unit.layer_name))]
        code = Code(call.name, channels="last" if is_channels_last(call.shape) else None)
    if code.read(_output(calls, code.layer)).ndim != 2:
        raise UnitError(f"the code of layer {code.layer} isn't (N, D)")
    return unit, code


def resolve_units(model: nn.Module, units: Sequence[Unit | str], spec: InputSpec) -> list[Unit]:
    """Check units as `resolve` does, in one forward pass; return them with their layers by name."""
    return _checked(model, units, [], spec)[0]


def _checked(
    model: nn.Module, units: Sequence[Unit | str], layers: list[str], spec: InputSpec
) -> tuple[list[Unit], list[LayerCall]]:
    """Return checked units, and the layers of a pass that runs at least theirs and those of ``layers``."""
    found = [replace(unit, layer=layer_name(model, unit.layer)) for unit in map(Unit.parse, units)]
    two = spec.gray().expand(2, -1, -1, -1)  # a tensor that doesn't grow with the batch, such as a weight, has no units
    calls = trace(model, spec.feed(model)(two), until=[*layers, *(unit.layer_name for unit in found)])
    for unit in found:
        unit.read(_output(calls, unit.layer_name))
    return found, calls


def _output(calls: list[LayerCall], layer: str) -> Tensor:
    """Return a meta tensor of the shape of a layer's output."""
    return torch.empty(calls[_place(calls, layer)].shape, device="meta")
