"""Activation maps of a layer, sorted and rearranged, for the objective that matches distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_mfv.units import channels_second

__all__ = ["activation_maps", "rearranged", "sorted_activations"]

_MAX_SIDE = 14  # maps are averaged down to this side before they are sorted


def activation_maps(output: Tensor) -> Tensor:
    """Return (N, C, P) or (N, C, H, W) float activations of each channel; large maps are averaged down."""
    maps = channels_second(output).float()
    if maps.ndim == 4 and (factor := -(-max(maps.shape[2:]) // _MAX_SIDE)) > 1:
        maps = _AveragedDown.apply(maps, factor)
    return maps if maps.ndim > 2 else maps[:, :, None]


class _AveragedDown(torch.autograd.Function):
    """Average pooling whose gradient keeps the maps' memory layout; PyTorch's own copies it twice on a CPU."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, factor: int) -> Tensor:
        ctx.factor, ctx.sides = factor, maps.shape[2:]
        ctx.last = maps.is_contiguous(memory_format=torch.channels_last)
        return torch.nn.functional.avg_pool2d(maps, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        each = (gradients[0] / ctx.factor**2).contiguous(memory_format=layout)
        spread = torch.nn.functional.interpolate(each, scale_factor=ctx.factor, mode="nearest")
        below, right = (side - have for side, have in zip(ctx.sides, spread.shape[2:], strict=True))
        return torch.nn.functional.pad(spread, (0, right, 0, below)), None


def sorted_activations(output: Tensor) -> Tensor:
    """Return (N, C, P) float activations of each channel in ascending order, without gradient."""
    rows = activation_maps(output).detach().flatten(2)
    return rows.gather(2, _order(rows))


def rearranged(values: Tensor, maps: Tensor) -> Tensor:
    """Put sorted values into each map in the map's own order, the largest where the map is largest.

    The square distance of sorted activations is the distance of the maps to the result, so no gradient has to
    go through a sort.

    Args:
        values: (N, C, P) in ascending order; resampled if P is not the number of the maps' positions.
        maps: output of `activation_maps`.
    """
    rows = maps.detach().flatten(2)
    n_positions = rows.shape[2]
    if values.shape[2] != n_positions:
        values = torch.nn.functional.interpolate(values, n_positions, mode="linear", align_corners=True)
    return torch.empty_like(rows).scatter_(2, _order(rows), values.expand_as(rows)).view(maps.shape)


def _order(rows: Tensor) -> Tensor:
    """Return positions in ascending order of (N, C, P) values, to 15 bits of precision on a CPU."""
    n_positions = rows.shape[2]
    if rows.device.type != "cpu" or n_positions > 256:
        return rows.argsort(dim=2)
    # A CPU sorts numbers several times faster than numbers with their positions. Floats compare as their bits do,
    # if the bits below the sign of negative ones are inverted; the position replaces the last eight bits.
    bits = rows.contiguous().view(torch.int32)
    keys = (bits ^ (bits >> 31).bitwise_and_(0x7FFFFFFF)).bitwise_and_(~255)
    keys.bitwise_or_(torch.arange(n_positions, dtype=torch.int32))
    return torch.from_numpy(np.sort(keys.numpy(), axis=2)).bitwise_and_(255).long()
