"""Files that anyone may have written: where they may lie, and what a run's JSON may hold."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Annotated, Any, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = [
    "LARGEST_SIDE",
    "Header",
    "Manifest",
    "Metrics",
    "Row",
    "Settings",
    "check",
    "inside",
    "is_file",
    "is_folder",
    "parse_json",
    "read_json",
    "read_text",
    "within",
]

_MOST_BYTES = 2**29
_DEEPEST = 50
_LARGEST = 1e100  # what isn't larger can be added and squared
_NAMES = {dict: "a table", list: "a list", str: "text", int: "a whole number", float: "a number", type(None): "null"}


def is_file(path: Path) -> bool:
    """Whether there is a regular file; names that no system takes are none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder, likewise."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """The text of a regular file, bytes that aren't UTF-8 escaped; pipes and devices would block.

    Raises:
        ValueError: if it is no regular file, or over half a gigabyte.
        OSError: if it can't be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def read_json(path: Path) -> Any:
    """What a JSON file holds: finite numbers and no endless nesting.

    Raises:
        ValueError: if it holds something else.
        OSError: if it can't be read.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """The same of a text."""
    try:
        value = json.loads(text, parse_float=_number, parse_int=_number, parse_constant=_number)
        _check_depth(value, _DEEPEST)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _number(text: str) -> int | float:
    number = float(text)
    if not abs(number) <= _LARGEST:
        raise ValueError(f"{text[:40]} isn't a number that can be used")
    return int(text) if text.lstrip("-").isdigit() else number


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, (dict, list)):
        return
    if not left:
        raise ValueError("nested too deeply")
    for part in value.values() if isinstance(value, dict) else value:
        _check_depth(part, left - 1)


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a folder.

    Raises:
        ValueError: if a link leads it out of the folder, or it is neither a regular file nor missing.
    """
    path = within(folder, name)
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} isn't a regular file")
    return path


def within(folder: Path, name: str) -> Path:
    """The path of something in a folder.

    Raises:
        ValueError: if a link leads it out of the folder.
    """
    path = folder / name
    try:
        leads_out = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f"{name} can't be followed: {error}") from error
    if leads_out:
        raise ValueError(f"{name} leads out of the folder")
    return path


def check(value: Any, kind: Any, where: str) -> None:
    """Refuse JSON that isn't of a type: a `TypedDict` (more keys may be there), a list, a tuple, a union ….

    Args:
        value: what JSON gave; it has lists in the place of tuples, and whole numbers in that of floats.
        kind: the type; ``Annotated[kind, low, high]`` has bounds, both included.
        where: what to call the value.

    Raises:
        ValueError: naming the part that is wrong.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        check(value, arguments[0], where)
        if not arguments[1] <= value <= arguments[2]:
            raise ValueError(f"{where} must be {arguments[1]} to {arguments[2]}, not {value}")
    elif origin in (Union, types.UnionType):
        _check_any(value, arguments, where)
    elif is_typeddict(kind):
        _check_table(value, kind, where)
    elif origin is dict:
        _check_kind(value, dict, where)
        for key, part in value.items():
            check(part, arguments[1], f"{where}.{key}")
    elif origin in (list, tuple):
        _check_kind(value, list, where)
        if origin is tuple and len(value) != len(arguments):
            raise ValueError(f"{where} must have {len(arguments)} parts, not {len(value)}")
        parts = arguments if origin is tuple else arguments * len(value)
        for n, (part, its) in enumerate(zip(value, parts, strict=True)):
            check(part, its, f"{where}[{n}]")
    elif kind is not Any:
        _check_kind(value, kind, where)


def _check_any(value: Any, kinds: tuple[Any, ...], where: str) -> None:
    errors = []
    for kind in kinds:
        try:
            return check(value, kind, where)
        except ValueError as error:
            errors.append(error)
    raise max(errors, key=lambda error: len(str(error)))  # the one that came furthest


def _check_table(value: Any, kind: Any, where: str) -> None:
    _check_kind(value, dict, where)
    for key in sorted(kind.__required_keys__):
        if key not in value:
            raise ValueError(f"{where} lacks {key}")
    for key, its in get_type_hints(kind, include_extras=True).items():
        if key in value:
            check(value[key], its, f"{where}.{key}")


def _check_kind(value: Any, kind: Any, where: str) -> None:
    fits = type(value) in (int, float) and math.isfinite(value) if kind is float else type(value) is kind
    if not fits:
        raise ValueError(f"{where} must be {_NAMES[kind]}, not {str(value)[:40]!r}")


LARGEST_SIDE = 9_000
"""Of an image that is drawn or read, in pixels; a square of it can be decoded again."""

Side = Annotated[int, 1, LARGEST_SIDE]
Seed = Annotated[int, 0, 2**32 - 1]


class _Preprocessing(TypedDict, total=False):
    crop_fraction: Annotated[float, 0.01, 1.0]
    interpolation: str


class Spec(_Preprocessing):
    """`InputSpec`."""

    size: Side
    mean: tuple[float] | tuple[float, float, float]
    std: tuple[float] | tuple[float, float, float]


class _Given(TypedDict, total=False):
    images_hash: str | None
    size: Side | None
    dtype: str | None
    recipe_data: dict[str, Any]


class Settings(_Given):
    """A finished run's settings."""

    model: str
    unit: str
    images: str
    recipe: str
    command: str
    seed: Seed
    input_spec: Spec


