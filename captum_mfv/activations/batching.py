"""Batch sizes of forward passes: small on a CPU, halved where memory runs out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from captum_mfv.activations.layers import trace
from captum_mfv.errors import MFVWarning
from captum_mfv.images import InputSpec, first_floating_point

__all__ = ["AdaptiveBatches", "cpu_batch_size"]

T = TypeVar("T")

# Bytes of a layer's output on a CPU. Larger blocks fall out of the cache, and C libraries allocate them anew each
# time: SqueezeNet processes 32 images of 224 px in batches of 4 in 0.6 of the time (benchmarks/portions.py).
_CPU_BLOCK = 20 * 2**20
_FULL = ("DefaultCPUAllocator", "MPS backend out of memory")


def cpu_batch_size(model: nn.Module, input_spec: InputSpec, limit: int) -> int:
    """Return how many images, up to a limit, a model processes fastest: on a CPU few, elsewhere all.

    Layers count that run on an image of the input's size, even if a later one takes another size only.
    """
    weight = first_floating_point(model)
    if weight is not None and weight.device.type != "cpu":
        return limit
    calls = trace(model, input_spec.feed(model)(input_spec.gray()), until=())
    n_bytes = 4 if weight is None else weight.element_size()
    largest = max((math.prod(call.shape) for call in calls), default=1) * n_bytes
    return max(1, min(limit, _CPU_BLOCK // max(1, largest)))


class AdaptiveBatches:
    """Process rows in batches that fit in memory.

    If memory runs out, on any device, the batch is processed again in halves and later batches are as small; one
    warning is shown.

    Args:
        size: rows per batch at most.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._warned = False

    def __call__(self, n_rows: int, work: Callable[[slice], T]) -> list[T]:
        """Return the results of ``work`` for batches of nearly equal size that cover ``n_rows`` rows in order.

        Raises:
            Exception: any error of ``work``; out of memory only for a batch of one row.
        """
        done: list[T] = []
        start = 0
        while start < n_rows:
            left = n_rows - start
            rows = slice(start, start + -(-left // -(-left // self.size)))
            try:
                done.append(work(rows))
            except (RuntimeError, MemoryError) as error:
                if not _is_full(error) or rows.stop - start == 1:
                    raise
                self._halve(rows.stop - start)
            else:
                start = rows.stop
        return done

    def _halve(self, n_rows: int) -> None:
        self.size = -(-n_rows // 2)
        if not self._warned:
            message = f"memory doesn't hold a batch of {n_rows} images; continuing with {self.size}"
            warnings.warn(message, MFVWarning, stacklevel=4)
        self._warned = True


def _is_full(error: Exception) -> bool:
    """Whether memory ran out on a device: for CPUs and Apple's GPUs, PyTorch has no error class."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in _FULL)
