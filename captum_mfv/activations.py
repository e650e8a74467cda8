"""The one capture of layer outputs, and the one guard that leaves a model as it was."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_mfv.errors import UnitError
from captum_mfv.units import channels_second, is_channels_last

__all__ = ["LayerCall", "capture", "code_layer", "guard", "layer_name", "place", "spatial_layers", "trace"]

Outputs = dict[str, Tensor]


class _Stop(Exception):
    """Ends a forward pass once every layer that one capture wants has been seen; captures may be nested.

    A new one each time: an exception keeps the frames it came through, and so their tensors, as long as it lives.
    """

    def __init__(self, run: object) -> None:
        super().__init__()
        self.run = run


def layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    """The dotted name of a layer that is given by name or as the module itself.

    Raises:
        UnitError: if the model has no such layer; the message names the nearest ones.
    """
    names: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if isinstance(layer, nn.Module):
        for name, module in names.items():
            if module is layer:
                return name
        raise UnitError(f"the model has no layer that is this {type(layer).__name__}")
    if layer in names:
        return layer
    near = difflib.get_close_matches(layer, names, n=3, cutoff=0.0)
    raise UnitError(f"the model has no layer {layer!r}; the nearest are {', '.join(near)}")


@contextmanager
def guard(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen weights inside; every flag as it was afterwards, errors included."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for weight, _ in flags:
            weight.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)


@contextmanager
def capture(model: nn.Module, layers: Iterable[str], *, stop: bool = True) -> Iterator[Callable[..., Outputs]]:
    """A function from the model's inputs to the named layers' outputs, by name.

    The model goes on with copies of the outputs, so that an in-place ReLU after a layer doesn't change them
    and gradients of later layers reach them. With ``stop``, the forward pass ends after the last layer that
    is wanted. A layer that runs several times gives its first output: `trace` tells which do.

    Raises:
        UnitError: if a layer isn't in the model, didn't run, or returned something else than a tensor.
    """
    run = _Run(model, [layer_name(model, layer) for layer in dict.fromkeys(layers)], stop)
    hooks = [model.get_submodule(name).register_forward_hook(run.keep(name)) for name in run.names]
    try:
        yield run
    finally:
        run.outputs.clear()
        for hook in hooks:
            hook.remove()


class _Run:
    """A model's run that gives some layers' outputs; the hooks that `keep` makes fill them in."""

    def __init__(self, model: nn.Module, names: list[str], stop: bool) -> None:
        self.model = model
        self.names = names
        self.stop = stop
        self.outputs: Outputs = {}

    def __call__(self, *inputs: object) -> Outputs:
        """The outputs by name; nothing of them is kept."""
        self.outputs.clear()
        try:
            self.model(*inputs)
        except _Stop as stop:
            if stop.run is not self:
                raise
        missing = [name for name in self.names if name not in self.outputs]
        if missing:
            raise UnitError(f"layer {missing[0]} doesn't run in the model's forward pass")
        found = dict(self.outputs)
        self.outputs.clear()
        return found

    def keep(self, name: str) -> Callable[[nn.Module, object, object], Tensor | None]:
        """A forward hook that keeps a layer's output, and hands on a copy."""
        wanted = self.model.get_submodule(name)

        def hook(module: nn.Module, args: object, output: object) -> Tensor | None:
            if module is not wanted:  # DataParallel's replicas share their hooks
                return None
            if not isinstance(output, Tensor):
                raise UnitError(f"layer {name} returns a {type(output).__name__}; name one that returns a tensor")
            self.outputs.setdefault(name, output)
            if self.stop and len(self.outputs) == len(self.names):
                raise _Stop(self)
            return output.clone()

        return hook


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
