"""Random transforms of images, drawn for each image of the batch, on any device.

Every random transform takes ``seed``, an integer, or ``generator``, which replaces the generator of that seed: one CPU
generator for the batch, or one for each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, SupportsIndex, TypeAlias

import torch
from torch import Tensor

from captum_mfv.errors import ImageError, RecipeError
from captum_mfv.storage.schema import check_integer

__all__ = [
    "CenterCrop",
    "affine",
    "center_crop",
    "compose",
    "gradient_mask",
    "jitter",
    "make_transform",
    "noise",
    "random_crop",
]

Transform: TypeAlias = Callable[[Tensor], Tensor]
"""Function of images, (B, C, H, W), that returns the network's input."""

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]
"""One generator for the batch, or one for each image of the batch."""


class CenterCrop:
    """A random window near the center; made by `center_crop`. ``offsets`` are those of the last call."""

    def __init__(self, size: int, window: float, generator: Generators) -> None:
        self.size = size
        self.window = window
        self.generator = generator
        self.offsets: list[tuple[int, int]] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, C, size, size) windows of (B, C, H, W) images."""
        rest = torch.tensor(images.shape[-2:]) - self.size
        if rest.min() < 0:
            raise ImageError(f"images of {tuple(images.shape[-2:])} are smaller than the crop's {self.size} pixels")
        drawn = _draw(torch.randn, len(images), [2], self.generator) * self.window * rest + rest / 2
        corners = torch.minimum(drawn.clamp_min(0), rest).long().tolist()
        self.offsets = [(top, left) for top, left in corners]
        return self.cut(images)

    def cut(self, images: Tensor) -> Tensor:
        """Return the windows at the last call's offsets."""
        return _windows(images, self.offsets, self.size, self.size)

    def paste(self, images: Tensor, crops: Tensor) -> None:
        """Write windows into images at the last call's offsets, in place."""
        for image, crop, (top, left) in zip(images, crops, self.offsets, strict=True):
            image[:, top : top + self.size, left : left + self.size] = crop


def center_crop(
    size: int, window: float = 0.3, *, seed: SupportsIndex = 0, generator: Generators | None = None
) -> CenterCrop:
    """Return the paper's center-biased crop: with D = canvas − size, offsets ~ N(D/2, window·D), clipped to [0, D].

    Args:
        size: height and width of the crop in pixels.
        window: standard deviation of the offset, as a share of D; at 0 the crop is always in the center.
    """
    if size < 1 or window < 0:
        raise ImageError(f"size must be at least 1 and window at least 0, not {size} and {window}")
    return CenterCrop(size, window, _generators(seed, generator))


def affine(
    degrees: float = 10.0,
    scale: float = 0.1,
    shift: float = 0.07,
    *,
    seed: SupportsIndex = 0,
    generator: Generators | None = None,
) -> Transform:
    """Return a random rotation, zoom and shift of each image; pixels beyond the border are reflected.

    Args:
        degrees: rotations are uniform in ±degrees.
        scale: zooms are uniform in 1 ± scale.
        shift: shifts are uniform in ±shift, as a share of height and width.
    """
    if not (0 <= scale < 1):
        raise ImageError(f"scale must be at least 0 and below 1, not {scale}")
    generators = _generators(seed, generator)

    def transform(images: Tensor) -> Tensor:
        draws = _draw(torch.rand, len(images), [4], generators) * 2 - 1
        angle = draws[:, 0] * math.radians(degrees)
        zoom = 1 + draws[:, 1] * scale
        ratio = images.shape[-2] / images.shape[-1]  # keeps circles round
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        rows = (cos, -sin * ratio, 2 * shift * draws[:, 2], sin / ratio, cos, 2 * shift * draws[:, 3])
        return _sample(images, rows)

    return transform


def random_crop(
    share: float = 0.25, spread: float = 0.05, *, seed: SupportsIndex = 0, generator: Generators | None = None
) -> Transform:
    """Return a random crop, resized to the image's size (MACO, Fel et al. 2023).

    Args:
        share: the window's side, as a share of the image's.
        spread: standard deviation of the share; windows stay between 5 % and all of the image.
    """
    if not (0 < share <= 1 and spread >= 0):
        raise ImageError(f"share must be above 0 and at most 1, spread at least 0, not {share} and {spread}")
    generators = _generators(seed, generator)

    def transform(images: Tensor) -> Tensor:
        sides = (share + spread * _draw(torch.randn, len(images), [1], generators)[:, 0]).clamp(0.05, 1)
        middles = (_draw(torch.rand, len(images), [2], generators) * 2 - 1) * (1 - sides)[:, None]
        zero = torch.zeros_like(sides)
        return _sample(images, (sides, zero, middles[:, 0], zero, sides, middles[:, 1]))

    return transform


