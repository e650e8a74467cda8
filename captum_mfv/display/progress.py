"""Progress of long work on standard error: bars on a terminal and in notebooks, elsewhere a line a minute."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Any

from tqdm import tqdm

__all__ = ["Progress", "on_terminal", "waiting"]

_EVERY = 0.5  # seconds between two updates of `waiting`
_LINE_EVERY = 60.0  # seconds between two lines where there is no terminal


def on_terminal() -> bool:
    """Whether standard error is a terminal or a notebook's output, on which bars can move."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Progress(tqdm):  # type: ignore[misc]
    """A tqdm bar on a terminal or in a notebook; elsewhere a line a minute, and none for shorter work."""

    disable: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        self._lines, self._shown = not on_terminal(), monotonic()
        if self._lines:
            options.setdefault("bar_format", "{desc}: {n_fmt} of {total_fmt} {unit}s, {rate_fmt}, {elapsed} elapsed")
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the bar; where there is no terminal, print a line if the last one is a minute old."""
        if not self._lines:
            super().display(msg, pos)
        elif monotonic() - self._shown >= _LINE_EVERY:
            self._shown = monotonic()
            print(msg or str(self), file=sys.stderr, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """Remove the bar from the terminal, if there is one."""
        if not self._lines:
            super().clear(nolock)

    def close(self) -> None:
        """End the bar and leave it on the terminal, if there is one."""
        if not self._lines:
            super().close()
        elif not self.disable:
            self.disable = True
            self._decr_instances(self)


@contextmanager
def waiting(title: str, progress: bool) -> Iterator[None]:
    """Show the elapsed time of work of unknown length, on a line that is removed at the end, if progress is shown."""
    with Progress(desc=title, bar_format="{desc}: {elapsed}", leave=False, disable=not progress) as line:
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


def _tick(line: Progress, ended: Event) -> None:
    while not ended.wait(_EVERY):
        line.refresh()
