"""Forward passes of a dataset in batches that fit in memory and in a CPU's cache."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import Outputs, capture, guard
from captum_mfv.activations.layers import trace
from captum_mfv.display.progress import Progress
from captum_mfv.errors import ImageError, MFVWarning
from captum_mfv.images import Images, InputSpec, batches
from captum_mfv.storage.identity import dataset_fingerprint, weights_fingerprint
from captum_mfv.units import first_floating_point

__all__ = ["AdaptiveBatches", "Scan", "cpu_batch_size"]

T = TypeVar("T")

# Bytes of a layer's output on a CPU. Larger blocks fall out of the cache, and C libraries allocate them anew each
# time: SqueezeNet processes 32 images of 224 px in batches of 4 in 0.6 of the time (benchmarks/portions.py).
_CPU_BLOCK = 20 * 2**20
_FULL = ("DefaultCPUAllocator", "MPS backend out of memory")


def cpu_batch_size(model: nn.Module, input_spec: InputSpec, limit: int) -> int:
    """Return how many images, up to a limit, a model processes fastest: few on a CPU, the limit elsewhere.

    Only layers that run on an image of the input's size are counted; a later layer may take another size.
    """
    weight = first_floating_point(model)
    if weight is not None and weight.device.type != "cpu":
        return limit
    calls = trace(model, input_spec.feed(model)(input_spec.gray()), until=())
    n_bytes = 4 if weight is None else weight.element_size()
    largest = max((math.prod(call.shape) for call in calls), default=1) * n_bytes
    return max(1, min(limit, _CPU_BLOCK // max(1, largest)))


class AdaptiveBatches:
    """Process rows in batches of at most ``size`` rows that fit in memory.

    If memory runs out, on any device, the batch is processed again in halves and later batches are as small; one
    warning is shown.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._warned = False

    def __call__(self, n_rows: int, work: Callable[[slice], T]) -> list[T]:
        """Return the results of ``work`` for batches of nearly equal size that cover ``n_rows`` rows in order."""
        done: list[T] = []
        start = 0
        while start < n_rows:
            left = n_rows - start
            rows = slice(start, start + -(-left // -(-left // self.size)))
            try:
                done.append(work(rows))
            except (RuntimeError, MemoryError) as error:
                # For CPUs and Apple's GPUs, PyTorch has no error class
                full = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
                n_images = rows.stop - start
                if n_images == 1 or not (full or any(name in str(error) for name in _FULL)):
                    raise
                self.size = -(-n_images // 2)
                if not self._warned:
                    message = f"memory doesn't hold a batch of {n_images} images; continuing with {self.size}"
                    warnings.warn(message, MFVWarning, stacklevel=3)
                self._warned = True
            else:
                start = rows.stop
        return done


@dataclass(frozen=True, eq=False)
class Scan:
    """One pass of a dataset through a model, which is left unchanged.

    ``read`` maps the outputs of the layers and the images of a batch to tensors of as many rows, by name. The other
    fields are arguments of `codes.collect`. An empty dataset is an ImageError.
    """

    model: nn.Module
    images: Images
    spec: InputSpec
    layers: Sequence[str]
    read: Callable[[Outputs, Tensor], Outputs]
    batch_size: int
    key: str | None
    progress: bool
    workers: int = 0

    def __post_init__(self) -> None:
        if not len(self.images):
            raise ImageError(getattr(self.images, "why_empty", "the dataset holds no images"))

    def run(self, take: Callable[[list[int], Outputs], None], start: int = 0, stop: int | None = None) -> None:
        """Pass the images from ``start`` to ``stop`` through the model; call ``take`` with indices and rows.

        Images that can't be read are left out, with a warning.
        """
        n_images = len(self.images) if stop is None else stop
        if start == n_images:
            return
        forward_batches = AdaptiveBatches(cpu_batch_size(self.model, self.spec, self.batch_size))
        with (
            guard(self.model),
            Progress(total=n_images, initial=start, desc="activations", unit="image", disable=not self.progress) as bar,
        ):
            for indices, batch in batches(self.images, self.batch_size, start, stop, self.workers):
                parts = forward_batches(len(batch), partial(self._rows, batch))
                take(indices, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
                bar.update(indices[-1] + 1 - bar.n)

    def gray_row(self) -> Outputs:
        """Return the row of a gray image, to learn shapes and types."""
        with guard(self.model):
            return self._rows(self.spec.gray(), slice(None))

    def _rows(self, batch: Tensor, part: slice) -> Outputs:
        with torch.no_grad(), capture(self.model, self.layers) as run:
            outputs = run(self.spec.feed(self.model)(batch[part]))
        return self.read(outputs, batch[part])  # without hooks: the function may run the model itself

    def identity(self, **parts: Any) -> dict[str, Any]:
        """Return all that stored rows depend on, except for rounding: batch size and device don't count."""
        images, weights = dataset_fingerprint(self.images, self.key), weights_fingerprint(self.model)
        return {**parts, "input_spec": self.spec, "images": images, "weights": weights}
