"""Checked reading of untrusted input: files within a folder, JSON and arrays of bounded size, and text to show."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_mfv.storage.sharing import retry_denied

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "inside",
    "is_file",
    "is_folder",
    "parse_json",
    "read_array",
    "read_json",
    "read_text",
    "visible",
    "within",
]

_MOST_BYTES = 2**29
_DEEPEST = 50
_LARGEST = 1e100  # keeps sums of squares finite


is_file, is_folder = os.path.isfile, os.path.isdir
"""Whether there is a regular file, or a folder; False for names that no system takes."""


def read_text(path: Path) -> str:
    """Return the text of a file; raise ValueError if it is over half a gigabyte or not regular, OSError as `open` does.

    Bytes that aren't UTF-8 are escaped.
    """
    if path.exists() and not path.is_file():  # a pipe would block
        raise ValueError("not a regular file")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    return retry_denied(lambda: path.read_text(encoding="utf-8", errors="surrogateescape"))


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; raise the errors of `read_text` and `parse_json`."""
    return parse_json(read_text(path))


def read_array(path: str | os.PathLike[str], most: int) -> NDArray[Any]:
    """Return the real numbers in a file of `numpy.save`, in their own type.

    Raises:
        ValueError: if the file holds anything else, or more than ``most`` numbers.
    """
    import numpy as np  # here, so that the command's help doesn't wait for it

    try:
        if not is_file(path):  # a pipe would block
            raise ValueError("not a regular file")
        values = np.load(path, mmap_mode="r", allow_pickle=False)  # the header of a hostile file may name any size
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
            raise ValueError("not an array of integers or floating-point numbers")
        if values.size > most:
            raise ValueError(f"{values.size} numbers are more than {most}")
        return np.array(values)
    except Exception as error:  # the reader raises many types on hostile bytes
        raise ValueError(str(error)) from error


def parse_json(text: str) -> Any:
    """Parse JSON; raise ValueError for other text, deep nesting, and numbers that are not finite or over 1e100."""
    try:
        value = json.loads(text, parse_float=_number, parse_int=_number, parse_constant=_number)
        _check_depth(value, _DEEPEST)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _number(text: str) -> int | float:
    number = float(text)
    if not abs(number) <= _LARGEST:
        raise ValueError(f"{text[:40]} isn't a number that can be used")
    return int(text) if text.lstrip("-").isdigit() else number


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, (dict, list)):
        return
    if not left:
        raise ValueError("nested too deeply")
    for part in value.values() if isinstance(value, dict) else value:
        _check_depth(part, left - 1)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, which need not exist.

    Raises:
        ValueError: if a link leads out of the folder, or the path exists and is not a regular file.
    """
    path = within(folder, name)
    try:
        mode = path.stat().st_mode  # once: another process may remove the file between two checks
    except (FileNotFoundError, NotADirectoryError):
        return path
    except OSError as error:  # links in a circle, which `resolve` doesn't refuse from Python 3.13 on
        raise ValueError(f"{name} can't be followed: {error}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name} isn't a regular file")
    return path


def within(folder: Path, name: str) -> Path:
    """Return the path of a file or folder in a folder, which need not exist; ValueError if a link leads out."""
    path = folder / name
    try:
        leads_out = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f"{name} can't be followed: {error}") from error
    if leads_out:
        raise ValueError(f"{name} leads out of the folder")
    return path


def visible(value: object) -> str:
    """Return text in which symbols replace control characters, and ``?`` replaces characters outside of Unicode.

    >>> visible("a\\x1b[31mb")
    'a␛[31mb'
    """
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 0x20 else "\u2421" if c == "\x7f" else c for c in str(value))
    shown = "".join("\ufffd" if 0x80 <= ord(c) < 0xA0 else c for c in shown)
    return shown.encode("utf-8", "replace").decode()
