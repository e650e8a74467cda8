"""Progress of what can't say how much of it is left; what can has a bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from tqdm import tqdm

__all__ = ["waiting"]

_EVERY = 0.5  # seconds


@contextmanager
def waiting(title: str, progress: bool) -> Iterator[None]:
    """How long something has been going on, on a line that is gone when it ends.

    Args:
        title: what.
        progress: whether to show it.
    """
    with tqdm(desc=title, bar_format="{desc}: {elapsed}", leave=False, disable=not progress) as line:
        ended = Event()
        clock = Thread(target=_tick, args=(line, ended), daemon=True)
        if progress:
            clock.start()
        try:
            yield
        finally:
            ended.set()
            if progress:
                clock.join()


def _tick(line: tqdm[None], ended: Event) -> None:
    while not ended.wait(_EVERY):
        line.refresh()
