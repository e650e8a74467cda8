"""Image files: reading, preprocessing, conversion."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from captum_mfv.errors import ImageError, MFVError
from captum_mfv.images.preprocessing import InputSpec
from captum_mfv.storage.untrusted import read_array

__all__ = ["from_pil", "open_image", "read_image", "to_pil"]

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # more than 8 bits of gray
_MAX_PIXELS = 89_478_485  # where Pillow starts to suspect a decompression bomb


def read_image(path: Path, spec: InputSpec, content: bytes | None = None) -> Tensor:
    """Read a file, or its content, as (C, size, size) in [0, 1], as `ImageFolder` does.

    Raises:
        ImageError: if the file can't be read, or doesn't have the channels; the message names the file and the reason.
        MFVError: if the file can only be read with an optional library that is not installed.
    """
    planes, size = _planes(path, spec, content), spec.size
    shape = planes[0].size
    width, height = (spec.short_side if spec.stretch else int(spec.short_side * side / min(shape)) for side in shape)
    _check_pixels(width, height, f"{path}: ")  # of a very narrow image, the other side becomes huge
    left, top = round((width - size) / 2), round((height - size) / 2)
    filter_ = Image.Resampling[spec.interpolation.upper()]
    resized = [plane if plane.size == (width, height) else plane.resize((width, height), filter_) for plane in planes]
    image = torch.cat([from_pil(plane.crop((left, top, left + size, top + size))) for plane in resized])
    if planes[0].mode != "F" and spec.value_range is not None:
        image = torch.from_numpy(_scaled(image.numpy() * 255, spec.value_range))
    return image.clamp(0, 1).expand(spec.channels, -1, -1).contiguous()


def _planes(path: Path, spec: InputSpec, content: bytes | None) -> list[Image.Image]:
    """Return a file as one 8-bit image, or as an image of mode F for each channel, in [0, 1]."""
    try:
        if content is None and path.suffix.lower() == ".npy":
            values = read_array(path, 3 * _MAX_PIXELS)
        elif content is None and _has_many_values(path, spec):
            values = _read_tiff(path, spec.channels)
        else:
            image = open_image(path, keep=_DEEP if spec.channels in (1, 3) else (), content=content)
            if image.mode not in _DEEP:
                return [_with_channels(image, spec.channels)]
            values = np.asarray(image)
            if values.dtype.kind != "f" and values.min() >= 0 and values.max() < 2**16:
                values = values.astype(np.uint16)  # 16-bit files are opened as 32-bit images by some versions of Pillow
        channels = _channels_first(values, spec.channels)
        _check_pixels(*channels.shape[1:])
        scaled = _scaled(channels, spec.value_range or _value_range(channels))
    except ValueError as error:
        raise ImageError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return [Image.fromarray(channel) for channel in scaled]


def _has_many_values(path: Path, spec: InputSpec) -> bool:
    """Return whether a TIFF file is wanted with channels or values that Pillow doesn't read."""
    return path.suffix.lower() in (".tif", ".tiff") and (spec.channels not in (1, 3) or spec.value_range is not None)


def _with_channels(image: Image.Image, n: int) -> Image.Image:
    if n not in (1, 3):
        raise ValueError(f"it has 3 channels at most, not {n}; save {n} channels as .npy, or as .tif")
    return image.convert("L") if n == 1 else image


def _channels_first(values: NDArray[Any], n: int) -> NDArray[Any]:
    """Return (C, H, W) of (C, H, W), (H, W, C) or (H, W); C is n, or 1 if n is 3."""
    if values.ndim == 2 and n in (1, 3):
        return values[None]
    if values.ndim == 3 and values.shape[0] == n:
        return values
    if values.ndim == 3 and values.shape[2] == n:
        return np.moveaxis(values, 2, 0)
    raise ValueError(f"its shape is {values.shape}, not ({n}, H, W) or (H, W, {n})")


