"""Units and codes checked against a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from captum_mfv.activations.capture import layer_name
from captum_mfv.activations.layers import LayerCall, code_layer, place, trace
from captum_mfv.errors import UnitError
from captum_mfv.images import InputSpec
from captum_mfv.units import Code, Unit, is_channels_last

__all__ = ["resolve", "resolve_units"]

_ROWS = 2  # a tensor that does not grow with the batch, such as a position embedding, has no units


def resolve(
    model: nn.Module, unit: Unit | str, code: Code | str | nn.Module | None, spec: InputSpec
) -> tuple[Unit, Code]:
    """Check a unit and a code in one forward pass of two gray images; return both with their layers by name.

    Args:
        model: the model; left as it was.
        unit: the unit.
        code: the code; None: the last layer with positions before the unit, averaged over positions.
        spec: preprocessing of the model's input.

    Raises:
        TypeError: if the unit or the code is of another type.
        UnitError: if a layer isn't in the model, doesn't run once, or has no such channel.
    """
    unit = _named(model, Unit.of(unit))
    code = Code.of(layer_name(model, code) if isinstance(code, nn.Module) else code)
    if code is not None:
        layer_name(model, code.layer)  # raises an error that names the nearest layers
    calls = _trace(model, [unit.layer_name] if code is None else [unit.layer_name, code.layer], spec)
    _check(unit, calls)
    if code is None:
        call = calls[place(calls, code_layer(calls, unit.layer_name))]
        code = Code(call.name, channels="last" if is_channels_last(call.shape) else None)
    if code.read(_output(calls, code.layer)).ndim != 2:
        raise UnitError(f"the code of layer {code.layer} isn't (N, D)")
    return unit, code


def resolve_units(model: nn.Module, units: Sequence[Unit | str], spec: InputSpec) -> list[Unit]:
    """Check units in one forward pass of two gray images; return them with their layers by name.

    Raises:
        TypeError: if a unit is of another type.
        UnitError: if the model lacks one of the units.
    """
    found = [_named(model, Unit.of(unit)) for unit in units]
    calls = _trace(model, [unit.layer_name for unit in found], spec)
    for unit in found:
        _check(unit, calls)
    return found


def _named(model: nn.Module, unit: Unit) -> Unit:
    return replace(unit, layer=layer_name(model, unit.layer))


def _trace(model: nn.Module, layers: Sequence[str], spec: InputSpec) -> list[LayerCall]:
    return trace(model, spec.feed(model)(spec.gray().expand(_ROWS, -1, -1, -1)), until=layers)


def _check(unit: Unit, calls: list[LayerCall]) -> None:
    unit.read(_output(calls, unit.layer_name))


def _output(calls: list[LayerCall], layer: str) -> torch.Tensor:
    """Return a tensor of the shape of a layer's output, without numbers."""
    return torch.empty(calls[place(calls, layer)].shape, device="meta")
