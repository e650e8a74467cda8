"""One forward pass for several targets: rows that come in copies run once, and each copy gets its own gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Shared", "repeat_rows"]

_PER_ROW = ("baselines", "feature_mask", "additional_forward_args")  # arguments that may have a row per input


def repeat_rows(inputs: Any, options: Mapping[str, Any], n_copies: int) -> tuple[Any, dict[str, Any]]:
    """Inputs, and the arguments of a method that go with them, with every row n_copies times in succession.

    Args:
        inputs: a tensor, (N, …), or a tuple of such.
        options: a method's arguments; baselines, masks and forward arguments of N rows are repeated.
        n_copies: how often.
    """
    first = inputs if isinstance(inputs, Tensor) else inputs[0]
    rows = len(first)

    def repeat(value: Any, shared: bool) -> Any:
        if isinstance(value, tuple):
            return tuple(repeat(part, shared) for part in value)
        if not isinstance(value, Tensor) or not value.ndim or len(value) != rows or (shared and rows == 1):
            return value
        return value.repeat_interleave(n_copies, 0)

    aligned = {
        name: repeat(value, shared=name != "additional_forward_args") if name in _PER_ROW else value
        for name, value in options.items()
    }
    return repeat(inputs, shared=False), aligned


class Shared:
    """A forward function for rows that come n_copies times in succession: it runs once for each of them.

    Args:
        forward_func: from inputs, (N, …), to outputs, (N, n_outputs).
        n_copies: how often every row comes.
    """

    def __init__(self, forward_func: Callable[..., Tensor], n_copies: int) -> None:
        self.forward_func = forward_func
        self.n_copies = n_copies

    def __call__(self, *inputs: Any) -> Tensor:
        """Outputs, (N · n_copies, n_outputs), for inputs of as many rows."""
        outputs: Tensor = _Copies.apply(self.forward_func, self.n_copies, *inputs)
        return outputs


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward_func: Callable[..., Tensor], n_copies: int, *inputs: Any) -> Tensor:
        n_rows = len(inputs[0])
        needed = ctx.needs_input_grad[2:]
        with torch.set_grad_enabled(any(needed)):
            rows = [
                value[::n_copies].detach().requires_grad_(need)
                if isinstance(value, Tensor) and value.ndim and len(value) == n_rows
                else value
                for value, need in zip(inputs, needed, strict=True)
            ]
            outputs = forward_func(*rows)
        ctx.n_copies, ctx.rows, ctx.outputs = n_copies, rows, outputs
        return outputs.detach().repeat_interleave(n_copies, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Each copy's gradient by itself, through the one graph."""
        needed = ctx.needs_input_grad[2:]
        leaves = [row for row, need in zip(ctx.rows, needed, strict=True) if need]
        found = [
            torch.autograd.grad(ctx.outputs, leaves, copy, retain_graph=True, materialize_grads=True)
            for copy in gradient.reshape(-1, ctx.n_copies, *gradient.shape[1:]).unbind(1)
        ]
        whole = iter([torch.stack(parts, 1).flatten(0, 1) for parts in zip(*found, strict=True)])
        return None, None, *(next(whole) if need else None for need in needed)
