"""Files from which interrupted work resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from captum_mfv.errors import RunError
from captum_mfv.storage.files import tensor_file, write_whole
from captum_mfv.storage.identity import canonical, check_same, content_fingerprint, fingerprint
from captum_mfv.storage.untrusted import parse_json

__all__ = ["Checkpoint"]


class Checkpoint:
    """A file with the state of some work, replaced every few seconds.

    Args:
        path: the file, ``.safetensors``.
        parts: everything that the state depends on, by name, as `storage.identity.fingerprint` takes it.
        what: a noun for the work, for error messages.
        seconds: time between two saves, the most that an interruption loses.
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
        """Return the saved state, or None if the file doesn't exist.

        Raises:
            RunError: if the file belongs to other work, is no checkpoint, or was changed; it is left as it is.
        """
        if not self.path.exists():
            return None
        with self.reading():
            if not self.path.is_file():  # a pipe would block
                raise ValueError("not a regular file")
            with safe_open(self.path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
            raise RunError(f"{self.path} can't be continued: {error}; remove it to begin anew") from error


def _content(state: Mapping[str, Tensor]) -> str:
    return fingerprint(**{name: content_fingerprint(value) for name, value in state.items()})
