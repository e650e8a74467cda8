"""Capture layer outputs; the only place that registers hooks for them, and the guard that restores a model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from captum_mfv.errors import UnitError

__all__ = ["Outputs", "capture", "guard", "layer_name"]


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
