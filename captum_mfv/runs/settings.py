"""The settings of a run, declared once for Python, the command, TOML files and JSON Schema."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from captum_mfv.errors import RunError
from captum_mfv.storage.schema import Flag, Fraction, NotNegative, Positive, Seed, Side, Steps, declare, validate
from captum_mfv.storage.untrusted import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Declared", "RunSettings", "config_model", "declared_options", "read_toml", "to_toml", "validate_option"]


@dataclass(frozen=True)
class Option:
    """How the command shows a setting: heading, placeholder, description of a default, one-letter name.

    ``names`` is the kind of thing that a value names: a ``recipe`` is a name, or the path of a ``.json`` file; a
    ``model`` is a name, ``hf:`` and the path of a folder, or ``file.py:function``; a ``unit`` may end in ``:FILE.npy``.
    """

    heading: str
    metavar: str | None = None
    default: str | None = None
    names: Literal["file", "folder", "recipe", "model", "unit"] | None = None
    letter: str | None = None


_INPUT, _FACETS, _IMAGES, _RUN, _OTHER = "Model, unit and images", "Facets", "Synthesized images", "The run", "Other"


def _to_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Text = Annotated[str, BeforeValidator(_to_text)]


@declare(RunError)
class RunSettings:
    """The settings of one unit's run.

    Raises:
        RunError: if a value is invalid; the message names the setting.
    """

    model: Annotated[Text, Option(_INPUT, names="model")]
    """A name of torchvision, timm:NAME, hf:NAME (transformers), open_clip:ARCHITECTURE/WEIGHTS (image tower); or
    file.py:function (which is run)."""

    unit: Annotated[Text, Option(_INPUT, "LAYER:INDEX", names="unit")]
    """The unit, e.g. features.12:37 or fc:945; `captum-mfv list layers` names the layers. LAYER:FILE.npy is a
    direction: one weight per channel, written by numpy.save."""

    images: Annotated[Text, Option(_INPUT, "FOLDER", names="folder")]
    """Folder of images that activate the unit; with --top-k, of any images."""

    weights: Annotated[Text | None, Option(_INPUT, "FILE", "the model's own", names="file")] = None
    """Weights file: safetensors, or a .pt/.pth that holds only tensors."""

    sae: Annotated[Text | None, Option(_INPUT, "FILE|FOLDER", names="file")] = None
    """Sparse autoencoder of the unit's layer: the unit's index is then a latent."""

    top_k: Annotated[Positive | None, Option(_INPUT, "K")] = None
    """For a hidden unit: use only the K images with the largest activation, cropped to the peak's receptive field."""

    reduce: Annotated[
        Literal["mean", "max", "center", "cls", "patches"] | None, Option(_INPUT, "HOW", "mean; with --top-k: max")
    ] = None
    """How positions become one number: mean, max, center, cls (the class token) or patches (the mean of the others)."""

    channels: Annotated[Literal["first", "last"] | None, Option(_INPUT, "first|last")] = None
    """Channel axis of the unit's layer, if neither the layer nor the next one shows it."""

    n_prefix: Annotated[NotNegative | None, Option(_INPUT, "N", "as the model declares")] = None
    """Number of class and register tokens before the patches, if the model doesn't declare it; 0 if there are none."""

    input_size: Annotated[Side | None, Option(_INPUT, "PIXELS", "the model's own")] = None
    """Side of the model's input."""

    crop_fraction: Annotated[Fraction | None, Option(_INPUT, "SHARE", "the model's own")] = None
    """Share of a resized image that the center crop keeps, per side; 1 for images that were cropped before."""

    facets: Annotated[Positive | Literal["auto"], Option(_FACETS, "N|auto")] = 10
    """Number of facets; auto: as many as are separated, which may be one."""

    code: Annotated[Text | None, Option(_FACETS, "LAYER[:REDUCE]", "last layer with positions before the unit")] = None
    """Layer whose output describes an image."""

    labels: Annotated[Text | None, Option(_FACETS, "FILE", names="file")] = None
    """JSON table of image path → known group; adds the adjusted Rand index of the facets to the metrics."""

    recipe: Annotated[Text, Option(_IMAGES, "NAME|FILE", names="recipe")] = "facet"
    """A name that `captum-mfv list recipes` prints, or a .json file."""

    steps: Annotated[Steps | None, Option(_IMAGES, "N", "the recipe's")] = None
    """Number of optimization steps."""

    size: Annotated[Side | None, Option(_IMAGES, "PIXELS", "the model's input size")] = None
    """Side of the synthesized images."""

    dtype: Annotated[Literal["bfloat16", "float16"] | None, Option(_IMAGES, "TYPE", "the model's own")] = None
    """bfloat16 or float16: autocast while images are synthesized, for GPUs."""

    attribution: Annotated[Text | None, Option(_IMAGES, "METHOD", "shares of the code layer")] = None
    """A class of captum.attr for the overlays, e.g. IntegratedGradients."""

    device: Annotated[Text | None, Option(_RUN, "DEVICE", "a GPU if there is one")] = None
    """cpu, cuda, cuda:1, mps …."""

    seed: Annotated[Seed, Option(_RUN, "N")] = 0
    """Seed of all random numbers."""

    @model_validator(mode="after")
    def _check(self) -> RunSettings:
        if self.top_k is not None and self.facets != "auto" and self.facets > self.top_k:
            raise ValueError(f"top_k must be at least the number of facets, {self.facets}, not {self.top_k}")
        return self

    def given(self) -> dict[str, str | int | float]:
        """Return the settings that aren't None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def command(self, out: str) -> str:
        """Return the command that runs these settings."""
        options = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in self.given().items()]
        return " ".join(["captum-mfv run", *options, f"--out {shlex.quote(out)}"])


@declare(RunError)
class CommandOptions:
    """Options of ``captum-mfv run`` that don't change the result."""

    out: Annotated[Text, Option(_RUN, "FOLDER", names="folder")]
    """The run's folder."""

    update: Annotated[Flag, Option(_RUN)] = False
    """In a folder that holds a run with other settings or input, redo the stages that depend on what changed."""

    quiet: Annotated[Flag, Option(_OTHER, letter="-q")] = False
    """Print only warnings and errors."""

    verbose: Annotated[Flag, Option(_OTHER, letter="-v")] = False
    """Print also layers, code, the duration of each stage, and all warnings."""


