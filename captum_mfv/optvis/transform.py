"""Transforms that Lucent lacks: seeded, drawn anew for each image of the batch, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from captum_mfv.errors import ImageError

__all__ = ["Affine", "CenterCrop", "affine", "center_crop"]


Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]
"""One for the batch, or one for each of its images."""


def _drawn(draw: Callable[..., Tensor], n_images: int, n_draws: int, generators: Generators) -> Tensor:
    """(n_images, n_draws) of `torch.rand` or `torch.randn`."""
    if isinstance(generators, torch.Generator):
        return draw(n_images, n_draws, generator=generators)
    return torch.stack([draw(n_draws, generator=generator) for generator in generators])


class CenterCrop:
    """A window near the middle; made by `center_crop`. The last draw stays in ``offsets``."""

    def __init__(self, size: int, window: float, generator: Generators) -> None:
        self.size = size
        self.window = window
        self.generator = generator
        self.offsets: list[tuple[int, int]] = []

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, size, size)."""
        rest = torch.tensor(images.shape[-2:]) - self.size
        if rest.min() < 0:
            raise ImageError(f"images of {tuple(images.shape[-2:])} are smaller than the crop's {self.size} pixels")
        drawn = _drawn(torch.randn, len(images), 2, self.generator) * self.window * rest + rest / 2
        corners = torch.minimum(drawn.clamp_min(0), rest).long().tolist()
        self.offsets = [(top, left) for top, left in corners]
        return self.cut(images)

    def cut(self, images: Tensor) -> Tensor:
        """The windows of the last draw once more."""
        size = self.size
        corners = zip(images, self.offsets, strict=True)
        return torch.stack([image[:, top : top + size, left : left + size] for image, (top, left) in corners])

    def paste(self, images: Tensor, crops: Tensor) -> None:
        """Write windows back to where the last draw took them, in place."""
        for image, crop, (top, left) in zip(images, crops, self.offsets, strict=True):
            image[:, top : top + self.size, left : left + self.size] = crop


class Affine:
    """Rotation, zoom and shift; made by `affine`."""

    def __init__(self, degrees: float, scale: float, shift: float, generator: Generators) -> None:
        self.degrees = degrees
        self.scale = scale
        self.shift = shift
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        theta = self._draw(len(images), images.shape[-2] / images.shape[-1]).to(images)
        grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        return torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _draw(self, n_images: int, ratio: float) -> Tensor:
        """Sampling matrices (n_images, 2, 3); ``ratio`` is height / width, so that circles stay round."""
        draws = _drawn(torch.rand, n_images, 4, self.generator) * 2 - 1
        angle = draws[:, 0] * math.radians(self.degrees)
        zoom = 1 + draws[:, 1] * self.scale
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        rows = (cos, -sin * ratio, 2 * self.shift * draws[:, 2], sin / ratio, cos, 2 * self.shift * draws[:, 3])
        return torch.stack(rows, dim=1).view(-1, 2, 3)


def center_crop(size: int, window: float = 0.3, *, seed: int = 0, generator: Generators | None = None) -> CenterCrop:
    """The paper's centre-biased crop: with D = canvas − size, offsets ~ N(D/2, window·D), clipped to [0, D].

    Args:
        size: height and width of the crop in pixels.
        window: standard deviation of the offset, as a share of D; 0 is the middle always.
        seed: seed of the transform's own generator.
        generator: a CPU generator to draw from instead, or one for each image of the batch.
    """
    if size < 1 or window < 0:
        raise ImageError(f"size must be at least 1 and window at least 0, not {size} and {window}")
    return CenterCrop(size, window, generator or torch.Generator().manual_seed(seed))


def affine(
    degrees: float = 10.0,
    scale: float = 0.1,
    shift: float = 0.07,
    *,
    seed: int = 0,
    generator: Generators | None = None,
) -> Affine:
    """A random rotation, zoom and shift of each image; what comes in at the border is its reflection.

    Args:
        degrees: rotations are uniform in ±degrees.
        scale: zooms are uniform in 1 ± scale.
        shift: shifts are uniform in ±shift, as a share of height and width.
        seed: seed of the transform's own generator.
        generator: a CPU generator to draw from instead, or one for each image of the batch.
    """
    if not (0 <= scale < 1):
        raise ImageError(f"scale must be at least 0 and below 1, not {scale}")
    return Affine(degrees, scale, shift, generator or torch.Generator().manual_seed(seed))
