"""Locks that let one process at a time work on a folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from captum_mfv.errors import RunError
from captum_mfv.storage.untrusted import inside

__all__ = ["hold"]

_LOCK, _OWNER = ".lock", ".owner"


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
        owner = inside(path, _OWNER)  # never write through a link
        lock = FileLock(inside(path, _LOCK), timeout=0)
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
        return inside(path, _OWNER).read_text(encoding="utf-8", errors="replace")[:200] or "another process"
    except (OSError, ValueError):
        return "another process"
