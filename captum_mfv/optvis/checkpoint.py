"""What a rendering that was stopped goes on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captum_mfv.errors import RunError
from captum_mfv.storage.files import tensor_file, write_whole
from captum_mfv.storage.untrusted import parse_json

__all__ = ["Checkpoint"]

_SECONDS = 15.0  # between two saves: what a stopped rendering loses at most


class Checkpoint:
    """A file with the state of a rendering, written whole every few seconds.

    Args:
        path: the file, ``.safetensors``.
        facts: all that the rendering depends on, JSON values by name; they tell one from another.
    """

    def __init__(self, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._facts: dict[str, Any] = json.loads(json.dumps(facts))
        self._saved = monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return monotonic() - self._saved >= _SECONDS

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Write the state, in the place of the one before."""
        arrays = {name: value.detach().cpu().numpy() for name, value in state.items()}
        facts = {"facts": json.dumps(self._facts), "sha256": _digest(arrays)}
        write_whole(self.path, tensor_file(arrays, facts))
        self._saved = monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """The state that was saved last; None if there is none.

        Raises:
            RunError: if the file is another rendering's, or none of ours, or was changed; it is left as it is.
        """
        if not self.path.exists():
            return None
        if not self.path.is_file():  # a pipe would block
            raise RunError(f"{self.path} can't be continued: not a regular file")
        with self.reading(), safe_open(self.path, framework="pt") as file:
            noted = dict(file.metadata() or {})
            facts = parse_json(noted["facts"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            other = [name for name in self._facts if facts.get(name) != self._facts[name]]
            if not other and noted.get("sha256") != _digest({name: value.numpy() for name, value in state.items()}):
                raise ValueError("it was changed")
        if other:
            raise RunError(f"{self.path} holds another rendering (its {', '.join(other)} differ); choose another file")
        return state

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, what doesn't fit in what was saved has a name, that of the file.

        Raises:
            RunError: if anything doesn't.
        """
        try:
            yield
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise RunError(f"{self.path} can't be continued: {error}; remove it to begin anew") from error


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """What tells whether a state is as it was saved."""
    total = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        total.update(f"{name} {values.shape} {values.dtype} ".encode())
        total.update(np.ascontiguousarray(values).data)
    return total.hexdigest()
