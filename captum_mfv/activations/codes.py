"""A unit's activation and a code for every image of a dataset, collected in one pass that can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.batching import Scan
from captum_mfv.activations.capture import Outputs
from captum_mfv.activations.layers import resolve
from captum_mfv.errors import ImageError, RunError
from captum_mfv.images import Images, InputSpec
from captum_mfv.storage.files import write_whole
from captum_mfv.storage.identity import canonical, check_same, dataset_fingerprint
from captum_mfv.storage.schema import check_integer
from captum_mfv.storage.untrusted import inside, read_json
from captum_mfv.units import Code, Unit

__all__ = ["CodeFn", "Collection", "Store", "collect"]

CodeFn: TypeAlias = Callable[[Tensor], Tensor]
_FORMAT = 1
_SECONDS = 2.0  # between two writes of the state from which a stopped pass resumes


@dataclass(frozen=True, eq=False)
class Collection:
    """A unit's activation and a code for each image of a dataset; NaN for images that can't be read.

    Args:
        unit: the unit, its layer by name.
        code: the code, its layer by name.
        indices: (n,) indices of the images that could be read.
        activations: (n_images,) float32, the unit's activation.
        codes: (n_images, D) float32.
        fn_codes: (n_images, D') float32, outputs of ``code_fn``, or None.
    """

    unit: Unit
    code: Code
    indices: NDArray[np.int64]
    activations: NDArray[np.float32]
    codes: NDArray[np.float32]
    fn_codes: NDArray[np.float32] | None


def collect(
    model: nn.Module,
    unit: Unit | str,
    images: Images,
    *,
    code: Code | str | nn.Module | None = None,
    code_fn: CodeFn | None = None,
    input_spec: InputSpec | None = None,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    key: str | None = None,
    progress: bool = False,
) -> Collection:
    """Collect a unit's activation and a code for every image of a dataset in one pass.

    Args:
        model: any PyTorch vision model; it is left unchanged.
        unit: the unit, or ``"layer:index"``.
        images: a map-style dataset of images in [0, 1].
        code: which numbers describe an image: a `Code`, ``"layer"`` (averaged over positions), ``"layer:reduce"`` or a
            module of the model. By default the last layer with positions before the unit and below a
            head of 1 x 1 convolutions, averaged over positions.
        code_fn: another code: a function from images in [0, 1], (N, C, H, W), to (N, D').
        input_spec: preprocessing of the model's input.
        batch_size: images per batch; on a CPU, forward passes may process fewer.
        store: a folder for the rows, memory-mapped, from which the same call resumes a stopped pass. Another batch
            size or device is allowed and changes rows by rounding. By default rows are held in memory.
        key: a name for the dataset and the code function, to be changed whenever their results change. Needed with
            ``store`` if one has no fingerprint: functions, and datasets other than `ImageFolder`, `TopImages`, tensors
            and arrays that don't declare a ``fingerprint``.
        progress: show a progress bar.

    Raises:
        TypeError: if the unit, the code or the batch size is of another type.
        ValueError: if the batch size is below 1.
        UnitError: if the unit or the code isn't in the model, or is ambiguous.
        ImageError: if no image can be read.
        RunError: if the store holds rows of another model, unit, code or dataset, or ``key`` is needed.
    """
    batch_size = check_integer(batch_size, "batch_size", 1)
    spec = input_spec or InputSpec()
    unit, code = resolve(model, unit, code, spec)

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        rows = {"activations": unit.read(outputs[unit.layer_name]), "codes": code.read(outputs[code.layer])}
        return rows if code_fn is None else {**rows, "fn_codes": _codes(code_fn, batch.to(rows["codes"].device))}

    scan = Scan(model, images, spec, [unit.layer_name, code.layer], read, batch_size, key, progress)
    if store is None:  # hashing weights and datasets takes a while
        rows = Store(len(images), {})
    else:
        stored_fn = None if code_fn is None else dataset_fingerprint(code_fn, key)
        rows = Store(len(images), scan.identity(unit=unit, code=code, code_fn=stored_fn), store)
    _fill(rows, scan)
    indices, found = np.flatnonzero(rows.arrays["read"] == 1), rows.arrays
    return Collection(unit, code, indices, found["activations"], found["codes"], found.get("fn_codes"))


def _fill(rows: Store, scan: Scan) -> None:
    """Write the rows that an earlier pass has not written."""
    done = rows.n_done
    if done:
        rows.check(_arrays(scan.gray_row()))
    # From the start of a batch, since floating-point sums depend on the batch composition
    start = done if done == len(scan.images) else done - done % scan.batch_size
    scan.run(lambda indices, found: rows.write(indices, _arrays(found)), start)
    if not rows.arrays:
        raise ImageError("no image can be read")
    rows.finish()


def _arrays(outputs: Outputs) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays, and as ``read`` a 1 for each image."""
    values = {name: value.detach().cpu() for name, value in outputs.items()}
    arrays = {name: (value.float() if value.is_floating_point() else value).numpy() for name, value in values.items()}
    return {"read": np.ones(len(arrays["codes"]), np.int8), **arrays}


def _codes(code_fn: CodeFn, batch: Tensor) -> Tensor:
    codes = code_fn(batch)
    if not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) != len(batch):
        found = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"a code function must return ({len(batch)}, D) for {len(batch)} images, not {found}")
    return codes


