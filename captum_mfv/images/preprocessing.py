"""Preprocessing of a model's input: `InputSpec`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from captum_mfv.errors import ImageError
from captum_mfv.storage.schema import FROM_NUMPY, Flag, Number, Side, declare
from captum_mfv.units import first_floating_point

__all__ = ["InputSpec", "resize"]


Channels = Annotated[
    tuple[Number, ...], BeforeValidator(lambda values: values.tolist() if hasattr(values, "tolist") else values)
]


Channel = Annotated[int, Field(strict=True, ge=0), FROM_NUMPY]


@declare(ImageError)
class InputSpec:
    """Preprocessing of a model's input, applied to images in [0, 1] as the last transform.

    Args:
        size: height and width of the model's input in pixels.
        mean: subtracted from each channel; its length is the number of channels.
        std: divisor of each channel after the subtraction.
        crop_fraction: for image files, the side of the center crop divided by the short side of the resized image,
            in (0, 1]. 1 resizes the short side to ``size``; 224 / 256 resizes it to 256 pixels for a crop of 224.
        interpolation: for image files, the name of one of Pillow's filters.
        stretch: for image files, resize both sides to the short side's length, whatever the aspect ratio, as many
            transformers' preprocessing does.
        value_range: for image files, the values that become 0 and 1; values beyond are clipped. By default, 0 and the
            largest value of 8-bit and 16-bit integers, and 0 and 1 of floating-point numbers.
        rgb: the channels that are displayed as red, green and blue, such as (3, 2, 1) for Sentinel-2. By default the
            first three; of two channels the second as green and blue. One channel is displayed in gray.

    Shape: (N, C, H, W) in [0, 1] → (N, C, size, size). A tensor of another size is resized bilinearly with
    antialiasing and is not cropped.

    Raises:
        ImageError: if a value is out of range, ``mean`` and ``std`` differ in length, or images have another number of
            channels.

    Example:
        >>> spec = InputSpec(32, mean=(0.5,), std=(0.5,))
        >>> x = spec(torch.ones(2, 1, 48, 48))
        >>> x.shape, x.mean().item()
        (torch.Size([2, 1, 32, 32]), 1.0)
    """

    size: Side = 224
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    crop_fraction: Annotated[float, Field(strict=True, gt=0, le=1), FROM_NUMPY] = 1.0
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    stretch: Flag = False
    value_range: tuple[Number, Number] | None = None
    rgb: tuple[Channel, Channel, Channel] | None = None

    @model_validator(mode="after")
    def _check(self) -> InputSpec:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"mean and std need one number a channel, std above 0; got {self.mean} and {self.std}")
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range must be (low, high), low below high, not {self.value_range}")
        if self.rgb is not None and max(self.rgb) >= self.channels:
            raise ValueError(f"rgb must be three of the channels 0 to {self.channels - 1}, not {self.rgb}")
        return self

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.mean)

    @property
    def displayed(self) -> tuple[int, ...]:
        """The channels that are displayed: one in gray, or three as red, green and blue."""
        if self.rgb is not None or self.channels == 1:
            return self.rgb or (0,)
        return tuple(min(channel, self.channels - 1) for channel in range(3))

    @property
    def short_side(self) -> int:
        """Short side in pixels to which an image file is resized before the center crop."""
        return max(self.size, round(self.size / self.crop_fraction))

    def __call__(self, images: Tensor) -> Tensor:
        """Return the model's input for images in [0, 1]."""
        return self._normalized(images, self._statistics(images.device, images.dtype))

    def _statistics(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return each channel's mean and standard deviation, (2, C, 1, 1)."""
        return torch.tensor([self.mean, self.std], dtype=dtype, device=device)[:, :, None, None]

    def _normalized(self, images: Tensor, statistics: Tensor) -> Tensor:
        if images.shape[-3] != self.channels:
            raise ImageError(f"images have {images.shape[-3]} channels; input_spec has mean and std of {self.channels}")
        mean, std = statistics.unbind()
        return (self.resize(images) - mean) / std

    def resize(self, images: Tensor) -> Tensor:
        """Resize (N, C, H, W) to the model's input size, bilinearly with antialiasing."""
        return resize(images, self.size)

    def feed(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return a function from images in [0, 1] to the model's input, on the model's device and in its dtype.

        Device and dtype are those of the first floating-point parameter or buffer; without one, images keep their
        device and are float32. The input is channels-last in memory, where convolutions and pooling are faster.
        """
        weight = first_floating_point(model)
        if weight is None:
            return lambda images: self(images).to(dtype=torch.float32, memory_format=torch.channels_last)
        device, dtype = weight.device, weight.dtype
        statistics = self._statistics(device, torch.float32)  # copied once: each copy to a GPU waits for it

        def feed(images: Tensor) -> Tensor:
            inputs = self._normalized(images.to(device), statistics)
            return inputs.to(dtype=dtype, memory_format=torch.channels_last)

        return feed

    def display(self, images: Tensor) -> Tensor:
        """Return the channels of images, (…, C, H, W), that are displayed: (…, 1, H, W) gray or (…, 3, H, W) RGB."""
        return images[..., list(self.displayed), :, :]

    def gray(self) -> Tensor:
        """Return a gray image, (1, C, size, size), to run a model once."""
        return torch.full((1, self.channels, self.size, self.size), 0.5)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize (N, C, H, W) to (N, C, size, size), bilinearly with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
