"""Checks of fuzzing: an input is accepted or raises an `MFVError`, and no file outside the folders is opened."""

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
    """Records accesses outside the folders with an audit hook, which cannot be removed."""

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
        """Record accesses outside the folders in this context; ``listed`` folders may only be listed."""
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
        thread, self.thread = self.thread, None  # the hook's accesses are not recorded
        try:
            self._EVENTS[event](self, event, *arguments)
        finally:
            self.thread = thread

    def _path(self, event: str, path: Any = None, *_: Any) -> None:
        if isinstance(path, int):
            return
        found = os.path.realpath(os.fsdecode("." if path is None else path))
        allowed = self.folders + self.LIBRARIES + ((*self.listed,) if event in ("os.listdir", "os.scandir") else ())
        allowed += ("/dev/null", f"/proc/{os.getpid()}/maps")  # the latter is opened by threadpoolctl
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
    """A function to fuzz and its inputs; an `MFVError` rejects an input, any other error is a bug.

    Args:
        name: name of the target.
        inputs: strategy of the inputs.
        use: function that is called with an input.
        folders: folders in which files may be opened.
        listed: folders that may only be listed.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    use: Callable[[Any], object]
    folders: tuple[Path, ...]
    listed: tuple[Path, ...] = ()

    def accepts(self, value: Any) -> bool:
        """Return whether an input is accepted; False: it raises an `MFVError`.

        Raises:
            AssertionError: if a file outside the folders was opened.
            Exception: any other error, which is a bug.
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
    """A file outside the folders was opened, listed or executed."""
