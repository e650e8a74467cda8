"""The scan of an atlas: the strongest images of all units, part by part, merged in any order and resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.activations.batching import Scan
from captum_mfv.activations.capture import Outputs
from captum_mfv.activations.top_values import TopValues, read_units
from captum_mfv.errors import ImageError
from captum_mfv.jobs.atlas.plan import BATCH, Plan
from captum_mfv.storage.files import Checkpoint

__all__ = ["ScanState", "scan_part", "select_units"]

_SECONDS = 5.0  # between two saves


def scan_part(plan: Plan, part: range, workers: int = 0) -> dict[str, NDArray[Any]]:
    """Return the state of the units' `TopValues` over a range of images."""
    assert plan.images is not None
    units = plan.units
    layers = list(dict.fromkeys(unit.layer_name for unit in units))

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        return read_units(units, outputs, {})

    scan = Scan(plan.model, plan.images, plan.spec, layers, read, BATCH, None, progress=False, workers=workers)
    top = TopValues(len(units), min(plan.job.top_k, len(plan.images)))
    scan.run(lambda indices, rows: top.add(indices, **rows), part.start, part.stop)
    top.n_done = torch.tensor(len(part))
    return {name: value.cpu().numpy() for name, value in top.state().items()}


def select_units(state: Mapping[str, NDArray[Any]], places: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Return the state of some units' `TopValues`; counts of images, which all units share, stay."""
    return {name: values[list(places)] if values.ndim else values for name, values in state.items()}


@dataclass(eq=False)
class ScanState:
    """The merged parts of a scan, saved to a file every few seconds."""

    plan: Plan
    top: TopValues
    done: NDArray[np.bool_]  # which parts are merged
    checkpoint: Checkpoint

    @classmethod
    def open(cls, plan: Plan, path: Path) -> ScanState:
        """Start a scan, or resume the one in a file; RunError if the file is of another scan."""
        assert plan.images is not None
        top = TopValues(len(plan.units), min(plan.job.top_k, len(plan.images)))
        done = np.zeros(len(plan.parts), np.bool_)
        checkpoint = Checkpoint(path, {"keys": plan.keys}, what="scan", seconds=_SECONDS)
        saved = checkpoint.load()
        if saved is not None:
            with checkpoint.reading():
                done |= saved.pop("parts").numpy()
                top.load(saved)
        return cls(plan, top, done, checkpoint)

    def left(self) -> list[int]:
        """Return the parts that are not merged yet."""
        return [int(number) for number in np.flatnonzero(~self.done)]

    def add(self, number: int, state: Mapping[str, NDArray[Any]]) -> None:
        """Merge a part; save if it is time."""
        self._merge([number], {name: torch.tensor(value) for name, value in state.items()})  # Ray's can't be written to
        if self.checkpoint.due:
            self.save()

    def join(self, other: ScanState) -> None:
        """Merge the parts of another file, none of which may be merged already."""
        self._merge(np.flatnonzero(other.done).tolist(), other.top.state())

    def save(self) -> None:
        """Save all merged parts."""
        self.checkpoint.save({**self.top.state(), "parts": torch.from_numpy(self.done)})

    def check(self) -> None:
        """Raise ImageError if no image could be read."""
        if not int(self.top.n_read):
            raise ImageError("no image can be read")

    def rows(self, units: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return the state of some units' values."""
        return select_units({name: value.numpy() for name, value in self.top.state().items()}, units)

    def _merge(self, numbers: Iterable[int], state: Mapping[str, Any]) -> None:
        part = TopValues(len(self.plan.units), self.top.values.shape[1])
        part.load(state)
        self.top.merge(part)
        self.done[list(numbers)] = True
