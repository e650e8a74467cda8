"""Integrated gradients of all facets at once.

Facets share the forward pass of every step. The first layer is affine, so that the mean over steps may be taken behind
it and goes back through it once, instead of once a step: of convolutions on pixels that is the dearest part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import capture
from captum_mfv.activations.layers import trace

__all__ = ["integrate"]

_ROWS = {"cpu": 2}  # inputs in one forward pass: few, so that their activations stay in the cache
_MANY = 50
_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def integrate(
    forward_func: nn.Module, x: Tensor, baselines: Tensor | float, n_steps: int = 50, rows: int | None = None
) -> Tensor | None:
    """Mean gradients of all outputs on the straight way from the baselines to the inputs (Gauss-Legendre).

    Args:
        forward_func: a module to (N, n_facets).
        x: (N, …) inputs.
        baselines: a number, or what broadcasts against the inputs.
        n_steps: points on the way.
        rows: inputs in one forward pass, at least N.

    Returns:
        (N, n_facets, …), or None where the first layer isn't affine or isn't the inputs' only way on.
    """
    start = torch.as_tensor(baselines).to(x).expand_as(x)
    first = trace(forward_func, x[:1].detach())[0]
    stem = forward_func.get_submodule(first.name)
    if (
        first.runs > 1
        or first.batch != 0
        or not isinstance(stem, _AFFINE)
        or not _straight(forward_func, first.name, start, x)
    ):
        return None
    points, weights = (torch.from_numpy(found).to(x) / 2 for found in np.polynomial.legendre.leggauss(n_steps))
    per_pass = max(1, (rows or _ROWS.get(x.device.type, _MANY)) // len(x))
    total: Tensor | None = None
    for alphas, shares in zip(torch.split(points + 0.5, per_pass), torch.split(weights, per_pass), strict=True):
        way = torch.stack([torch.lerp(start, x, alpha) for alpha in alphas.tolist()])
        found = _behind(forward_func, stem, way, shares)
        if found is None:
            return None
        total = found if total is None else total + found
    return None if total is None else _back(forward_func, first.name, x, total)


@torch.no_grad()
def _straight(forward_func: nn.Module, stem: str, start: Tensor, x: Tensor) -> bool:
    """Whether the first layer's outputs move straight as the inputs do: a model may bend its inputs before it."""
    with capture(forward_func, [stem]) as run:
        a, b, between = (run(rows[:1])[stem].double() for rows in (start, x, torch.lerp(start, x, 0.3)))
    return bool((torch.lerp(a, b, 0.3) - between).abs().max() <= 1e-3 * (b - a).abs().max())


@torch.enable_grad()
def _behind(forward_func: nn.Module, stem: nn.Module, way: Tensor, shares: Tensor) -> Tensor | None:
    """Gradients of all outputs to the first layer's, (n_facets, N, …), summed over the steps by their shares.

    The way is (n_steps, N, …); channels go last in memory, where convolutions are faster.
    """
    steps, n = way.shape[:2]
    rows = way.flatten(0, 1)
    rows = rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows
    with _cut(stem) as cut:
        outputs = forward_func(rows.requires_grad_())
    if len(cut) != 1 or torch.autograd.grad(outputs.sum(), rows, retain_graph=True, allow_unused=True)[0] is not None:
        return None
    by = shares.repeat_interleave(n)
    columns = [torch.autograd.grad(column, cut, by, retain_graph=True)[0] for column in outputs.unbind(1)]
    return torch.stack([column.reshape(steps, n, *column.shape[1:]).sum(0) for column in columns])


@contextmanager
def _cut(stem: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a layer's outputs begin the graph; the list gets them."""
    leaves: list[Tensor] = []

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # a ReLU in place may follow

    handle = stem.register_forward_hook(hook)
    try:
        yield leaves
    finally:
        handle.remove()


@torch.enable_grad()
def _back(forward_func: nn.Module, stem: str, x: Tensor, gradients: Tensor) -> Tensor:
    """Gradients to the first layer's outputs, (n_facets, N, …), as those to the inputs, (N, n_facets, …)."""
    x = x.detach().requires_grad_()
    with capture(forward_func, [stem]) as run:
        outputs = run(x)[stem]
    return torch.stack([torch.autograd.grad(outputs, x, part, retain_graph=True)[0] for part in gradients], dim=1)
