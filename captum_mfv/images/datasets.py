"""Map-style datasets of images: checked items, and batches that are decoded ahead."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_mfv.errors import ImageError, MFVWarning

__all__ = ["Images", "batches", "check_batch_size", "check_range", "image_at", "stack"]


class Images(Protocol):
    """A map-style dataset: items are (C, H, W) floats in [0, 1], or tuples that begin with one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def image_at(images: Images, index: int) -> Tensor:
    """Return one item of a dataset as (C, H, W) float32.

    Raises:
        TypeError: if the item is not a tensor of three axes.
        ImageError: if its values leave [0, 1], as they do after normalization.
    """
    item = images[index]
    image = item[0] if isinstance(item, (tuple, list)) else item
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise TypeError(f"images must be (C, H, W) tensors; item {index} is {_describe(image)}")
    return check_range(image.float(), f"item {index}")


def check_range(images: Tensor, what: str = "a batch") -> Tensor:
    """Return images if their values lie in [0, 1].

    Args:
        images: any number of images.
        what: name of the images in the message.

    Raises:
        ImageError: if a value leaves [0, 1], as values in [0, 255] or after normalization do.
    """
    low, high = images.detach().aminmax()
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ImageError(
            f"images must lie in [0, 1]; {what} spans [{low:.3g}, {high:.3g}]. Divide bytes by 255, and leave "
            f"normalization to input_spec"
        )
    return images


def _describe(item: object) -> str:
    return f"a tensor of shape {tuple(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"


def stack(images: Images, indices: Iterable[int]) -> Tensor:
    """Return the items at some indices as one batch, (N, C, H, W)."""
    return _stack([image_at(images, int(index)) for index in indices])


def _stack(items: list[Tensor]) -> Tensor:
    if len({item.shape for item in items}) > 1:
        raise ImageError("images differ in size; give ImageFolder, or a dataset that resizes them")
    return torch.stack(items)


def check_batch_size(batch_size: object) -> int:
    """Return a batch size as an int.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1.
    """
    try:
        number = operator.index(batch_size)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"batch_size must be an integer, not {type(batch_size).__name__}") from None
    if number < 1:
        raise ValueError(f"batch_size must be at least 1 image, not {number}")
    return number


def batches(images: Images, batch_size: int = 32, start: int = 0) -> Iterator[tuple[list[int], Tensor]]:
    """Iterate over a dataset in batches of (indices, images), the next one decoded while this one is used.

    Args:
        images: the dataset.
        batch_size: images per batch.
        start: index of the first image.

    Raises:
        TypeError: if the batch size is not an integer.
        ValueError: if the batch size is below 1.

    Warns:
        MFVWarning: for each image that can't be read, with its name; batches leave it out.
    """
    return _batches(images, check_batch_size(batch_size), start)


def _batches(images: Images, batch_size: int, start: int) -> Iterator[tuple[list[int], Tensor]]:
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
