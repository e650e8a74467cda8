"""Declare settings and records once: types, errors that name the field, and JSON Schema."""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import operator
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar, cast

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import dataclass_transform

from captum_mfv.errors import MFVError

__all__ = ["Record", "check_integer", "check_seed", "declare", "json_schema", "suggest", "validate"]

T = TypeVar("T")

LARGEST_SIDE = 9_000  # of an image that is rendered or read, in pixels; PIL decodes its square


def _plain(value: Any) -> Any:
    """Convert numbers of NumPy and other libraries to Python's; return everything else as is."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


FROM_NUMPY = BeforeValidator(_plain)  # follows the bounds of a type, so that JSON Schema has them
Flag = Annotated[bool, Strict()]
Integer = Annotated[int, Field(strict=True), FROM_NUMPY]
Positive = Annotated[int, Field(strict=True, ge=1), FROM_NUMPY]
NotNegative = Annotated[int, Field(strict=True, ge=0), FROM_NUMPY]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1), FROM_NUMPY]
Side = Annotated[int, Field(strict=True, ge=1, le=LARGEST_SIDE), FROM_NUMPY]
Steps = Annotated[int, Field(strict=True, ge=1, le=10**6), FROM_NUMPY]
Fraction = Annotated[float, Field(strict=True, ge=0.01, le=1), FROM_NUMPY]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), FROM_NUMPY]


class Record(pydantic.BaseModel):
    """Base of what a run's files hold; unknown keys, which newer versions may write, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def declare(error: type[MFVError], *, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen pydantic dataclass without unknown fields; its constructor raises ``error`` in one line."""

    def decorate(cls: type[T]) -> type[T]:
        config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
        declared: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=kw_only, config=config)(cls)
        construct, signature = declared.__init__, inspect.signature(declared)

        @functools.wraps(construct)
        def checked(self: T, *arguments: Any, **named: Any) -> None:
            given = {**signature.bind_partial(*arguments).arguments, **named}
            try:
                construct(self, **given)
            except ValidationError as found:
                raise error(_explain(found, declared, given, "")) from None

        declared.__init__ = checked
        return cast(type[T], declared)

    return decorate


def validate(kind: Callable[..., T], value: Any, where: str = "") -> T:
    """Return a value, such as one read from JSON, as an instance of a type, such as a `Record` or a list of them.

    Raises:
        ValueError: in one line: ``where``, the path of the field, what it must be and what it is.
    """
    try:
        return cast(T, _adapter(kind).validate_python(value))
    except ValidationError as error:
        raise ValueError(_explain(error, kind, value, where)) from None


def check_integer(value: object, name: str, least: int | None = None, error: type[MFVError] = MFVError) -> int:
    """Return an integer of Python, NumPy or PyTorch as an int; TypeError for others, ``error`` below ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    number = operator.index(value)
    if least is not None and number < least:
        raise error(f"{name} must be at least {least}, not {number}")
    return number


def check_seed(seed: object) -> int:
    """Return a seed as an int; TypeError if it is not an integer, ValueError if it is not from 0 to 2**32 - 1."""
    if not 0 <= (number := check_integer(seed, "seed")) < 2**32:
        raise MFVError(f"seed must be an integer from 0 to 2**32 - 1, not {number}")
    return number


def json_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a declared type."""
    return _adapter(kind).json_schema()


def suggest(name: object, names: Iterable[str]) -> str:
    """Return "; did you mean …?" with the most similar name, or nothing if no name is similar."""
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


# What a value must be, by pydantic's error type; other types have pydantic's words
_KINDS = {
    **dict.fromkeys(("dataclass_type", "dict_type", "mapping_type", "model_type"), "a table"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "bool_type": "true or false",
    "float_type": "a finite number",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "an integer",
    "less_than_equal": "at most {le:.10g}",
    "string_type": "text",
    "too_long": "of length {max_length} or less",
    "too_short": "of length {min_length} or more",
}


def _explain(error: ValidationError, kind: Any, value: Any, where: str) -> str:
    """Return the first error as a line; alternatives of a union are joined by "or"."""
    details = error.errors(include_url=False)
    paths = [_path(value, detail["loc"]) for detail in details]
    same = [detail for detail, path in zip(details, paths, strict=True) if path == paths[0]]
    first, head = same[0], f"{where}: " if where else ""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{_short(part)}" for part in paths[0]).lstrip(".")
    if first["type"] == "missing":
        part = first["loc"][-1]
        return f"{head}{name and name + ' '}lacks {f'item {part}' if isinstance(part, int) else part}"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{head}{name} isn't known{suggest(first['loc'][-1], _property_names(kind))}"
    if first["type"] == "value_error":
        return f"{head}{name and name + ': '}{first['ctx']['error']}"
    kinds = " or ".join(dict.fromkeys(map(_kind, same)))
    hint = suggest(first["input"], re.findall("'([^']*)'", kinds))
    return f"{head}{name or 'the value'} must be {kinds}, not {_short(repr(first['input']))}{hint}"


def _kind(detail: ErrorDetails) -> str:
    own = detail["msg"].removeprefix("Input should be ")
    return _KINDS.get(detail["type"], "{own}").format(own=own, **detail.get("ctx", {}))


def _path(value: Any, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the part of a location that exists in the value: without the tags that pydantic adds for unions."""
    for step, part in enumerate(location):
        try:
            value = value[part]
        except (LookupError, TypeError):
            return location[:step]
    return location


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _property_names(kind: Any) -> set[str]:
    """Return the names of all fields of a type and of the types in it."""
    schema = json_schema(kind)
    return {name for table in [schema, *schema.get("$defs", {}).values()] for name in table.get("properties", ())}
