"""The settings of a run, declared once for Python, the command, TOML files and JSON Schema."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BeforeValidator, model_validator

from captum_mfv.errors import RunError
from captum_mfv.storage.schema import Flag, Positive, Seed, Side, Steps, declare

__all__ = ["CommandOptions", "Declared", "Option", "RunSettings", "declared_options"]


@dataclass(frozen=True)
class Option:
    """How the command shows a setting.

    Args:
        heading: heading in the command's help.
        metavar: placeholder of the value.
        default: description of a default that isn't a value.
        names: the file that a value names: a ``file`` or ``folder``, a ``recipe`` (a name, or the path of its
            ``.json``), or a ``model`` (a name, or ``file.py:function``).
        letter: the option's one-letter name.
    """

    heading: str
    metavar: str | None = None
    default: str | None = None
    names: Literal["file", "folder", "recipe", "model"] | None = None
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
    """A name that `captum-mfv list models` prints, or file.py:function (which is run)."""

    unit: Annotated[Text, Option(_INPUT, "LAYER:INDEX")]
    """The unit, e.g. features.12:37 or fc:945; `captum-mfv list layers` names the layers."""

    images: Annotated[Text, Option(_INPUT, "FOLDER", names="folder")]
    """Folder of images that activate the unit; with --top-k, of any images."""

    weights: Annotated[Text | None, Option(_INPUT, "FILE", "the model's own", names="file")] = None
    """Weights file: safetensors, or a .pt/.pth that holds only tensors."""

    top_k: Annotated[Positive | None, Option(_INPUT, "K")] = None
    """For a hidden unit: use only the K images with the largest activation, cropped to the peak's receptive field."""

    reduce: Annotated[
        Literal["mean", "max", "center", "cls"] | None, Option(_INPUT, "HOW", "mean; with --top-k: max")
    ] = None
    """How positions become one number: mean, max, center or cls."""

    channels: Annotated[Literal["first", "last"] | None, Option(_INPUT, "first|last")] = None
    """Channel axis of the unit's layer, if its output's shape is ambiguous."""

    input_size: Annotated[Side | None, Option(_INPUT, "PIXELS", "the model's own")] = None
    """Side of the model's input."""

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

    def given(self) -> dict[str, str | int]:
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
    """A declared option of ``captum-mfv run``.

    Args:
        name: its name in Python.
        hint: its type, with bounds.
        help: its description.
        default: its default; of a required option, pydantic's mark for none.
        required: whether it has no default.
        option: how the command shows it.
    """

    name: str
    hint: Any
    help: str
    default: Any
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
            info = fields[name]
            found[name] = Declared(name, hint, info.description, info.default, info.is_required(), option)
    return found