def jitter(shift: float = 0.05, *, seed: SupportsIndex = 0, generator: Generators | None = None) -> Transform:
    """Return a random shift by whole pixels, uniform in ±shift of height and width; reflected beyond the border."""
    if not 0 <= shift < 1:
        raise ImageError(f"shift must be at least 0 and below 1, not {shift}")
    generators = _generators(seed, generator)

    def transform(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        reach = torch.tensor([int(shift * height), int(shift * width)])
        top, left = reach.tolist()
        padded = torch.nn.functional.pad(images, (left, left, top, top), mode="reflect")
        draws = _draw(torch.rand, len(images), [2], generators)
        return _windows(padded, (draws * (2 * reach + 1)).long().minimum(2 * reach).tolist(), height, width)

    return transform


def noise(std: float = 0.02, *, seed: SupportsIndex = 0, generator: Generators | None = None) -> Transform:
    """Return the addition of independent normal noise of standard deviation ``std`` to every pixel."""
    if std < 0:
        raise ImageError(f"std must be at least 0, not {std}")
    generators = _generators(seed, generator)
    return lambda images: images + std * _beside(_draw(torch.randn, len(images), images.shape[1:], generators), images)


def gradient_mask(margin: float) -> Transform:
    """Return the identity with a gradient of zero in a margin, so that only the center changes (arXiv 1602.03616).

    ``margin`` is the margin's width, as a share of height and width, below a half.
    """
    if not 0 <= margin < 0.5:
        raise ImageError(f"margin must be at least 0 and below .5, not {margin}")

    def transform(images: Tensor) -> Tensor:
        top, left = (round(margin * side) for side in images.shape[-2:])
        mask = torch.zeros_like(images[:1, :1])
        mask[..., top : images.shape[-2] - top, left : images.shape[-1] - left] = 1
        return images.detach() + mask * (images - images.detach())

    return transform


def compose(transforms: Sequence[Transform]) -> Transform:
    """Return the composition of transforms, the first applied first."""
    return lambda images: reduce(lambda found, transform: transform(found), transforms, images)


_TRANSFORMS: Mapping[str, Callable[..., Transform]] = {
    one.__name__: one for one in (affine, center_crop, gradient_mask, jitter, noise, random_crop)
}


def make_transform(name: str, arguments: Mapping[str, float], size: int, generator: Generators) -> Transform:
    """Return a transform by its name and arguments in a recipe; ``size`` is that of ``center_crop``'s window.

    Raises:
        RecipeError: if no transform has that name, or the transform doesn't take the arguments.
    """
    if name not in _TRANSFORMS:
        raise RecipeError(f"no transform {name!r}; there are {', '.join(_TRANSFORMS)}")
    more: dict[str, Any] = {} if name == "gradient_mask" else {"generator": generator}
    if name == "center_crop":
        more["size"] = size
    try:
        return _TRANSFORMS[name](**arguments, **more)
    except (TypeError, ImageError) as error:
        raise RecipeError(f"transform {name}: {error}") from error


def _generators(seed: SupportsIndex, generator: Generators | None) -> Generators:
    return torch.Generator().manual_seed(check_integer(seed, "seed")) if generator is None else generator


def _draw(draw: Callable[..., Tensor], n_images: int, shape: Sequence[int], generators: Generators) -> Tensor:
    """Return (n_images, *shape) numbers of `torch.rand` or `torch.randn`."""
    if isinstance(generators, torch.Generator):
        return draw(n_images, *shape, generator=generators)
    return torch.stack([draw(*shape, generator=generator) for generator in generators])


def _beside(drawn: Tensor, images: Tensor) -> Tensor:
    """Return drawn numbers on the images' device and in their dtype, without waiting for a GPU."""
    return drawn.to(images.device, images.dtype, non_blocking=True)


def _windows(images: Tensor, corners: Sequence[Sequence[int]], height: int, width: int) -> Tensor:
    """Return the window of each image at its corner (top, left)."""
    pairs = zip(images, corners, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in pairs])


def _sample(images: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
    """Sample images with (2, 3) affine matrices, given as six (B,) tensors; reflected beyond the border."""
    matrices = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(_beside(matrices, images), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
