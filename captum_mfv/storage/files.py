"""Files of a result: written atomically, checkpoints from which work resumes, and a lock on their folder."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captum_mfv.errors import RunError
from captum_mfv.storage.identity import canonical, check_same, content_fingerprint, fingerprint
from captum_mfv.storage.sharing import retry_denied
from captum_mfv.storage.untrusted import inside, parse_json

__all__ = ["Checkpoint", "hold", "remove", "sweep", "tensor_file", "write_folder", "write_whole"]

_PART = ".part"
_LEFT = re.compile(r"\..+\.[a-z0-9_]{8}\.part")


def sweep(folder: Path) -> None:
    """Remove temporary files of killed writes from a folder in which no other process writes."""
    for path in folder.glob(f".*{_PART}"):
        if _LEFT.fullmatch(path.name):
            remove(path)


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
        retry_denied(lambda: beside.replace(path))
        if os.name == "posix":  # elsewhere, folders can't be synced
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # so that the rename survives a power failure
            finally:
                os.close(folder)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write files, by their relative paths, to a temporary folder beside ``path`` and rename it to ``path``.

    A folder that is there is replaced, with everything in it.
    """
    new, old = (path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}{_PART}") for _ in range(2))
    try:
        for name, content in files.items():
            file = new / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if hasattr(os, "sync"):
            os.sync()  # once, not for each of thousands of files
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        remove(new)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    remove(old)


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


class Checkpoint:
    """A safetensors file with the state of some work, replaced every few ``seconds``.

    ``parts`` is everything that the state depends on, by name, as `storage.identity.fingerprint` takes it; ``what`` is
    a noun for the work, for error messages.
    """

    def __init__(
        self, path: str | os.PathLike[str], parts: Mapping[str, Any], *, what: str = "rendering", seconds: float = 15.0
    ) -> None:
        self.path = Path(path)
        self._what = what
        self._seconds = seconds
        self._parts = canonical(parts)
        self._saved = monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return monotonic() - self._saved >= self._seconds

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replace the saved state."""
        state = {name: value.detach().cpu() for name, value in state.items()}
        metadata = {"parts": json.dumps(self._parts), "content": _content(state)}
        write_whole(self.path, tensor_file({name: value.numpy() for name, value in state.items()}, metadata))
        self._saved = monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """Return the saved state, None without a file; RunError, if the file was changed or is of other work."""
        if not self.path.exists():
            return None
        with self.reading():
            if not self.path.is_file():  # a pipe would block
                raise ValueError("not a regular file")
            with safe_open(self.path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                # Copies, since a mapped file could be changed meanwhile, and on Windows could not be replaced
                state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            parts, unchanged = dict(parse_json(metadata["parts"])), metadata.get("content") == _content(state)
        check_same(parts, self._parts, f"{self.path} holds another {self._what}", "choose another file")
        with self.reading():
            if not unchanged:
                raise ValueError("it was changed")
        return state

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Re-raise errors of reading the file, or of using its state, as a RunError that names the file."""
        try:
            yield
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise RunError(f"{self.path} can't be continued: {error}; remove it to start again") from error


def _content(state: Mapping[str, Tensor]) -> str:
    return fingerprint(**{name: content_fingerprint(value) for name, value in state.items()})


@contextmanager
def hold(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder against other processes; the operating system releases the lock when this process dies.

    The folder is created if it doesn't exist, and its lock file stays in it.

    Raises:
        RunError: if another process holds the lock, naming that process, or the folder can't be created or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        owner = inside(path, ".owner")  # never write through a link
        lock = FileLock(inside(path, ".lock"), timeout=0)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be a run's folder: {error}; choose another folder for the run") from error
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{path} is in use by {_owner(path)}; wait until it is done, or choose another folder") from None
    except OSError as error:
        raise RunError(f"{path} can't be written to: {error}") from error
    try:
        since = datetime.now().astimezone().isoformat(" ", "minutes")
        owner.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()  # the file stays: another process may have opened it, and would lock a file without a name


def _owner(path: Path) -> str:
    try:
        return inside(path, ".owner").read_text(encoding="utf-8", errors="replace")[:200] or "another process"
    except (OSError, ValueError):
        return "another process"
