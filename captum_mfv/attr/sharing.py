"""Forward passes that all facets share: each input runs once, and is followed by one backward pass per facet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captum_mfv.activations.capture import capture
from captum_mfv.activations.layers import trace

__all__ = ["integrate", "repeat_rows", "shared"]

_PER_ROW = ("baselines", "feature_mask", "additional_forward_args")  # arguments that may have a row per input
_ROWS_ON_CPU, _ROWS = 2, 50  # inputs per forward pass; few on a CPU, so that their activations stay in its cache
_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def repeat_rows(inputs: Any, options: Mapping[str, Any], n_copies: int) -> tuple[Any, dict[str, Any]]:
    """Repeat each row of the inputs, and of the arguments that have a row per input, n_copies times in succession."""
    rows = len(inputs if isinstance(inputs, Tensor) else inputs[0])

    def repeat(value: Any, shared: bool = False) -> Any:
        if isinstance(value, tuple):
            return tuple(repeat(part, shared) for part in value)
        if not isinstance(value, Tensor) or not value.ndim or len(value) != rows or (shared and rows == 1):
            return value
        return value.repeat_interleave(n_copies, 0)

    aligned = {name: repeat(options[name], name != "additional_forward_args") for name in _PER_ROW if name in options}
    return repeat(inputs), {**options, **aligned}


def shared(forward_func: Callable[..., Tensor], n_copies: int) -> Callable[..., Tensor]:
    """Return a forward function for rows repeated n_copies times in succession; it runs once per distinct row."""

    def forward(*inputs: Any) -> Tensor:
        outputs: Tensor = _Copies.apply(forward_func, n_copies, *inputs)
        return outputs

    return forward


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
        """Gradient of each copy, through the graph that all copies share."""
        needed = ctx.needs_input_grad[2:]
        leaves = [row for row, need in zip(ctx.rows, needed, strict=True) if need]
        found = [
            torch.autograd.grad(ctx.outputs, leaves, copy, retain_graph=True, materialize_grads=True)
            for copy in gradient.reshape(-1, ctx.n_copies, *gradient.shape[1:]).unbind(1)
        ]
        rows = iter([torch.stack(parts, 1).flatten(0, 1) for parts in zip(*found, strict=True)])
        return None, None, *(next(rows) if need else None for need in needed)


def integrate(
    forward_func: nn.Module, x: Tensor, baselines: Tensor | float, n_steps: int = 50, rows: int | None = None
) -> Tensor | None:
    """Return the mean gradients of all outputs along the line from the baselines to the inputs (Gauss-Legendre).

    All facets share the forward pass of every step. If the first layer is affine, gradients can be averaged over the
    steps behind that layer and pass back through it once: on pixels its backward pass is the most expensive. A forward
    pass has ``rows`` inputs, at least N. The result is (N, n_facets, …), or None if the first layer isn't affine or
    the inputs reach the output around that layer.
    """
    start = torch.as_tensor(baselines).to(x).expand_as(x)
    first = trace(forward_func, x[:1].detach())[0]
    stem = forward_func.get_submodule(first.name)
    ambiguous = first.runs > 1 or first.batch != 0
    if ambiguous or not isinstance(stem, _AFFINE) or not _straight(forward_func, first.name, start, x):
        return None
    points, weights = (torch.from_numpy(found) / 2 for found in np.polynomial.legendre.leggauss(n_steps))
    per_pass = max(1, (rows or (_ROWS_ON_CPU if x.device.type == "cpu" else _ROWS)) // len(x))
    total: Tensor | float = 0.0
    for alphas, shares in zip(torch.split(points + 0.5, per_pass), torch.split(weights, per_pass), strict=True):
        line = torch.stack([torch.lerp(start, x, alpha) for alpha in alphas.tolist()])
        found = _behind(forward_func, stem, line, shares)
        if found is None:
            return None
        total = total + found
    return _back(forward_func, first.name, x, total) if isinstance(total, Tensor) else None


@torch.no_grad()
def _straight(forward_func: nn.Module, stem: str, start: Tensor, x: Tensor) -> bool:
    """Check that the first layer's output is linear along the line: a model may transform inputs before that layer."""
    with capture(forward_func, [stem]) as run:
        outputs = [run(rows[:1])[stem] for rows in (start, x, torch.lerp(start, x, 0.3))]
    rounding = 4 * torch.finfo(outputs[0].dtype).eps * max(output.abs().max().item() for output in outputs)
    a, b, between = (output.double() for output in outputs)
    return bool((torch.lerp(a, b, 0.3) - between).abs().max() <= 1e-3 * (b - a).abs().max() + rounding)


@torch.enable_grad()
def _behind(forward_func: nn.Module, stem: nn.Module, line: Tensor, shares: Tensor) -> Tensor | None:
    """Return gradients of all outputs at the first layer's output, (n_facets, N, …), the weighted sum over the steps.

    The line is (n_steps, N, …).
    """
    steps, n = line.shape[:2]
    rows = line.flatten(0, 1)  # convolutions are faster with channels last
    rows = rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows
    cut: list[Tensor] = []  # the stem's outputs, at which the graph starts

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        cut.append(output.detach().requires_grad_())
        return cut[-1].clone()  # a ReLU in place may follow

    with stem.register_forward_hook(hook):
        outputs = forward_func(rows.requires_grad_())
    if len(cut) != 1 or torch.autograd.grad(outputs.sum(), rows, retain_graph=True, allow_unused=True)[0] is not None:
        return None
    by = shares.to(outputs).repeat_interleave(n)
    columns = [torch.autograd.grad(column, cut, by, retain_graph=True)[0] for column in outputs.unbind(1)]
    return torch.stack([column.to(outputs.dtype).reshape(steps, n, *column.shape[1:]).sum(0) for column in columns])


@torch.enable_grad()
def _back(forward_func: nn.Module, stem: str, x: Tensor, gradients: Tensor) -> Tensor:
    """Pass gradients at the first layer's output, (n_facets, N, …), back to the inputs, (N, n_facets, …)."""
    x = x.detach().requires_grad_()
    with capture(forward_func, [stem]) as run:
        outputs = run(x)[stem]
    found = [torch.autograd.grad(outputs, x, part, retain_graph=True)[0] for part in gradients.to(outputs.dtype)]
    return torch.stack(found, dim=1)
