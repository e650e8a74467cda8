"""Images in [0, 1]: preprocessing for a model, image files and folders, datasets and their batches."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from captum_mfv.errors import ImageError, MFVWarning
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.schema import FROM_NUMPY, Flag, Number, Side, check_integer, declare
from captum_mfv.storage.untrusted import is_folder
from captum_mfv.units import first_floating_point

__all__ = ["ImageFolder", "Images", "InputSpec", "batches", "image_at", "read_image", "stack", "to_pil"]

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_MAX_PIXELS = 89_478_485  # where Pillow starts to suspect a decompression bomb


Channels = Annotated[
    tuple[Number, ...], BeforeValidator(lambda values: values.tolist() if hasattr(values, "tolist") else values)
]


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

    size: Side = 224
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    crop_fraction: Annotated[float, Field(strict=True, gt=0, le=1), FROM_NUMPY] = 1.0
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    stretch: Flag = False

    @model_validator(mode="after")
    def _check(self) -> InputSpec:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"mean and std need one number a channel, std above 0; got {self.mean} and {self.std}")
        return self

    @property
    def channels(self) -> int:
        """Number of color channels."""
        return len(self.mean)

    @property
    def short_side(self) -> int:
        """Short side in pixels to which an image file is resized before the center crop."""
        return max(self.size, round(self.size / self.crop_fraction))

    def __call__(self, images: Tensor) -> Tensor:
        """Return the model's input for images in [0, 1]."""
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
        return lambda images: self(images.to(device)).to(dtype=dtype, memory_format=torch.channels_last)

    def gray(self) -> Tensor:
        """Return a gray image, (1, C, size, size), to run a model once."""
        return torch.full((1, self.channels, self.size, self.size), 0.5)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize (N, C, H, W) to (N, C, size, size), bilinearly with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


class Images(Protocol):
    """A map-style dataset: items are (C, H, W) floats in [0, 1], or tuples that begin with one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ImageFolder:
    """Dataset of every file under a folder and its subfolders, in the order of their paths.

    Items are (C, size, size) float32 in [0, 1]: upright (EXIF), transparency on white, the short side resized with
    antialiasing and the center cropped. Hidden files and links to folders are left out; links to files are followed.

    Args:
        root: the folder.
        input_spec: size, crop fraction, interpolation and number of channels (1: gray, 3: RGB) of the items.

    Raises:
        ImageError: if the folder does not exist or holds no files; on access, if a file can't be read as an image, or
            has over 89 million pixels before or after resizing. `batches` leaves such files out and names them.
    """

    def __init__(self, root: str | os.PathLike[str], input_spec: InputSpec | None = None) -> None:
        self.root = Path(root)
        self.input_spec = input_spec or InputSpec()
        if not is_folder(self.root):
            raise ImageError(f"{os.fspath(root)!r} isn't a folder of images")
        self.paths: tuple[Path, ...] = tuple(sorted(_files(self.root)))
        if not self.paths:
            raise ImageError(f"the folder {os.fspath(root)!r} holds no images")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.paths[index], self.input_spec)

    def name(self, index: int) -> str:
        """Return the path of an image relative to the folder, with forward slashes."""
        return self.paths[index].relative_to(self.root).as_posix()

    @cached_property
    def files_fingerprint(self) -> str:
        """Fingerprint of the files' names and sizes; no file is opened."""
        lines = (f"{self.name(index)}\0{_size(path)}\0" for index, path in enumerate(self.paths))
        return fingerprint(files="".join(lines))  # one string: a list of a million files takes half a minute

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the items: of the files' names and sizes, and of the preprocessing."""
        return fingerprint(files=self.files_fingerprint, input_spec=self.input_spec)


def _size(path: Path) -> int:
    """Return a file's size in bytes; -1 for a broken link."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


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


def image_at(images: Images, index: int) -> Tensor:
    """Return one item of a dataset as (C, H, W) float32; TypeError if it has no such shape, errors of `check_range`."""
    item = images[index]
    image = item[0] if isinstance(item, (tuple, list)) else item
    if not isinstance(image, Tensor) or image.ndim != 3:
        kind = f"tensor of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"images must be (C, H, W) tensors; item {index} is a {kind}")
    return check_range(image.float(), f"item {index}")


def check_range(images: Tensor, what: str = "a batch", slack: float = 1e-4) -> Tensor:
    """Return images if their values lie in [0, 1] ± slack; ``what`` names them in the ImageError otherwise raised."""
    low, high = images.detach().aminmax()
    if not (low >= -slack and high <= 1 + slack):
        raise ImageError(
            f"{what} must lie in [0, 1], not [{low:.3g}, {high:.3g}]; divide bytes by 255, and leave normalization to "
            f"input_spec"
        )
    return images


def stack(images: Images, indices: Iterable[int]) -> Tensor:
    """Return the items at some indices as one batch, (N, C, H, W)."""
    return _stack([image_at(images, int(index)) for index in indices])


def _stack(items: list[Tensor]) -> Tensor:
    if len({item.shape for item in items}) > 1:
        raise ImageError("images differ in size; give ImageFolder, or a dataset that resizes them")
    return torch.stack(items)


def batches(images: Images, batch_size: int = 32, start: int = 0) -> Iterator[tuple[list[int], Tensor]]:
    """Iterate over a dataset, from ``start`` on, in batches of (indices, images), decoding one batch in advance.

    Raises:
        ImageError: if no image of the dataset can be read, with the last one's error.

    Warns:
        MFVWarning: for each image that can't be read, with its name; batches leave it out.
    """
    batch_size = check_integer(batch_size, "batch_size", 1)
    parts = (range(first, min(first + batch_size, len(images))) for first in range(start, len(images), batch_size))
    with ThreadPoolExecutor(1) as pool:
        futures = (pool.submit(_readable, images, part) for part in parts)
        ahead, n_read = next(futures, None), start
        while ahead is not None:
            now, ahead = ahead, next(futures, None)
            batch, errors = now.result()
            for error in errors:
                warnings.warn(f"left out {error}", MFVWarning, stacklevel=2)
            if batch:
                n_read += len(batch)
                yield list(batch), _stack(list(batch.values()))
            elif ahead is None and not n_read:
                raise ImageError(f"no image can be read; the last: {errors[-1]}")


def _readable(images: Images, indices: range) -> tuple[dict[int, Tensor], list[ImageError]]:
    batch, errors = {}, []
    for index in indices:
        try:
            batch[index] = image_at(images, index)
        except ImageError as error:
            errors.append(error)
    return batch, errors
