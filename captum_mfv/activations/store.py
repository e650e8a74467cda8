"""A row of numbers for each image of a dataset, in memory or in files from which a stopped pass resumes."""

from __future__ import annotations

import hashlib
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
from captum_mfv.storage.identity import canonical, check_same
from captum_mfv.storage.untrusted import inside, read_json

__all__ = ["Store"]

_FORMAT = 1
_SECONDS = 2.0  # between two writes of the state from which a stopped pass resumes


class Store:
    """Named arrays with a row for each image, written in the order of the images.

    Rows of images that can't be read are NaN (-1 in arrays of integers).

    Args:
        n_images: number of rows.
        parts: everything that the rows depend on, by name, as `storage.identity.fingerprint` takes it.
        folder: folder of the arrays, which are memory-mapped; None keeps them in memory.

    Attributes:
        n_done: number of images processed, from the first on.

    Raises:
        RunError: if the folder holds the rows of another pass, or something else; the folder is left unchanged.
    """

    def __init__(self, n_images: int, parts: Mapping[str, Any], folder: str | os.PathLike[str] | None = None) -> None:
        self.n_images = n_images
        self.n_done = 0
        self._parts = canonical({"format": _FORMAT, "n_images": n_images, **parts})
        self._folder = None if folder is None else Path(folder)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._sums: dict[str, tuple[Any, int]] = {}
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
        self._rewind(indices[0])
        end = indices[-1] + 1
        for name, values in rows.items():
            if name not in self._arrays:
                self._arrays[name] = self._new(name, values.shape[1:], values.dtype)
            self._skip(name, end)
            self._arrays[name][list(indices)] = values
        self.n_done = end
        if monotonic() - self._noted > _SECONDS:
            self._note()

    def _rewind(self, n_done: int) -> None:
        """Forget rows that are written again, first in the saved state, so that its checksums stay true."""
        if n_done < self.n_done:
            self.n_done, self._sums = n_done, {}
            self._note()

    def check(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Check that the arrays have the shape and type of some rows.

        Raises:
            RunError: if an array is missing, not among the rows, or has another shape or type.
        """
        wanted = {name: (values.shape[1:], values.dtype) for name, values in rows.items()}
        found = {name: (array.shape[1:], array.dtype) for name, array in self._arrays.items()}
        if found != wanted:
            raise RunError(f"{self._folder} can't be continued: its arrays are {found}, not {wanted}")

    def finish(self) -> None:
        """Mark the pass as complete and write its state."""
        for name in self._arrays:
            self._skip(name, self.n_images)
        self.n_done = self.n_images
        self._note()

    def _skip(self, name: str, end: int) -> None:
        """Mark the rows up to ``end`` as not readable; `write` then overwrites those that are."""
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
        state = {"parts": self._parts, "n_done": self.n_done, "arrays": self._checksums()}
        write_whole(self._folder / "state.json", json.dumps(state).encode())
        self._noted = monotonic()

    def _checksums(self) -> dict[str, str]:
        """SHA-256 of the processed rows by array; only rows since the last call are read."""
        for name, array in self._arrays.items():
            total, n_rows = self._sums.get(name, (hashlib.sha256(), 0))
            total.update(np.ascontiguousarray(array[n_rows : self.n_done]).data)
            self._sums[name] = total, self.n_done
        return {name: total.hexdigest() for name, (total, _) in self._sums.items()}

    def _continue(self, folder: Path) -> None:
        """Open the arrays of an earlier pass; a pass that was stopped before its first state left none."""
        if not (folder / "state.json").exists():
            if not folder.is_dir() or any(item.suffix != ".npy" for item in folder.iterdir() if item.name[0] != "."):
                raise RunError(f"{folder} holds something other than the rows of a pass; choose another folder")
            return
        try:
            state = read_json(inside(folder, "state.json"))
            parts, n_done, sums = dict(state["parts"]), int(state["n_done"]), dict(state["arrays"])
            if not all(str(name).isidentifier() for name in sums):  # a path would lead out of the folder
                raise ValueError(f"arrays can't be called {list(sums)}")
            arrays = {str(name): _opened(inside(folder, f"{name}.npy")) for name in sums}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder} can't be continued: {error}") from error
        check_same(parts, self._parts, f"{folder} holds another pass", "choose another folder")
        if not 0 <= n_done <= self.n_images or any(len(array) != self.n_images for array in arrays.values()):
            raise RunError(f"{folder} can't be continued: its arrays have another length")
        self._arrays, self.n_done = arrays, n_done
        if self._checksums() != sums:
            raise RunError(f"{folder} can't be continued: it was changed; remove it to begin anew")


def _opened(path: Path) -> NDArray[Any]:
    """Open a complete array for writing.

    Raises:
        ValueError: if the file is incomplete or not an array with rows.
    """
    try:
        rows = np.lib.format.open_memmap(path, "r")  # opened for writing, a file that is too short would be extended
    except Exception as error:  # the reader raises many types on hostile bytes
        raise ValueError(f"{path.name} can't be read: {error}") from error
    if not rows.ndim:
        raise ValueError(f"{path.name} holds no rows")
    del rows
    return np.lib.format.open_memmap(path, "r+")
