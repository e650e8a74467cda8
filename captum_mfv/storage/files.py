"""Write files atomically: a reader sees a complete file or none."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["remove", "sweep", "tensor_file", "write_whole"]

_PART = ".part"
_LEFT = re.compile(r"\..+\.[a-z0-9_]{8}\.part")


def sweep(folder: Path) -> None:
    """Remove temporary files of killed writes from a folder in which no other process writes."""
    for path in folder.glob(f".*{_PART}"):
        if _LEFT.fullmatch(path.name):
            path.unlink()


def remove(path: Path) -> None:
    """Remove a file, a folder or a link itself, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a temporary file in the same folder, sync it to disk and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}{_PART}")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def tensor_file(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file, deterministic: the library itself shuffles the metadata."""
    from safetensors.numpy import save

    together = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}  # 0-d too
    content = save(together, metadata=dict(metadata))
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[data:]


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, where folders can be synced."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
