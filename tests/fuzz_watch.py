"""What fuzzing watches over: an input is used or refused by name, and nothing outside some folders is opened."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st

import captum_mfv as mfv
from captum_mfv.errors import MFVError


class Watch:
    """Notes what is opened, listed or started outside of some folders; an audit hook can't be taken away again."""

    LIBRARIES = tuple(
        os.path.realpath(path) for path in {sys.prefix, sys.base_prefix, *filter(None, sys.path), mfv.__path__[0]}
    )

    def __init__(self) -> None:
        self.folders: tuple[str, ...] = ()
        self.listed: tuple[str, ...] = ()
        self.outside: list[str] = []
        self.thread: int | None = None
        sys.addaudithook(self._note)

    @contextmanager
    def over(self, *folders: Path, listed: tuple[Path, ...] = ()):
        """Inside, whatever lies in none of the folders is noted; ``listed`` may be listed, no more."""
        self.folders, self.listed = tuple(map(os.path.realpath, folders)), tuple(map(os.path.realpath, listed))
        self.outside.clear()
        self.thread = threading.get_ident()
        try:
            yield self
        finally:
            self.thread = None

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.thread is None or event not in self._EVENTS:
            return
        thread, self.thread = self.thread, None  # what is done here isn't looked at
        try:
            self._EVENTS[event](self, event, *arguments)
        finally:
            self.thread = thread

    def _path(self, event: str, path: Any = None, *_: Any) -> None:
        if isinstance(path, int):
            return
        found = os.path.realpath(os.fsdecode("." if path is None else path))
        allowed = self.folders + self.LIBRARIES + ((*self.listed,) if event in ("os.listdir", "os.scandir") else ())
        allowed += ("/dev/null", f"/proc/{os.getpid()}/maps")  # the latter of threadpoolctl
        if not any(found == folder or found.startswith(f"{folder}/") for folder in allowed):
            self.outside.append(f"{event} {found!r}")

    def _code(self, event: str, code: Any) -> None:
        name = getattr(code, "co_filename", "<")
        if not name.startswith(("<", *self.LIBRARIES)):
            self.outside.append(f"{event} {name!r}")

    def _never(self, event: str, *what: Any) -> None:
        self.outside.append(f"{event} {what[:1]}")

    _EVENTS: ClassVar = {
        **dict.fromkeys(("open", "os.listdir", "os.scandir"), _path),
        "exec": _code,
        **dict.fromkeys(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"), _never),
    }


WATCH = Watch()


@dataclass(frozen=True)
class Target:
    """What is fuzzed: inputs, and what is done with one; `MFVError` is an answer, any other error a bug.

    Args:
        name: what it is called.
        inputs: the strategy.
        use: what is done with an input.
        folders: where files may be opened.
        listed: folders that may be listed, and no more.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    use: Callable[[Any], object]
    folders: tuple[Path, ...]
    listed: tuple[Path, ...] = ()

    def accepts(self, value: Any) -> bool:
        """Whether an input is used; False: it is refused by name.

        Raises:
            AssertionError: if anything outside the folders was opened.
            Exception: whatever else comes: a bug.
        """
        with WATCH.over(*self.folders, listed=self.listed):
            try:
                self.use(value)
                accepted = True
            except MFVError as error:
                assert str(error)
                accepted = False
        if WATCH.outside:
            raise ReadOutside(", ".join(WATCH.outside))
        return accepted


class ReadOutside(AssertionError):
    """Something outside the folders was opened, listed or run."""
