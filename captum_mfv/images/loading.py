"""Images of any dataset, in [0, 1]: one, several, and batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captum_mfv.errors import ImageError, MFVWarning
from captum_mfv.storage.schema import check_integer

__all__ = ["Images", "KeptImages", "batches", "check_range", "image_at", "in_advance", "stack"]

S = TypeVar("S")
T = TypeVar("T")

_KEPT = 256 * 2**20  # bytes


class Images(Protocol):
    """A map-style dataset: items are (C, H, W) floats in [0, 1], or tuples that begin with one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def image_at(images: Images, index: int) -> Tensor:
    """Return one item of a dataset as (C, H, W) float32; TypeError if it has no such shape, errors of `check_range`."""
    item = images[index]
    image = item[0] if isinstance(item, (tuple, list)) else item
    if not isinstance(image, Tensor) or image.ndim != 3:
        kind = f"tensor of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"images must be (C, H, W) tensors; item {index} is a {kind}")
    return check_range(image.float(), f"item {index}")


@dataclass(frozen=True, eq=False)
class KeptImages:
    """Dataset that keeps the 8-bit items of another one in memory, up to 256 MiB, so that files are decoded once."""

    images: Images
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index] / 255
        item = image_at(self.images, index)
        levels = (item * 255).round().to(torch.uint8)
        if (len(self._kept) + 1) * levels.numel() <= _KEPT and torch.equal(levels / 255, item):
            self._kept[index] = levels
        return item


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


def batches(
    images: Images, batch_size: int = 32, start: int = 0, stop: int | None = None, workers: int = 0
) -> Iterator[tuple[list[int], Tensor]]:
    """Iterate over a dataset, from ``start`` to ``stop``, in batches of (indices, images), decoding in advance.

    Args:
        images: the dataset.
        batch_size: images per batch.
        start, stop: the range of indices; by default all.
        workers: processes that decode images, as of `torch.utils.data.DataLoader`; 0: one thread of this process.

    Raises:
        ImageError: if no image of the dataset can be read, with the last one's error.

    Warns:
        MFVWarning: for each image that can't be read, with its name; batches leave it out.
    """
    batch_size = check_integer(batch_size, "batch_size", 1)
    stop = len(images) if stop is None else stop
    parts = [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]
    n_read, errors = start, list[ImageError]()
    for indices, batch, errors in _decoded(_Parts(images, parts), workers):
        for error in errors:
            warnings.warn(f"left out {error}", MFVWarning, stacklevel=2)
        if batch is not None:
            n_read += len(batch)
            yield indices, batch
    if errors and not n_read and stop == len(images):
        raise ImageError(f"no image can be read; the last: {errors[-1]}")


_Part = tuple[list[int], Tensor | None, list[ImageError]]


@dataclass(frozen=True)
class _Parts:
    """Dataset of batches: indices, the images in one tensor, and the errors of those that can't be read."""

    images: Images
    parts: Sequence[range]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> _Part:
        return _readable(self.images, self.parts[number])


def _decoded(parts: _Parts, workers: int) -> Iterator[_Part]:
    """Yield batches in their order; one batch is decoded in advance, or two by each worker."""
    if workers:
        yield from DataLoader(parts, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
        return
    yield from in_advance(parts.__getitem__, range(len(parts)))


def in_advance(read: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield ``read(item)`` of each item, which a thread computes while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        futures = (pool.submit(read, item) for item in items)
        ahead = next(futures, None)
        while ahead is not None:
            now, ahead = ahead, next(futures, None)
            yield now.result()


def _readable(images: Images, part: range) -> _Part:
    items: dict[int, Tensor] = {}
    errors = []
    for index in part:
        try:
            items[index] = image_at(images, index)
        except ImageError as error:
            errors.append(error)
    return list(items), _stack(list(items.values())) if items else None, errors
