"""The options of a run as a TOML file: read the user's, and write the one that repeats a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pydantic
from pydantic import ConfigDict, Field

from captum_mfv.errors import RunError
from captum_mfv.runs.settings import Declared, declared_options
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["config_model", "dumps", "read", "validate_option"]


@cache
def config_model() -> type[pydantic.BaseModel]:
    """Return the model of a TOML file of options, none of which is required."""
    fields: dict[str, Any] = {
        name: (one.hint, Field(alias=one.hyphenated, description=one.help, **_default(one)))
        for name, one in declared_options().items()
    }
    return pydantic.create_model("Options of captum-mfv run", __config__=ConfigDict(extra="forbid"), **fields)


def _default(declared: Declared) -> dict[str, Any]:
    return {"default_factory": lambda: None} if declared.required else {"default": declared.default}


def validate_option(name: str, value: Any) -> Any:
    """Return an option's value in its declared type; text may be an integer.

    Raises:
        ValueError: if the value is invalid.
    """
    try:
        return getattr(validate(config_model(), {declared_options()[name].hyphenated: value}), name)
    except ValueError:
        if isinstance(value, str) and value.removeprefix("-").isdecimal():
            return validate_option(name, int(value))
        raise


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the options in a TOML file, by their names in Python.

    Relative paths are relative to the file's folder. Names may be written as on the command line or as in
    Python: ``top-k`` or ``top_k``. A file may name a model as ``file.py:function``, and a run *runs* it: use
    only files that you trust, or have read.

    Raises:
        RunError: if the file isn't TOML, has an unknown option, or an invalid value.
    """
    folder, table = os.path.dirname(path), _parse(Path(path))  # noqa: PTH120
    try:
        valid = validate(config_model(), {key.replace("_", "-"): value for key, value in table.items()})
    except ValueError as error:
        raise RunError(f"{os.fspath(path)}: {error}") from error
    found = valid.model_dump(exclude_unset=True)
    return {name: _moved(name, value, lambda part: os.path.join(folder, part)) for name, value in found.items()}  # noqa: PTH118


def dumps(options: Mapping[str, str | int | float], folder: str | os.PathLike[str]) -> str:
    """Return TOML, one option per line; relative paths become relative to the folder that the file is written to."""
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
    """Return a value as TOML; strings are JSON's, except for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _moved(name: str, value: Any, move: Callable[[str], str]) -> Any:
    """Return a value, after moving the relative path that it is or begins with."""
    path, rest = _path_of(name, value)
    if not path or os.path.isabs(path):  # noqa: PTH117
        return value
    return os.path.normpath(move(path)) + rest


def _path_of(name: str, value: Any) -> tuple[str, str]:
    """Return the path in a value and the text after it; an empty path if the value has none."""
    names = declared_options()[name].option.names
    if names in ("file", "folder") or (names == "recipe" and value.endswith(".json")):
        return value, ""
    source, colon, function = value.rpartition(":") if names == "model" else ("", "", "")
    return (source, colon + function) if source.endswith(".py") else ("", "")
