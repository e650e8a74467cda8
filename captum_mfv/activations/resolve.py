"""Check units and codes against a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.layers import LayerCall, code_layer, place, trace
from captum_mfv.errors import UnitError
from captum_mfv.images import InputSpec
from captum_mfv.units import Code, Unit, is_channels_last

__all__ = ["resolve", "resolve_units"]


def resolve(model: nn.Module, unit: Unit, code: Code | str | None, spec: InputSpec) -> tuple[Unit, Code]:
    """Unit and code with their layers by name, checked against one forward pass of a grey image.

    Raises:
        UnitError: if a layer isn't in the model, doesn't run once, or has no such channel.
    """
    grey = spec.feed(model)(spec.grey())
    calls = trace(model, grey)
    (unit,) = resolve_units(model, [unit], grey, calls)
    if isinstance(code, str):
        code = Code(layer_name(model, code))
    elif code is None:
        layer = calls[place(calls, code_layer(calls, unit.layer_name))]
        code = Code(layer.name, channels="last" if is_channels_last(layer.shape) else None)
    place(calls, layer_name(model, code.layer))  # refuses a layer that runs never or several times
    with guard(model), torch.no_grad(), capture(model, [code.layer]) as run:
        if code.read(run(grey)[code.layer]).ndim != 2:
            raise UnitError(f"the code of layer {code.layer} isn't (N, D)")
    return unit, code


def resolve_units(model: nn.Module, units: Sequence[Unit], grey: Tensor, calls: list[LayerCall]) -> list[Unit]:
    """Return units with their layers by name; raise UnitError if the model lacks one of them."""
    units = [replace(unit, layer=layer_name(model, unit.layer)) for unit in units]
    layers = list(dict.fromkeys(unit.layer_name for unit in units))
    for layer in layers:
        place(calls, layer)
    with guard(model), torch.no_grad(), capture(model, layers) as run:
        outputs = run(grey)
    for unit in units:
        unit.read(outputs[unit.layer_name])
    return units