@dataclass(frozen=True)
class Declared:
    """A declared option of ``captum-mfv run``: its name in Python, its type with bounds, and its display."""

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


@cache
def declared_options() -> Mapping[str, Declared]:
    """Return the options of ``captum-mfv run`` by their names in Python, in the order of their declaration."""
    found = {}
    for cls in (RunSettings, CommandOptions):
        fields: Mapping[str, Any] = vars(cls)["__pydantic_fields__"]
        for name, hint in get_type_hints(cls, include_extras=True).items():
            (option,) = (extra for extra in hint.__metadata__ if isinstance(extra, Option))
            info, required = fields[name], fields[name].is_required()
            default = None if required else info.default
            found[name] = Declared(name, hint, info.description, default, required, option)
    return found


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
    """Return an option's value in its declared type; text may be a number.

    Raises:
        ValueError: if the value is invalid.
    """
    try:
        return getattr(validate(config_model(), {declared_options()[name].hyphenated: value}), name)
    except ValueError:
        if (number := _number(value)) is None:
            raise
        return validate_option(name, number)


def _number(value: Any) -> int | float | None:
    """Return the number that a text is, else None."""
    for kind in (int, float) if isinstance(value, str) else ():
        with suppress(ValueError):
            return kind(value)
    return None


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the options in a TOML file, by their names in Python.

    Relative paths are relative to the file's folder. Names may be written as on the command line or as in
    Python: ``top-k`` or ``top_k``. A file may name a model as ``file.py:function``, and a run *runs* it: use
    only files that you trust, or have read.

    Raises:
        RunError: if the file isn't TOML, has an unknown option, or an invalid value.
    """
    try:
        table = tomllib.loads(read_text(Path(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{os.fspath(path)} can't be read as TOML: {error}") from error
    try:
        valid = validate(config_model(), {key.replace("_", "-"): value for key, value in table.items()})
    except ValueError as error:
        raise RunError(f"{os.fspath(path)}: {error}") from error
    folder, found = os.path.dirname(path), valid.model_dump(exclude_unset=True)  # noqa: PTH120
    return {name: _moved(name, value, lambda part: os.path.join(folder, part)) for name, value in found.items()}  # noqa: PTH118


def to_toml(options: Mapping[str, str | int | float], folder: str | os.PathLike[str]) -> str:
    """Return TOML, one option per line; relative paths become relative to the folder that the file is written to."""
    text = ""
    for name, value in options.items():
        moved = _moved(name, value, lambda part: os.path.relpath(part, folder))
        text += f"{name.replace('_', '-')} = {json.dumps(moved, ensure_ascii=False)}\n"
    return text.replace("\x7f", "\\u007f")  # the only character that JSON allows in text and TOML doesn't


def _moved(name: str, value: Any, move: Callable[[str], str]) -> Any:
    """Return a value of an option, after moving the relative path that it is or begins with."""
    kind, head, path, rest = declared_options()[name].option.names, "", value, ""
    if kind == "model" and value.startswith("hf:"):  # a folder, or a name on the hub, which may look like a path
        path, moved = value[3:], move(value[3:])
        is_folder = os.path.isdir(path) or os.path.isdir(moved)  # noqa: PTH112
        return f"hf:{os.path.normpath(moved)}" if is_folder and not os.path.isabs(path) else value  # noqa: PTH117
    if kind == "model":
        path, colon, function = value.rpartition(":")
        rest = colon + function
    if kind == "unit":
        layer, colon, path = value.rpartition(":")
        head = layer + colon
    suffix = {"recipe": ".json", "model": ".py", "unit": ".npy"}.get(kind or "", "")
    if kind is None or not path.endswith(suffix) or os.path.isabs(path):  # noqa: PTH117
        return value
    return head + os.path.normpath(move(path)) + rest
