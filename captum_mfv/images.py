"""Images: a folder as a dataset, decoded safely, and the one place where they become a model's input."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from captum_mfv.errors import ImageError, MFVWarning
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.untrusted import is_folder

__all__ = [
    "ImageFolder",
    "Images",
    "InputSpec",
    "batches",
    "from_pil",
    "image_at",
    "open_image",
    "read_image",
    "resize",
    "stack",
    "to_pil",
    "to_tensor",
]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 89_478_485  # where Pillow starts to suspect a decompression bomb


class Images(Protocol):
    """A map-style dataset: items are (C, H, W) floats in [0, 1], or tuples that begin with one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class InputSpec:
    """What turns images in [0, 1] into a model's input; call it as the last transform.

    Args:
        size: height and width of the model's input in pixels.
        mean: subtracted from each channel; its length is the number of channels.
        std: what each channel is then divided by.

    Shape: (N, C, H, W) in [0, 1] → (N, C, size, size); other sizes are resized bilinearly, antialiased.

    Example:
        >>> spec = InputSpec(32, mean=(0.5,), std=(0.5,))
        >>> x = spec(torch.ones(2, 1, 48, 48))
        >>> x.shape, x.mean().item()
        (torch.Size([2, 1, 32, 32]), 1.0)
    """

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if self.size < 1:
            raise ImageError(f"size must be at least 1 pixel, not {self.size}")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ImageError(f"mean and std need one number a channel, std above 0; got {self.mean} and {self.std}")

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        return len(self.mean)

    def __call__(self, images: Tensor) -> Tensor:
        """The model's input for images in [0, 1]."""
        images = self.resize(images)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device)[:, None, None]
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device)[:, None, None]
        return (images - mean) / std

    def resize(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) at the model's size, bilinearly, antialiased."""
        return resize(images, self.size)

    def feed(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """A function from images in [0, 1] to the model's input, on its device and in its precision.

        Channels are last in memory, where convolutions and pooling are faster.
        """
        weight = next(model.parameters(), torch.zeros(0))
        to_input = partial(Tensor.to, dtype=weight.dtype, memory_format=torch.channels_last)
        return lambda images: to_input(self(images.to(weight.device)))

    def grey(self) -> Tensor:
        """A grey image, (1, C, size, size), to try a model with."""
        return torch.full((1, self.channels, self.size, self.size), 0.5)


def resize(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) as (N, C, size, size), bilinearly, antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


class ImageFolder:
    """Every file under a folder as an image, in the order of their paths.

    Items are (C, size, size) float32 in [0, 1]: upright (EXIF), transparency on white, the short side
    scaled to the model's size and the middle cut out. Folders are searched all the way down; hidden
    files are left out and links to folders not followed. Links to files are: datasets are often made of them.

    Args:
        root: the folder.
        input_spec: size and number of channels (1: grey, 3: RGB) of the items.

    Raises:
        ImageError: if the folder doesn't exist or holds no files; on access, if a file can't be read as
            an image, or has over 89 million pixels or would once it is scaled. `batches` passes such files over
            and names them.
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
        """The path of an image relative to the folder, with forward slashes."""
        return self.paths[index].relative_to(self.root).as_posix()

    def files_fingerprint(self) -> str:
        """Return a fingerprint of the files' names and sizes; no file is opened."""
        return fingerprint(files=[(self.name(index), _size(path)) for index, path in enumerate(self.paths)])

    def fingerprint(self) -> str:
        """Return a fingerprint of the items: of the files' names and sizes, and of what the items look like."""
        return fingerprint(files=self.files_fingerprint(), input_spec=self.input_spec)


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
    """A file as (C, size, size) in [0, 1], as `ImageFolder` gives it.

    Raises:
        ImageError: if it can't be read, naming the file and why.
    """
    image = open_image(path)
    try:
        return to_tensor(image, spec)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def open_image(path: Path, formats: tuple[str, ...] = FORMATS, *, grey: bool = False) -> Image.Image:
    """A file as an upright image in mode RGB, whatever its mode; with ``grey``, grey ones in mode L.

    Raises:
        ImageError: if it can't be read, naming the file and why.
    """
    try:
        if not path.is_file():  # a pipe or a device would block
            raise ImageError("not a regular file")
        with Image.open(path, formats=formats) as image:
            _check_pixels(*image.size)
            upright = ImageOps.exif_transpose(image)
            return upright if grey and upright.mode == "L" else _rgb(upright)
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
    """An RGB image as (C, size, size) in [0, 1], the short side scaled and the middle cut out.

    Raises:
        ImageError: if it would have over 89 million pixels once it is scaled.
    """
    size = spec.size
    image = image.convert("L") if spec.channels == 1 else image
    if min(image.size) != size:
        scale = size / min(image.size)
        shape = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
        _check_pixels(*shape)  # of a line of pixels, the short side scaled makes many
        image = image.resize(shape, Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return from_pil(image.crop((left, top, left + size, top + size)))


def from_pil(image: Image.Image) -> Tensor:
    """An 8-bit grey or RGB image as (C, H, W) float32 in [0, 1]."""
    pixels = np.asarray(image, np.float32) / 255
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1).contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1], grey or RGB, as an 8-bit image, rounded to the nearest level."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def image_at(images: Images, index: int) -> Tensor:
    """One item of a dataset as (C, H, W) float32.

    Raises:
        TypeError: if the item is no tensor of three axes.
        ImageError: if its values leave [0, 1], as they do after normalisation.
    """
    item = images[index]
    image = item[0] if isinstance(item, (tuple, list)) else item
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise TypeError(f"images must be (C, H, W) tensors; item {index} is {_describe(image)}")
    image = image.float()
    low, high = image.aminmax()
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ImageError(
            f"images must lie in [0, 1]; item {index} spans [{low:.3g}, {high:.3g}]. Leave normalisation to input_spec"
        )
    return image


def _describe(item: object) -> str:
    return f"a tensor of shape {tuple(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"


def stack(images: Images, indices: Iterable[int]) -> Tensor:
    """The items at some indices as one batch, (N, C, H, W)."""
    return _stack([image_at(images, int(index)) for index in indices])


def _stack(items: list[Tensor]) -> Tensor:
    if len({item.shape for item in items}) > 1:
        raise ImageError("images differ in size; give ImageFolder, or a dataset that resizes them")
    return torch.stack(items)


def batches(images: Images, batch_size: int = 32, start: int = 0) -> Iterator[tuple[list[int], Tensor]]:
    """Indices and images of a dataset from one on, batch by batch, the next one decoded while this one is used.

    Images that can't be read are passed over with an `MFVWarning` that names them.
    """
    starts = range(start, len(images), batch_size)
    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for start in starts:
            now = ahead or pool.submit(_readable, images, range(start, min(start + batch_size, len(images))))
            following = range(start + batch_size, min(start + 2 * batch_size, len(images)))
            ahead = pool.submit(_readable, images, following) if following else None
            batch, errors = now.result()
            for error in errors:
                warnings.warn(f"passed over {error}", MFVWarning, stacklevel=2)
            if batch:
                yield list(batch), _stack(list(batch.values()))


def _readable(images: Images, indices: range) -> tuple[dict[int, Tensor], list[ImageError]]:
    batch, errors = {}, []
    for index in indices:
        try:
            batch[index] = image_at(images, index)
        except ImageError as error:
            errors.append(error)
    return batch, errors
