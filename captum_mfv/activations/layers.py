"""The layers of a model in the order in which they run, and their output shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import guard
from captum_mfv.errors import UnitError
from captum_mfv.units import channels_second, is_channels_last

__all__ = ["LayerCall", "code_layer", "place", "spatial_layers", "trace"]


@dataclass(frozen=True)
class LayerCall:
    """A layer's run in one forward pass.

    Args:
        name: dotted name of the layer.
        shape: the output's shape, the batch first.
        runs: how often the layer runs in the pass.
        copies: the name of the layer that made this very tensor, if this one only hands it on.
    """

    name: str
    shape: tuple[int, ...]
    runs: int = 1
    copies: str | None = None

    @property
    def n_units(self) -> int | None:
        """How many channels the output has, or None if it isn't of a form that has channels."""
        if len(self.shape) not in (2, 3, 4):
            return None
        return channels_second(torch.empty(self.shape, device="meta")).shape[1]

    @property
    def spatial(self) -> bool:
        """Whether the output has several positions: a map, channels first or last, or tokens (N, tokens, C)."""
        if len(self.shape) not in (3, 4):
            return False
        tokens_or_last = len(self.shape) == 3 or is_channels_last(self.shape)
        return math.prod(self.shape[1:-1] if tokens_or_last else self.shape[2:]) > 1


def trace(model: nn.Module, x: Tensor) -> list[LayerCall]:
    """Every layer that returns a tensor, in the order in which they finish, for one input."""
    seen: list[tuple[str, tuple[int, ...], tuple[int, int]]] = []
    kept: list[Tensor] = []  # so that no address is used twice

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                kept.append(output)
                seen.append((name, tuple(output.shape), (output.data_ptr(), output._version)))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with guard(model), torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    runs = Counter(name for name, _, _ in seen)
    maker: dict[tuple[object, ...], str] = {}
    for name, shape, tensor in seen:
        if runs[name] == 1:
            maker.setdefault((shape, *tensor), name)
    calls = {}
    for name, shape, tensor in seen:
        first = maker.get((shape, *tensor), name)
        calls[name] = LayerCall(name, shape, runs[name], None if first == name else first)
    return list(calls.values())


def place(calls: list[LayerCall], layer: str) -> int:
    """Where a layer stands in the order of finishing.

    Raises:
        UnitError: if the layer doesn't run, or runs several times, so that it has several outputs.
    """
    names = [call.name for call in calls]
    if layer not in names:
        raise UnitError(f"layer {layer} doesn't run in the model's forward pass, or doesn't return a tensor")
    runs = calls[names.index(layer)].runs
    if runs > 1:
        raise UnitError(
            f"layer {layer} runs {runs} times in a forward pass, so its output is ambiguous; "
            f"name the layer around it, or one that runs once"
        )
    return names.index(layer)


def spatial_layers(calls: list[LayerCall], before: str) -> list[str]:
    """The layers with positions that finish before the named one, each tensor once.

    Layers inside the named one, layers that run several times and those that only hand on another's
    output (dropout, identity, containers) are left out.

    Raises:
        UnitError: if the named layer doesn't run, or runs several times, so that it has several outputs.
    """
    return [
        call.name
        for call in calls[: place(calls, before)]
        if call.spatial and call.runs == 1 and not call.copies and not call.name.startswith(f"{before}.")
    ]


def code_layer(calls: list[LayerCall], before: str) -> str:
    """The last layer with positions before the named one; the named one itself if there is none."""
    return next(reversed(spatial_layers(calls, before)), before)
