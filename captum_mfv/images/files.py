"""Image files and folders of them, decoded safely, as tensors in [0, 1]."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from captum_mfv.errors import ImageError
from captum_mfv.images.input_spec import InputSpec
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.untrusted import is_folder

__all__ = ["ImageFolder", "from_pil", "open_image", "read_image", "to_pil", "to_tensor"]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 89_478_485  # where Pillow starts to suspect a decompression bomb


class ImageFolder:
    """Dataset of every file under a folder, in the order of their paths.

    Items are (C, size, size) float32 in [0, 1]: upright (EXIF), transparency on white, the short side resized with
    antialiasing and the center cropped, as ``input_spec`` says. Subfolders are searched; hidden files and links to
    folders are left out. Links to files are followed, since datasets are often made of them.

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
    """Read a file as (C, size, size) in [0, 1], preprocessed as by `ImageFolder`.

    Raises:
        ImageError: if the file can't be read; the message names the file and the reason.
    """
    image = open_image(path)
    try:
        return to_tensor(image, spec)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def open_image(path: Path, formats: tuple[str, ...] = FORMATS, *, gray: bool = False) -> Image.Image:
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
    except Exception as error:  # decoders raise all sorts on hostile files
        reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise ImageError(f"{path}: {reason}") from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels are more than {MAX_PIXELS}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them at 255
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known range; save it with integers")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image, spec: InputSpec) -> Tensor:
    """Return an RGB image as (C, size, size) in [0, 1]: its short side resized, then the center cropped.

    Raises:
        ImageError: if the resized image would have over 89 million pixels.
    """
    size, short_side = spec.size, spec.short_side
    image = image.convert("L") if spec.channels == 1 else image
    if min(image.size) != short_side:
        scale = short_side / min(image.size)
        shape = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
        _check_pixels(*shape)  # resizing the short side of a very narrow image makes the other side huge
        image = image.resize(shape, Image.Resampling[spec.interpolation.upper()])
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return from_pil(image.crop((left, top, left + size, top + size)))


def from_pil(image: Image.Image) -> Tensor:
    """Convert an 8-bit gray or RGB image to (C, H, W) float32 in [0, 1]."""
    pixels = np.asarray(image, np.float32) / 255
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1).contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """Convert (C, H, W) in [0, 1], gray or RGB, to an 8-bit image, rounded to the nearest level."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