class _Keys(TypedDict, total=False):
    keys: dict[str, str]


class Manifest(_Keys):
    """``manifest.json``; settings are complete in a finished run."""

    status: str
    settings: dict[str, Any]
    versions: dict[str, str]
    timings: dict[str, float]


class _Crop(TypedDict, total=False):
    crop: tuple[int, int, int, int]


class Member(_Crop):
    """A real image of a facet."""

    path: str
    activation: float
    distance: float


class _Interval(TypedDict, total=False):
    stability_interval: tuple[float, float] | None


class Row(_Interval):
    """A facet in ``facets.json``."""

    index: int
    size: int
    activation: float
    stability: float | None
    members: list[Member]


class _OffFacet(TypedDict, total=False):
    off_facet: float
    real_off_facet: float | None


class _Plain(TypedDict):
    activation: float
    percentile: float
    nearest_facet: int


class _Score(_Plain, _OffFacet):
    pass


class _Multifacetedness(TypedDict):
    score: float
    p_value: float
    coverage: float | None


class _Estimate(TypedDict):
    value: float
    low: float
    high: float
    n: int


class _Scores(TypedDict):
    retention: _Estimate
    centered: _Estimate
    predicts: _Estimate
    top1: _Estimate | None
    probability: _Estimate | None
    distance: _Estimate
    precision: _Estimate
    recall: _Estimate
    diversity: _Estimate


class _Judge(TypedDict):
    name: str
    chance: float
    scores: _Scores
    controls: dict[str, _Scores]
    confusion: list[list[float]]
    shuffled: _Estimate
    held_out: _Estimate | None
    over_seeds: _Estimate | None
    real_predicts: _Estimate
    real_top1: _Estimate | None
    real_probability: _Estimate | None
    separation: _Estimate | None


class _Measured(TypedDict, total=False):
    plain: _Plain
    adjusted_rand_index: float
    judge: _Judge | None


class Metrics(_Measured):
    """``metrics.json``."""

    facets: list[_Score]
    retention: float
    chance: float
    p_value: float | None
    multifacetedness: _Multifacetedness


class _Channels(TypedDict, total=False):
    channels: str | None


class _Code(_Channels):
    layer: str
    reduce: str


class _Unit(_Code):
    index: int | list[float]


class _Stability(TypedDict, total=False):
    stability: list[float] | None
    stability_interval: list[tuple[float, float]] | None


class Header(_Stability):
    """What a facet set's file holds beside its arrays."""

    unit: _Unit
    code: _Code
    p_value: float | None
