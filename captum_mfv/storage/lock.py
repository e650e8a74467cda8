"""One process at a time in a folder."""

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
    """Keep other processes out of a folder, which is made if need be; the system frees it when this one dies.

    Raises:
        RunError: if another process holds it, naming which, or it can't be made.
    """
    path = Path(folder)
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        owner = inside(path, _OWNER)  # what is written through a link would be lost
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
        lock.release()
        if made and [item.name for item in path.iterdir()] == [_LOCK]:  # nothing came of it
            (path / _LOCK).unlink()
            path.rmdir()


def _owner(path: Path) -> str:
    try:
        return inside(path, _OWNER).read_text(encoding="utf-8", errors="replace")[:200] or "another process"
    except (OSError, ValueError):
        return "another process"
