"""A row of numbers for each image of a dataset, in memory or in files that a stopped pass goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_mfv.errors import RunError
from captum_mfv.storage.files import write_whole
from captum_mfv.storage.untrusted import inside, read_json

__all__ = ["Store"]

_FORMAT = 1
_SECONDS = 2.0  # between two notes of how far the pass came


class Store:
    """Named arrays with a row for each image, written in the images' order.

    Rows of images that were passed over are NaN (-1 in arrays of integers).

    Args:
        n_images: number of rows.
        facts: all that the rows depend on, JSON values by name; they tell one pass from another.
        folder: where the arrays lie, memory-mapped; None: in memory.

    Attributes:
        n_done: images dealt with, from the first on.

    Raises:
        RunError: if the folder holds another pass's rows, or something else; nothing of it is touched.
    """

    def __init__(self, n_images: int, facts: Mapping[str, Any], folder: str | os.PathLike[str] | None = None) -> None:
        self.n_images = n_images
        self.n_done = 0
        self._facts = json.loads(json.dumps({"format": _FORMAT, "n_images": n_images, **facts}))
        self._folder = None if folder is None else Path(folder)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._noted = monotonic()
        if self._folder is not None and self._folder.exists():
            self._continue(self._folder)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """An array, (n_images, …)."""
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def write(self, indices: Sequence[int], rows: Mapping[str, NDArray[Any]]) -> None:
        """Write the rows of some images, all after those written before."""
        end = indices[-1] + 1
        for name, values in rows.items():
            if name not in self._arrays:
                self._arrays[name] = self._new(name, values.shape[1:], values.dtype)
            self._skip(name, end)
            self._arrays[name][list(indices)] = values
        self.n_done = end
        if monotonic() - self._noted > _SECONDS:
            self._note()

    def check(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Refuse arrays that aren't such as some rows would make.

        Raises:
            RunError: if they aren't.
        """
        wanted = {name: (values.shape[1:], values.dtype) for name, values in rows.items()}
        found = {name: (array.shape[1:], array.dtype) for name, array in self._arrays.items()}
        if found != wanted:
            raise RunError(f"{self._folder} can't be continued: its arrays are {found}, not {wanted}")

    def finish(self) -> None:
        """Note that every image was dealt with."""
        for name in self._arrays:
            self._skip(name, self.n_images)
        self.n_done = self.n_images
        self._note()

    def _skip(self, name: str, end: int) -> None:
        """Mark the rows up to an end as passed over; those that weren't are written next."""
        array = self._arrays[name]
        array[self.n_done : end] = np.nan if array.dtype.kind == "f" else -1

    def _new(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        if self._folder is None:
            return np.empty((self.n_images, *shape), dtype)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            path = inside(self._folder, f"{name}.npy")
        except ValueError as error:
            raise RunError(f"{self._folder}: {error}") from error
        array = np.lib.format.open_memmap(path, "w+", dtype, (self.n_images, *shape))
        if hasattr(os, "posix_fallocate"):  # a write into a mapped file kills the process where the disk is full
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    def _note(self) -> None:
        if self._folder is None or not self._arrays:
            return
        for array in self._arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        state = {"facts": self._facts, "n_done": self.n_done, "arrays": list(self._arrays)}
        write_whole(self._folder / "state.json", json.dumps(state).encode())
        self._noted = monotonic()

    def _continue(self, folder: Path) -> None:
        """Take up what an earlier pass left; a pass that was stopped before its first note left nothing."""
        if not (folder / "state.json").exists():
            if not folder.is_dir() or any(item.suffix != ".npy" for item in folder.iterdir() if item.name[0] != "."):
                raise RunError(f"{folder} holds something else than rows of a pass; choose another folder")
            return
        try:
            state = read_json(inside(folder, "state.json"))
            facts, n_done, names = dict(state["facts"]), int(state["n_done"]), list(state["arrays"])
            if not all(str(name).isidentifier() for name in names):  # a path would lead out of the folder
                raise ValueError(f"arrays can't be called {names}")
            arrays = {str(name): _opened(inside(folder, f"{name}.npy")) for name in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder} can't be continued: {error}") from error
        other = [name for name in self._facts if facts.get(name) != self._facts[name]]
        if other:
            raise RunError(f"{folder} holds another pass (its {', '.join(other)} differ); choose another folder")
        if any(len(array) != self.n_images for array in arrays.values()):
            raise RunError(f"{folder} can't be continued: its arrays have another length")
        self._arrays, self.n_done = arrays, n_done


def _opened(path: Path) -> NDArray[Any]:
    """An array that is there in whole, to write to.

    Raises:
        ValueError: if it isn't.
    """
    try:
        rows = np.lib.format.open_memmap(path, "r")  # to write to, a file that is too short would be extended
    except Exception as error:  # on hostile bytes the reader raises all sorts
        raise ValueError(f"{path.name} can't be read: {error}") from error
    if not rows.ndim:
        raise ValueError(f"{path.name} holds no rows")
    del rows
    return np.lib.format.open_memmap(path, "r+")
