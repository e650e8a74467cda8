"""File of a facet set: arrays and a JSON header in one safetensors file that anyone may have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_mfv.storage.schema import Integer, Number, Record, validate
from captum_mfv.storage.untrusted import inside, parse_json

__all__ = ["ARRAYS", "LARGEST_CODE", "Header", "read_file"]

ARRAYS = ("labels", "embedding", "codes", "activations")
"""Arrays of a facet set, one row per image."""

LARGEST_CODE = 1e15
"""Largest magnitude of codes and activations; keeps sums of squares finite in float32."""


class _CodeRecord(Record):
    layer: str
    reduce: str
    channels: str | None = None


class _UnitRecord(_CodeRecord):
    index: Integer | list[Number]


class Header(Record):
    """What a facet set's file holds in addition to its arrays."""

    unit: _UnitRecord
    code: _CodeRecord
    p_value: Number | None
    stability: tuple[Number, ...] | None = None
    stability_interval: tuple[tuple[Number, Number], ...] | None = None


def read_file(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read and validate the arrays and the header of a facet set.

    Args:
        path: the file, or the folder of a run that has one.

    Returns:
        Arrays by name, and the header's values by name.

    Raises:
        ValueError: if the arrays or the header are not those of a facet set.
        OSError, KeyError, safetensors.SafetensorError: if the file cannot be read.
    """
    from safetensors import safe_open

    with safe_open(_file_of(path), framework="numpy") as file:
        header = {name: parse_json(text) for name, text in (file.metadata() or {}).items()}
        arrays = {name: file.get_tensor(name) for name in ARRAYS}
    validate(Header, header, "header")
    return _validated(arrays), header


def _file_of(path: Path) -> Path:
    """Return the file of a facet set; refuse pipes and devices, which would block."""
    if path.is_dir():
        return inside(path, "tensors.safetensors")
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    return path


def _validated(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays as int64 and float32; raise ValueError if shapes, types or values are wrong."""
    axes = {name: array.ndim for name, array in arrays.items()}
    if axes != {"labels": 1, "embedding": 2, "codes": 2, "activations": 1} or not all(a.size for a in arrays.values()):
        raise ValueError(f"arrays of shapes {', '.join(str(array.shape) for array in arrays.values())}")
    if arrays["labels"].dtype.kind != "i" or any(arrays[name].dtype.kind != "f" for name in ARRAYS[1:]):
        raise ValueError("labels must be integers, all other arrays floating-point numbers")
    with np.errstate(over="ignore"):
        floats = {name: arrays[name].astype(np.float32) for name in ARRAYS[1:]}
    labels, readable = arrays["labels"].astype(np.int64), np.isfinite(floats["activations"])
    for name, array in floats.items():
        _check_rows(name, array.reshape(len(array), -1), readable)
    if labels.min() < -1 or (labels[~readable] >= 0).any():
        raise ValueError("labels must be facet numbers of readable images, or -1")
    return {"labels": labels, **floats}


def _check_rows(name: str, rows: NDArray[np.float32], readable: NDArray[np.bool_]) -> None:
    finite = np.isfinite(rows).all(1)
    if not np.array_equal(finite, readable) or not np.array_equal(finite, ~np.isnan(rows).all(1)):
        raise ValueError(f"{name} must be finite, or NaN for unreadable images")
    if (np.abs(rows[finite]) > LARGEST_CODE).any():
        raise ValueError(f"{name} above {LARGEST_CODE:g} would make distances overflow")
