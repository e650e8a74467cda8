"""Preprocessing: from images in [0, 1] to a model's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from captum_mfv.errors import ImageError

__all__ = ["InputSpec", "first_floating_point", "resize"]

_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class InputSpec:
    """Preprocessing of a model's input, applied to images in [0, 1] as the last transform.

    Args:
        size: height and width of the model's input in pixels.
        mean: subtracted from each channel; its length is the number of channels.
        std: divisor of each channel after the subtraction.
        crop_fraction: for image files, the side of the center crop divided by the short side of the resized image,
            in (0, 1]. 1 resizes the short side to ``size``; 224 / 256 resizes it to 256 pixels for a crop of 224.
        interpolation: for image files, ``bilinear`` or ``bicubic``.

    Shape: (N, C, H, W) in [0, 1] → (N, C, size, size). A tensor of another size is resized bilinearly with
    antialiasing and is not cropped.

    Raises:
        ImageError: if a value is out of range, or ``mean`` and ``std`` differ in length.

    Example:
        >>> spec = InputSpec(32, mean=(0.5,), std=(0.5,))
        >>> x = spec(torch.ones(2, 1, 48, 48))
        >>> x.shape, x.mean().item()
        (torch.Size([2, 1, 32, 32]), 1.0)
    """

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if self.size < 1:
            raise ImageError(f"size must be at least 1 pixel, not {self.size}")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ImageError(f"mean and std need one number a channel, std above 0; got {self.mean} and {self.std}")
        if not 0 < self.crop_fraction <= 1:
            raise ImageError(f"crop_fraction must be above 0 and at most 1, not {self.crop_fraction}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ImageError(f"interpolation must be {' or '.join(_INTERPOLATIONS)}, not {self.interpolation!r}")

    @property
    def channels(self) -> int:
        """Number of color channels."""
        return len(self.mean)

    @property
    def short_side(self) -> int:
        """Short side in pixels to which an image file is resized before the center crop."""
        return max(self.size, round(self.size / self.crop_fraction))

    def __call__(self, images: Tensor) -> Tensor:
        """The model's input for images in [0, 1]."""
        images = self.resize(images)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device)[:, None, None]
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device)[:, None, None]
        return (images - mean) / std

    def resize(self, images: Tensor) -> Tensor:
        """Resize (N, C, H, W) to the model's input size, bilinearly with antialiasing."""
        return resize(images, self.size)

    def feed(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return a function from images in [0, 1] to the model's input, on the model's device and in its dtype.

        Device and dtype are those of the first floating-point parameter or buffer; without one, images keep their
        device and are float32. The input is channels-last in memory, where convolutions and pooling are faster.
        """
        weight = first_floating_point(model)
        dtype, device = (torch.float32, None) if weight is None else (weight.dtype, weight.device)
        to_input = partial(Tensor.to, dtype=dtype, memory_format=torch.channels_last)
        return lambda images: to_input(self(images.to(device)))

    def gray(self) -> Tensor:
        """A gray image, (1, C, size, size), to try a model with."""
        return torch.full((1, self.channels, self.size, self.size), 0.5)


def first_floating_point(model: nn.Module) -> Tensor | None:
    """Return the model's first floating-point parameter, else its first such buffer, else None."""
    return next((value for value in chain(model.parameters(), model.buffers()) if value.is_floating_point()), None)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize (N, C, H, W) to (N, C, size, size), bilinearly with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
