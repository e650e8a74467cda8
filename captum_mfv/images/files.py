"""Image files: reading, preprocessing, conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from captum_mfv.errors import ImageError
from captum_mfv.images.preprocessing import InputSpec

__all__ = ["from_pil", "open_image", "read_image", "to_pil"]

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_MAX_PIXELS = 89_478_485  # where Pillow starts to suspect a decompression bomb


def read_image(path: Path, spec: InputSpec) -> Tensor:
    """Read a file as (C, size, size) in [0, 1], as `ImageFolder` does; raise the errors of `open_image`."""
    image, size = open_image(path), spec.size
    image = image.convert("L") if spec.channels == 1 else image
    short, smaller = spec.short_side, min(image.size)
    width, height = (short if spec.stretch else int(short * side / smaller) for side in image.size)  # as torchvision
    if (width, height) != image.size:
        _check_pixels(width, height, f"{path}: ")  # of a very narrow image, the other side becomes huge
        image = image.resize((width, height), Image.Resampling[spec.interpolation.upper()])
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return from_pil(image.crop((left, top, left + size, top + size)))


def open_image(path: Path, formats: tuple[str, ...] = _FORMATS, *, gray: bool = False) -> Image.Image:
    """Open a file as an upright image in mode RGB; with ``gray``, gray images stay in mode L.

    Raises:
        ImageError: if the file can't be read; the message names the file and the reason.
    """
    try:
        if not path.is_file():  # a pipe or a device would block
            raise ImageError("not a regular file")
        with Image.open(path, formats=formats) as image:
            _check_pixels(*image.size)
            upright = ImageOps.exif_transpose(image)
            return upright if gray and upright.mode == "L" else _rgb(upright)
    except Exception as error:  # decoders raise many types on hostile files
        reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise ImageError(f"{path}: {reason}") from error


def _check_pixels(width: int, height: int, where: str = "") -> None:
    if width * height > _MAX_PIXELS:
        raise ImageError(f"{where}{width} x {height} pixels are more than {_MAX_PIXELS}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them at 255
        levels = (np.asarray(image).astype(np.float64) / 257).clip(0, 255)
        image = Image.fromarray(levels.astype(np.uint8))
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known range; save it with integers")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def from_pil(image: Image.Image) -> Tensor:
    """Convert an 8-bit gray or RGB image to (C, H, W) float32 in [0, 1]."""
    pixels = np.asarray(image, np.float32) / 255
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1).contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """Convert (C, H, W) in [0, 1], gray or RGB, to an 8-bit image, rounded to the nearest level."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
