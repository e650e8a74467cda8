"""How many images go through a network at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from captum_mfv.activations.layers import trace
from captum_mfv.errors import MFVWarning
from captum_mfv.images import InputSpec

__all__ = ["AdaptiveBatches", "cpu_batch_size"]

T = TypeVar("T")

# Of a layer's output on a CPU. Larger blocks fall out of its cache, and C libraries take them from the system anew
# each time: SqueezeNet takes 32 images of 224 px in fours in six tenths of the time (benchmarks/portions.py).
_CPU_BLOCK = 20 * 2**20
_FULL = ("DefaultCPUAllocator", "MPS backend out of memory")


def cpu_batch_size(model: nn.Module, input_spec: InputSpec, limit: int) -> int:
    """How many images, up to a limit, a model takes fastest: on a CPU few, elsewhere all."""
    weight = next(model.parameters(), torch.zeros(0))
    if weight.device.type != "cpu":
        return limit
    calls = trace(model, input_spec.feed(model)(input_spec.grey()))
    largest = max((math.prod(call.shape) for call in calls), default=1) * weight.element_size()
    return max(1, min(limit, _CPU_BLOCK // largest))


class AdaptiveBatches:
    """Work on rows, as many at a time as memory holds.

    When memory runs out, on whatever device, the portion is done again in halves, and so are those after it; a
    warning says so once.

    Args:
        size: rows at a time at most.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._warned = False

    def __call__(self, n_rows: int, work: Callable[[slice], T]) -> list[T]:
        """What ``work`` gives for portions of nearly equal size that cover ``n_rows`` rows in order.

        Raises:
            Exception: whatever ``work`` raises; out of memory only where it is of a single row.
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
            message = f"memory doesn't hold {n_rows} images at once; going on with {self.size}"
            warnings.warn(message, MFVWarning, stacklevel=4)
        self._warned = True


def _is_full(error: Exception) -> bool:
    """Whether a device's memory is full: CPUs and Apple's GPUs have no error of their own."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in _FULL)