def _value_range(values: NDArray[Any]) -> tuple[float, float]:
    """Return the values that become 0 and 1, of their type; ValueError if values lie outside, or none are known."""
    known = values.dtype.kind == "f" or values.dtype.itemsize <= 2
    largest = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    if not known or values.min() < 0 or values.max() > largest:
        raise ValueError(
            f"{values.dtype} values from {values.min():g} to {values.max():g} have no known range; give "
            f"InputSpec(value_range=(low, high))"
        )
    return 0.0, float(largest)


def _scaled(values: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Return values scaled from the limits to [0, 1], clipped."""
    low, high = limits
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    return ((values.astype(np.float32) - low) / (high - low)).clip(0, 1).astype(np.float32)


def _read_tiff(path: Path, n: int) -> NDArray[Any]:
    """Return the numbers of a TIFF file: of its first page, or if that has one channel, of its first n pages."""
    try:
        import tifffile
    except ImportError as error:
        raise MFVError(f"{path} is read by tifffile: pip install 'captum-mfv[tiff]'") from error
    try:
        if not path.is_file():  # a pipe would block
            raise ValueError("not a regular file")
        with tifffile.TiffFile(path) as file:
            first = file.pages[0]  # the series of tifffile would follow a circle of pages forever
            pages = list(islice(file.pages, n)) if len(first.shape) == 2 else [first]
            if (size := sum(page.size for page in pages)) > 3 * _MAX_PIXELS:
                raise ValueError(f"{size} numbers are more than {3 * _MAX_PIXELS}")
            values: NDArray[Any] = np.stack([page.asarray() for page in pages])
    except Exception as error:  # the reader raises many types on hostile bytes
        raise ImageError(f"{path}: {error}") from error
    if values.dtype.kind not in "iuf":
        raise ImageError(f"{path}: {values.dtype} values aren't integers or floating-point numbers")
    return values[0] if len(pages) == 1 else values


def open_image(
    path: Path, formats: tuple[str, ...] = _FORMATS, *, keep: Sequence[str] = (), content: bytes | None = None
) -> Image.Image:
    """Open a file, or its content, as an upright image, in mode RGB or in one of Pillow's modes that is to be kept.

    Raises:
        ImageError: if the file can't be read; the message names the file and the reason.
    """
    try:
        if content is None and not path.is_file():  # a pipe or a device would block
            raise ImageError("not a regular file")
        with Image.open(path if content is None else BytesIO(content), formats=formats) as image:
            _check_pixels(*image.size)
            _check_pages(image)
            upright = ImageOps.exif_transpose(image)
            return upright if upright.mode in keep else _rgb(upright)
    except Exception as error:  # decoders raise many types on hostile files
        reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise ImageError(f"{path}: {reason}") from error


def _check_pages(image: Image.Image) -> None:
    """Raise ImageError for a TIFF file with a second page of the same size: these are channels, not a color image."""
    if image.format != "TIFF":
        return
    first = image.size
    try:
        image.seek(1)
        several = image.size == first
    except Exception:  # there is no second page that can be read
        several = False
    image.seek(0)
    if several:
        raise ImageError("its pages are channels; input_spec must have a mean and a std for each")


def _check_pixels(width: int, height: int, where: str = "") -> None:
    if width * height > _MAX_PIXELS:
        raise ImageError(f"{where}{width} x {height} pixels are more than {_MAX_PIXELS}")


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image in mode RGB, on white where it is transparent."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def from_pil(image: Image.Image) -> Tensor:
    """Convert an 8-bit gray or RGB image, or one of mode F in [0, 1], to (C, H, W) float32 in [0, 1]."""
    pixels = np.array(image, np.float32)
    pixels /= 1 if image.mode == "F" else 255
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1).contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """Convert (C, H, W) in [0, 1], gray, RGB or RGBA, to an 8-bit image, rounded to the nearest level.

    Raises:
        ImageError: if the image has another number of channels; `InputSpec.display` chooses three of them.
    """
    if len(image) not in (1, 3, 4):
        raise ImageError(f"an image of {len(image)} channels has no colors; give input_spec.display(image)")
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
