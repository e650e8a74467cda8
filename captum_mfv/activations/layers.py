"""The layers of a model in the order in which they run, and their output shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import batch_axis, guard
from captum_mfv.errors import UnitError
from captum_mfv.units import channels_second, is_channels_last

__all__ = ["LayerCall", "code_layer", "place", "spatial_layers", "trace"]


@dataclass(frozen=True)
class LayerCall:
    """A layer's run in one forward pass.

    Args:
        name: dotted name of the layer.
        shape: the output's shape, with the batch first where the output has a batch axis.
        runs: how often the layer runs in the pass.
        copies: the name of the layer that computed this very tensor, if this layer only returns it.
        batch: the output's batch axis: 0, 1 for tokens first (tokens, N, C), or None if it has none.
    """

    name: str
    shape: tuple[int, ...]
    runs: int = 1
    copies: str | None = None
    batch: int | None = 0

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
    """Trace every layer that returns a tensor, in the order in which the layers finish, for one input.

    Args:
        model: the model; left as it was.
        x: (N, …) input. Only one row shows the batch axis of a layer with N tokens first.
        until: names of layers. The forward pass may fail once they have run: a network that takes one input size
            only (convolutions, flatten, linear) has early layers that run on crops too.

    Raises:
        Exception: any error of the forward pass, or with ``until``, one before those layers have run.
    """
    calls = _Calls()
    hooks = [module.register_forward_hook(calls.note(name)) for name, module in model.named_modules() if name]
    try:
        with guard(model), torch.no_grad():
            model(x)
    except Exception:
        if until is None or not calls.include(until):
            raise
    finally:
        for hook in hooks:
            hook.remove()
    return calls.layers(len(x))


class _Calls:
    """Outputs of layers in the order in which the layers finish."""

    def __init__(self) -> None:
        self._found: list[tuple[str, tuple[int, ...], tuple[int, int]]] = []
        self._kept: list[Tensor] = []  # so that no address is used twice

    def note(self, name: str) -> Callable[[nn.Module, object, object], None]:
        """Return a forward hook that notes a layer's output."""

        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                self._kept.append(output)
                self._found.append((name, tuple(output.shape), (output.data_ptr(), output._version)))

        return hook

    def include(self, names: Collection[str]) -> bool:
        """Whether each of the named layers has run, and any layer at all."""
        return bool(self._found) and {name for name, _, _ in self._found}.issuperset(names)

    def layers(self, n_rows: int) -> list[LayerCall]:
        """Return each layer once, for an input of some rows."""
        runs = Counter(name for name, _, _ in self._found)
        maker: dict[tuple[object, ...], str] = {}
        for name, shape, tensor in self._found:
            if runs[name] == 1:
                maker.setdefault((shape, *tensor), name)
        calls = {}
        for name, shape, tensor in self._found:
            first = maker.get((shape, *tensor), name)
            batch_first, axis = _batch_first(shape, n_rows)
            calls[name] = LayerCall(name, batch_first, runs[name], None if first == name else first, axis)
        return list(calls.values())


def _batch_first(shape: tuple[int, ...], n_rows: int) -> tuple[tuple[int, ...], int | None]:
    """Return an output's shape with the batch first, and the batch axis."""
    try:
        axis = batch_axis(shape, n_rows) or 0
    except UnitError:
        return shape, None
    return ((shape[1], shape[0], *shape[2:]), 1) if axis else (shape, 0)


def place(calls: list[LayerCall], layer: str) -> int:
    """Return a layer's position in the order of finishing.

    Raises:
        UnitError: if the layer doesn't run, runs several times, so that it has several outputs, or returns no batch.
    """
    names = [call.name for call in calls]
    if layer not in names:
        raise UnitError(f"layer {layer} doesn't run in the model's forward pass, or doesn't return a tensor")
    call = calls[names.index(layer)]
    if call.runs > 1:
        raise UnitError(
            f"layer {layer} runs {call.runs} times in a forward pass, so its output is ambiguous; "
            f"name the layer around it, or one that runs once"
        )
    if call.batch is None:
        raise UnitError(
            f"layer {layer} returns a tensor of shape {call.shape} that has no batch axis, so it has no units; "
            f"name a layer around it"
        )
    return names.index(layer)


def spatial_layers(calls: list[LayerCall], before: str) -> list[str]:
    """Return the layers with positions that finish before the named one, each tensor once.

    Layers inside the named one, layers that run several times and layers that only return another's output (dropout,
    identity, containers) are left out.

    Raises:
        UnitError: as `place` does, for the named layer.
    """
    return [
        call.name
        for call in calls[: place(calls, before)]
        if call.spatial and call.runs == 1 and not call.copies and not call.name.startswith(f"{before}.")
    ]


def code_layer(calls: list[LayerCall], before: str) -> str:
    """Return the last layer with positions before the named one; the named one itself if there is none."""
    return next(reversed(spatial_layers(calls, before)), before)
