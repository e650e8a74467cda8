"""Work on a GPU that is recorded once and then replayed as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Recorded"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_N_BEFORE = 2  # calls before the recording, in which libraries choose algorithms and allocate memory


class Recorded(Generic[T]):
    """A function of tensors, recorded as a CUDA graph at its third call and replayed from then on.

    Launching the kernels of a small network one by one takes a CPU longer than they take a GPU; a graph launches all at
    once (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). On other devices, and where the function
    can't be recorded because it waits for the GPU or copies to it, each call runs the function.

    Args:
        work: the function. Its result holds tensors on the inputs' device; a replay overwrites those of the call
            before, so copy what is kept.
    """

    def __init__(self, work: Callable[..., T]) -> None:
        self.work = work
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> T:
        """Return the function's result for inputs, whose shapes and devices are those of the first call."""
        if self._graph is None:
            self._calls += 1
            if inputs[0].device.type != "cuda" or self._calls != _N_BEFORE + 1 or not self._record(inputs):
                return self.work(*inputs)
        assert self._graph is not None
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._result

    def _record(self, inputs: tuple[Tensor, ...]) -> bool:
        """Record the work, without doing it, and return whether it could be recorded."""
        self._inputs = [given.detach().clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            stream = torch.cuda.current_stream()
            try:
                with _recording(graph):
                    self._result = self.work(*self._inputs)
            except RuntimeError as error:
                _recover(stream)
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                _log.debug("steps are not recorded as a CUDA graph: %s", error)
                return False
        self._graph = graph
        return True


def _recording(graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
    """Return the context that records a graph, in which other threads may use the GPU."""
    return torch.cuda.graph(graph, capture_error_mode="thread_local")


def _recover(stream: torch.cuda.Stream) -> None:
    """Restore what a failed recording leaves changed: the current stream, and the state of the GPU's generator."""
    torch.cuda.set_stream(stream)
    torch.cuda.synchronize()
    with _recording(torch.cuda.CUDAGraph()):  # its end tells the generator that nothing is being recorded
        torch.zeros(1, device=stream.device)
