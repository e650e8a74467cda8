"""Layer outputs by forward hooks, with the batch first, and the guard that restores a model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_mfv.activations.containers import find_tensor, split_name, with_tensor
from captum_mfv.errors import UnitError

__all__ = ["Outputs", "batch_axis", "capture", "guard", "layer_name"]

Outputs = dict[str, Tensor]


class _Stop(Exception):
    """Ends a forward pass of one capture; captures may be nested.

    Each pass raises a new one: an exception keeps the frames that it came through, and so their tensors.
    """

    def __init__(self, run: object) -> None:
        super().__init__()
        self.run = run


class _Ambiguous(_Stop):
    """Ends a forward pass of one capture at an output whose shape does not show its batch axis."""


def batch_axis(shape: Sequence[int], n_rows: int) -> int | None:
    """Return which axis of an output holds the batch of ``n_rows`` rows.

    The axis is 0, or 1 for tokens first, (tokens, N, C); None if the shape doesn't show which.

    Raises:
        UnitError: if neither axis has N rows.
    """
    first = len(shape) > 0 and shape[0] == n_rows
    second = len(shape) == 3 and shape[1] == n_rows
    if not (first or second):
        raise UnitError(f"an output of shape {tuple(shape)} for a batch of {n_rows} has no batch axis")
    return None if first and second and n_rows > 1 else int(not first)


def layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    """Return the name of a layer, ``layer`` or ``layer[output]``.

    Raises:
        UnitError: if the model has no such layer; the message names the nearest ones.
    """
    names: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if isinstance(layer, nn.Module):
        for name, module in names.items():
            if module is layer:
                return name
        raise UnitError(f"the model has no layer that is this {type(layer).__name__}")
    wanted, _ = split_name(layer)
    if wanted in names:
        return layer
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.0)
    raise UnitError(f"the model has no layer {wanted!r}; the nearest are {', '.join(near)}")


@contextmanager
def guard(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and freeze the weights inside; restore every flag afterwards, also on errors."""
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
    """Yield a function from the model's inputs to the named layers' outputs, by name.

    Of a tuple, a list, a mapping or a dataclass, the output is the first tensor; ``layer[key]`` names another one.

    Outputs have the batch first: those of a token-first layer, (tokens, N, C), are returned as (N, tokens, C). If
    N equals the number of tokens, one more forward pass of a single row shows which axis is the batch.

    Later layers read copies of the outputs, so that an in-place ReLU after a layer doesn't change them and gradients
    of later layers reach them; a container is copied with its tensor replaced. Of a layer that runs several times, the
    first output is returned. With ``stop``, the forward pass ends after the last of the layers.

    Raises:
        UnitError: if a layer isn't in the model, didn't run, or didn't return that tensor or one with a batch axis.
    """
    run = _Run(model, [layer_name(model, layer) for layer in dict.fromkeys(layers)], stop)
    hooks = [model.get_submodule(split_name(name)[0]).register_forward_hook(run.keep(name)) for name in run.names]
    try:
        yield run
    finally:
        run.outputs.clear()
        for hook in hooks:
            hook.remove()


class _Run:
    """Forward passes of a model that return some layers' outputs, which the hooks of `keep` collect."""

    def __init__(self, model: nn.Module, names: list[str], stop: bool) -> None:
        self.model = model
        self.names = names
        self.stop = stop
        self.outputs: Outputs = {}
        self.axes: dict[str, int] = {}  # batch axes that an output's shape has shown
        self.n_rows: int | None = None

    def __call__(self, *inputs: Any) -> Outputs:
        """Return the outputs by name, without a reference to them."""
        try:
            return self._pass(inputs)
        except _Ambiguous as ambiguous:
            if ambiguous.run is not self:
                raise
        batched = [isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.n_rows for value in inputs]
        with torch.no_grad():
            self._pass(tuple(value[:1] if rows else value for value, rows in zip(inputs, batched, strict=True)))
        return self._pass(inputs)

    def _pass(self, inputs: tuple[object, ...]) -> Outputs:
        self.outputs.clear()
        batch = inputs[0] if inputs else None
        self.n_rows = batch.shape[0] if isinstance(batch, Tensor) and batch.ndim else None
        try:
            self.model(*inputs)
        except _Stop as stop:
            if stop.run is not self or isinstance(stop, _Ambiguous):
                raise
        missing = [name for name in self.names if name not in self.outputs]
        if missing:
            raise UnitError(f"layer {missing[0]} doesn't run in the model's forward pass")
        found = dict(self.outputs)
        self.outputs.clear()
        return found

    def keep(self, name: str) -> Callable[[nn.Module, object, object], Any]:
        """Return a forward hook that keeps a layer's output, the batch first, and returns a copy to later layers."""
        wanted = self.model.get_submodule(split_name(name)[0])

        def hook(module: nn.Module, args: object, output: object) -> Any:
            if module is not wanted:  # DataParallel's replicas share their hooks
                return None
            key, tensor = find_tensor(name, output)
            second = self._axis(name, tensor) == 1
            kept = tensor.transpose(0, 1) if second else tensor
            self.outputs.setdefault(name, kept)
            if self.stop and len(self.outputs) == len(self.names):
                raise _Stop(self)
            return with_tensor(output, key, kept.transpose(0, 1).clone() if second else kept.clone())

        return hook

    def _axis(self, name: str, output: Tensor) -> int:
        """Return the batch axis of a layer's output."""
        if self.n_rows is None:
            return 0
        try:
            axis = batch_axis(output.shape, self.n_rows)
        except UnitError as error:
            raise UnitError(f"layer {name}: {error}, so it has no units; name a layer around it") from error
        if axis is None:
            if name not in self.axes:
                raise _Ambiguous(self)
            return self.axes[name]
        if self.n_rows == 1 and output.ndim > 1 and output.shape[1] == 1:
            self.axes.setdefault(name, axis)  # one row of one token shows nothing
        else:
            self.axes[name] = axis
        return axis
