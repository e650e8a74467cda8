"""Files that one process replaces while others read them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["retry_denied"]

_PAUSES = (0.01, 0.02, 0.04, 0.08, 0.16)  # seconds

T = TypeVar("T")


def retry_denied(action: Callable[[], T]) -> T:
    """Return what an action on a file returns; retry after a PermissionError, for a third of a second at most.

    Windows refuses to replace a file that another process reads, and to open a file that is being replaced.
    """
    for pause in _PAUSES:
        try:
            return action()
        except PermissionError:
            time.sleep(pause)
    return action()
