"""Receptive fields: the pixels that a position of a layer's map depends on, and crops that contain them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import capture, guard
from captum_mfv.images import InputSpec
from captum_mfv.units import channels_second

__all__ = ["Axis", "Field", "receptive_field"]

_DRAWS = 8  # a ReLU passes a gradient in about half of them


@dataclass(frozen=True)
class Axis:
    """A receptive field along height or width, in pixels of the model's input."""

    size: int
    stride: int  # offset between the fields of neighboring positions
    start: int  # first pixel of the field of position 0; below zero for a padded layer

    @property
    def side(self) -> int:
        """Side of a crop that starts at a multiple of the stride and contains a complete field."""
        return self.size + self.start % self.stride

    def corner(self, position: int, last: int) -> int:
        """Return the first pixel of the crop for a position: a multiple of the stride, from 0 to ``last``."""
        first = (self.start + position * self.stride) // self.stride * self.stride
        return min(max(first, 0), last)


@dataclass(frozen=True)
class Field:
    """The receptive field of a layer's positions, and the crops of an input of side ``image_size`` that contain it.

    A crop starts at a multiple of the layer's stride and lies inside the image; a field that extends beyond the image
    is cut off by the crop's border as by the image's. So a position has the same activation in its crop as in the
    image. Crops keep the scale of the input; upscaling would change the stimulus.
    """

    vertical: Axis
    horizontal: Axis
    image_size: int

    @property
    def crop_size(self) -> int:
        """Side of the crops."""
        stride = math.lcm(self.vertical.stride, self.horizontal.stride)
        spare = self.image_size - max(self.vertical.side, self.horizontal.side)
        return self.image_size - spare // stride * stride

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return the top and left pixel of the crop for a position of the map."""
        last = self.image_size - self.crop_size
        return self.vertical.corner(row, last), self.horizontal.corner(column, last)


def receptive_field(model: nn.Module, layer: str, spec: InputSpec) -> Field | None:
    """Measure the receptive field of a layer's positions by gradients with respect to the input.

    The gradients of two neighboring positions, over a few random images and all channels, show the field and its
    offset. Kernel sizes are not used, since architectures differ.

    Returns:
        The field; None if it is the whole image or differs between positions, or if the layer returns no map.

    Raises:
        UnitError: if the layer isn't in the model or doesn't run.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_DRAWS, spec.channels, spec.size, spec.size, generator=generator).requires_grad_()
    with guard(model), torch.enable_grad(), capture(model, [layer]) as run:
        maps = channels_second(run(spec.feed(model)(images))[layer])
        if maps.ndim != 4 or min(maps.shape[2:]) < 3:
            return None
        row, column = maps.shape[2] // 2, maps.shape[3] // 2
        weights = torch.randn(maps.shape[:2], generator=generator).to(maps)
        boxes = [
            _box(torch.autograd.grad((weights * maps[:, :, row - k, column - k]).sum(), images, retain_graph=True)[0])
            for k in (0, 1)
        ]
    axes = [_axis(here, before, place, spec.size) for here, before, place in zip(*boxes, (row, column), strict=True)]
    if axes[0] is None or axes[1] is None:
        return None
    field = Field(axes[0], axes[1], spec.size)
    return field if field.crop_size < spec.size else None


def _box(gradient: Tensor) -> list[tuple[int, int]]:
    """Return the first and last row, and column, with a gradient (N, C, H, W) other than zero; (0, -1) for none."""
    reached = (gradient != 0).any(1).any(0)
    places = [reached.any(axis).nonzero().flatten().tolist() or [0, -1] for axis in (1, 0)]
    return [(found[0], found[-1]) for found in places]


def _axis(here: tuple[int, int], before: tuple[int, int], position: int, whole: int) -> Axis | None:
    """Return the field along an axis from the pixels of two neighboring positions; None if they don't show it."""
    stride = here[0] - before[0]
    same_size = here[1] - before[1] == stride
    if stride < 1 or not same_size or before[0] == 0 or here[1] == whole - 1:
        return None
    return Axis(here[1] - here[0] + 1, stride, here[0] - position * stride)