class Store:
    """Named arrays with a row for each image, written in the order of the images, in memory or memory-mapped.

    Rows of images that can't be read are NaN (-1 in arrays of integers). The first ``n_done`` images are processed.
    ``parts`` is everything that the rows depend on, by name, as `storage.identity.fingerprint` takes it.

    Raises:
        RunError: if the folder holds the rows of another pass, or something else; the folder is left unchanged.
    """

    def __init__(self, n_images: int, parts: Mapping[str, Any], folder: str | os.PathLike[str] | None = None) -> None:
        self.n_images = n_images
        self.n_done = 0
        self._parts = canonical({"format": _FORMAT, "n_images": n_images, **parts})
        self._folder = None if folder is None else Path(folder)
        self.arrays: dict[str, NDArray[Any]] = {}  # (n_images, …), by name
        self._sums: dict[str, tuple[Any, int]] = {}
        self._noted = monotonic()
        if self._folder is not None and self._folder.exists():
            self._continue(self._folder)

    def write(self, indices: Sequence[int], rows: Mapping[str, NDArray[Any]]) -> None:
        """Write the rows of some images, all after those written before."""
        if indices[0] < self.n_done:  # rows are written again: the saved state first, so that its checksums stay true
            self.n_done, self._sums = indices[0], {}
            self._note()
        end = indices[-1] + 1
        for name, values in rows.items():
            if name not in self.arrays:
                self.arrays[name] = self._new(name, values.shape[1:], values.dtype)
            self._skip(name, end)
            self.arrays[name][list(indices)] = values
        self.n_done = end
        if monotonic() - self._noted > _SECONDS:
            self._note()

    def check(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Raise RunError if the arrays don't have the names, shapes and types of some rows."""
        wanted = {name: (values.shape[1:], values.dtype) for name, values in rows.items()}
        found = {name: (array.shape[1:], array.dtype) for name, array in self.arrays.items()}
        if found != wanted:
            raise RunError(f"{self._folder} can't be continued: its arrays are {found}, not {wanted}")

    def finish(self) -> None:
        """Mark the pass as complete and write its state."""
        for name in self.arrays:
            self._skip(name, self.n_images)
        self.n_done = self.n_images
        self._note()

    def _skip(self, name: str, end: int) -> None:
        """Mark the rows up to ``end`` as not readable; `write` then overwrites those that are."""
        array = self.arrays[name]
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
        if self._folder is None or not self.arrays:
            return
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        state = {"parts": self._parts, "n_done": self.n_done, "arrays": self._checksums()}
        write_whole(self._folder / "state.json", json.dumps(state).encode())
        self._noted = monotonic()

    def _checksums(self) -> dict[str, str]:
        """Return the SHA-256 of each array's processed rows; only rows since the last call are read."""
        for name, array in self.arrays.items():
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
        self.arrays, self.n_done = arrays, n_done
        if self._checksums() != sums:
            raise RunError(f"{folder} can't be continued: it was changed; remove it to start again")


def _opened(path: Path) -> NDArray[Any]:
    """Open a complete array for writing; ValueError if the file is incomplete or not an array with rows."""
    try:
        rows = np.lib.format.open_memmap(path, "r")  # opened for writing, a file that is too short would be extended
    except Exception as error:  # the reader raises many types on hostile bytes
        raise ValueError(f"{path.name} can't be read: {error}") from error
    if not rows.ndim:
        raise ValueError(f"{path.name} holds no rows")
    del rows
    return np.lib.format.open_memmap(path, "r+")
