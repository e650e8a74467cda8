"""The options of a run as a TOML file: what a user writes, and what repeats a run."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from captum_mfv.errors import RunError
from captum_mfv.storage.untrusted import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["dumps", "read"]

_PATHS = ("images", "weights", "labels", "out")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def read(path: str | os.PathLike[str], options: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The options that a file gives, by their names in Python.

    Relative paths are relative to the file's folder. Names may be written as on the command line or as in
    Python: ``top-k`` or ``top_k``. A file may name a model as ``file.py:function``, and a run *runs* it: give
    only files that you trust, or have read.

    Args:
        path: the file.
        options: the types that each option takes, by its name in Python.

    Raises:
        RunError: if it isn't TOML, names an option that there is not, or gives one a value of another type.
    """
    folder = os.path.dirname(path)  # noqa: PTH120
    found: dict[str, Any] = {}
    for key, value in _parse(Path(path)).items():
        name = key.replace("-", "_")
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1, cutoff=0.0)[0].replace("_", "-")
            raise RunError(f"{os.fspath(path)} has no option {key!r} to give; did you mean {near}?")
        if type(value) not in options[name]:
            kinds = " or ".join(_KINDS[kind] for kind in options[name])
            raise RunError(f"{os.fspath(path)}: {key} must be {kinds}, not {value!r}")
        found[name] = _moved(name, value, lambda part: os.path.join(folder, part))  # noqa: PTH118
    return found


def dumps(options: Mapping[str, str | int | float], folder: str | os.PathLike[str]) -> str:
    """TOML that gives the options from a file in a folder, a line each; what is a relative path leads on from there."""
    lines = [
        f"{name.replace('_', '-')} = {_value(_moved(name, value, lambda part: os.path.relpath(part, folder)))}\n"
        for name, value in options.items()
    ]
    return "".join(lines)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read as TOML: {error}") from error


def _value(value: str | int | float) -> str:
    """A value as TOML writes it: strings as JSON does, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _moved(name: str, value: Any, move: Callable[[str], str]) -> Any:
    """A value, its path moved if it is or begins with a relative one."""
    path, rest = _path_of(name, value)
    if not path or os.path.isabs(path):  # noqa: PTH117
        return value
    return os.path.normpath(move(path)) + rest


def _path_of(name: str, value: Any) -> tuple[str, str]:
    """The path in a value, and what follows it; empty if there is none."""
    if name in _PATHS or (name == "recipe" and value.endswith(".json")):
        return value, ""
    source, colon, function = value.rpartition(":") if name == "model" else ("", "", "")
    return (source, colon + function) if source.endswith(".py") else ("", "")
