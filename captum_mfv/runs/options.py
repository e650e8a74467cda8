"""Options of a command: generated from declared settings, read from and written to TOML, validated by pydantic."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pydantic
from pydantic import ConfigDict, Field

from captum_mfv.errors import RunError
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Declared", "Option", "OptionTable"]

_FUNCTION = re.compile(r".*\.py:\w+|\w+(\.\w+)+:\w+")  # of a file, or of a module


@dataclass(frozen=True)
class Option:
    """How the command shows a setting: heading, placeholder, description of a default, one-letter name.

    ``names`` is the kind of thing that a value names: a ``recipe`` is a name, or the path of a ``.json`` file; a
    ``model`` is a name, ``hf:`` and the path of a folder, or ``file.py:function``; a ``unit`` may end in ``:FILE.npy``;
    ``units`` are text, or the path of an existing file; a ``dataset`` is a folder, or a function as of a model.
    """

    heading: str
    metavar: str | None = None
    default: str | None = None
    names: Literal["file", "folder", "recipe", "model", "unit", "units", "dataset"] | None = None
    letter: str | None = None


@dataclass(frozen=True)
class Declared:
    """A declared option of a command: its name in Python, its type with bounds, and its display."""

    name: str
    hint: Any
    help: str
    default: Any  # None if required
    required: bool
    option: Option

    @property
    def hyphenated(self) -> str:
        """The name on the command line and in TOML."""
        return self.name.replace("_", "-")


@dataclass(frozen=True, eq=False)
class OptionTable:
    """The options of ``captum-mfv COMMAND``, declared by the fields of some classes."""

    command: str
    classes: tuple[type, ...]
    headings: tuple[str, ...]

    @cached_property
    def declared(self) -> Mapping[str, Declared]:
        """The options by their names in Python, by heading; required ones first."""
        found = []
        for cls in self.classes:
            described = {name: info for base in cls.__mro__ for name, info in _fields(base).items() if info.description}
            for name, hint in get_type_hints(cls, include_extras=True).items():
                for option in (extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Option)):
                    info, required = _fields(cls)[name], _fields(cls)[name].is_required()
                    default = None if required else info.default
                    found.append(Declared(name, hint, described[name].description or "", default, required, option))
        return {one.name: one for one in sorted(found, key=self._place)}

    def _place(self, declared: Declared) -> tuple[int, bool]:
        return self.headings.index(declared.option.heading), not declared.required

    @cached_property
    def model(self) -> type[pydantic.BaseModel]:
        """The model of a TOML file of options, none of which is required."""
        fields: dict[str, Any] = {
            name: (one.hint, Field(alias=one.hyphenated, description=one.help, **_default(one)))
            for name, one in self.declared.items()
        }
        title = f"Options of captum-mfv {self.command}"
        return pydantic.create_model(title, __config__=ConfigDict(extra="forbid"), **fields)

    def validate(self, name: str, value: Any) -> Any:
        """Return an option's value in its declared type; text may be a number.

        Raises:
            ValueError: if the value is invalid.
        """
        try:
            return getattr(validate(self.model, {self.declared[name].hyphenated: value}), name)
        except ValueError:
            if (number := _number(value)) is None:
                raise
            return self.validate(name, number)

    def read_toml(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the options in a TOML file, by their names in Python.

        Relative paths are relative to the file's folder. Names may be written as on the command line or as in
        Python: ``top-k`` or ``top_k``. A file may name a model as ``file.py:function``, which the command *runs*: use
        only files that you trust, or have read.

        Raises:
            RunError: if the file isn't TOML, has an unknown option, or an invalid value.
        """
        try:
            table = tomllib.loads(read_text(Path(path)))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{os.fspath(path)} can't be read as TOML: {error}") from error
        try:
            valid = validate(self.model, {key.replace("_", "-"): value for key, value in table.items()})
        except ValueError as error:
            raise RunError(f"{os.fspath(path)}: {error}") from error
        folder, found = Path(os.path.dirname(path)), valid.model_dump(exclude_unset=True)  # noqa: PTH120
        return {name: self._moved(name, value, lambda part: str(folder / part)) for name, value in found.items()}

    def to_toml(self, options: Mapping[str, str | int | float], folder: str | os.PathLike[str]) -> str:
        """Return TOML, one option per line; relative paths become relative to the file's folder."""
        text = ""
        for name, value in options.items():
            moved = self._moved(name, value, lambda part: _relative(part, folder))
            text += f"{name.replace('_', '-')} = {json.dumps(moved, ensure_ascii=False)}\n"
        return text.replace("\x7f", "\\u007f")  # the only character that JSON allows in text and TOML doesn't

    def _moved(self, name: str, value: Any, move: Callable[[str], str]) -> Any:
        """Return a value of an option, after moving the relative path that it is or begins with."""
        kind, head, path, rest = self.declared[name].option.names, "", value, ""
        if kind == "model" and value.startswith("hf:"):  # a folder, or a name on the hub, which may look like a path
            path, moved = value[3:], move(value[3:])
            is_folder = os.path.isdir(path) or os.path.isdir(moved)  # noqa: PTH112
            return f"hf:{os.path.normpath(moved)}" if is_folder and not os.path.isabs(path) else value  # noqa: PTH117
        if kind == "units":
            moved = os.path.normpath(move(value))
            return moved if os.path.isfile(value) or os.path.isfile(moved) else value  # noqa: PTH113
        if kind == "model" or (kind == "dataset" and _FUNCTION.fullmatch(value)):
            kind = "model"
            path, colon, function = value.rpartition(":")
            rest = colon + function
        if kind == "unit":
            layer, colon, path = value.partition(":")  # the path may begin with a drive, C:
            head = layer + colon
        suffix = {"recipe": ".json", "model": ".py", "unit": ".npy"}.get(kind or "", "")
        if kind is None or not path.endswith(suffix) or os.path.isabs(path):  # noqa: PTH117
            return value
        return head + os.path.normpath(move(path)) + rest


def _relative(path: str, folder: str | os.PathLike[str]) -> str:
    """Return a path relative to a folder, or an absolute one if the folder is on another drive."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # on Windows
        return os.path.abspath(path)  # noqa: PTH100


def _fields(cls: type) -> Mapping[str, Any]:
    """Return the fields that pydantic knows of a class."""
    fields: Mapping[str, Any] = vars(cls).get("__pydantic_fields__", {})
    return fields


def _default(declared: Declared) -> dict[str, Any]:
    return {"default_factory": lambda: None} if declared.required else {"default": declared.default}


def _number(value: Any) -> int | float | None:
    """Return the number that a text is, else None."""
    for kind in (int, float) if isinstance(value, str) else ():
        with suppress(ValueError):
            return kind(value)
    return None
