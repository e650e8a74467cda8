"""A suite: the units on which methods are compared, declared in a JSON file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from captum_mfv.errors import RunError
from captum_mfv.storage.schema import Fraction, NotNegative, Number, Positive, declare, suggest, validate
from captum_mfv.storage.untrusted import read_json
from captum_mfv.units import Code, Unit

__all__ = ["SUITES", "Cell", "HiddenUnit", "ImageClass", "Network", "Suite", "get_suite", "safe_name"]

_FOLDER = Path(__file__).parent / "suites"

SUITES = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
"""Names of the package's suites."""


def safe_name(text: str) -> str:
    """Return a text as the name of a file or folder on any system.

    >>> safe_name("another facet's start")
    'another_facet_s_start'
    """
    return re.sub(r"[^\w.+-]+|^\.", "_", text)[:100]


@declare(RunError)
class Network:
    """A network whose units are visualized, and which evaluates the images of the other networks' units."""

    model: str
    """The model, named as for ``captum-mfv run --model``; a ``file.py`` is relative to the data folder, and is run."""

    class_layer: str | None = None
    """Layer of the classes' logits; without one, the network has no classes, and evaluates by its codes only."""

    weights: str | None = None
    """Weights file in the data folder; by default the model's own weights."""

    code: str | None = None
    """Layer that describes an image, ``LAYER`` or ``LAYER:REDUCE``, for facets and evaluation; by default the last with
    positions."""

    mean: tuple[Number, ...] | None = None
    """Mean of each channel, where the model doesn't declare its own preprocessing."""

    std: tuple[Number, ...] | None = None
    """Standard deviation of each channel, likewise."""

    @model_validator(mode="after")
    def _check(self) -> Network:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        Code.parse(self.code)
        return self


@declare(RunError)
class _Images:
    """Images of a cell, and the number of facets to find in them."""

    _: KW_ONLY

    images: str
    """Folder of images in the data folder, or a function that returns a dataset: ``package.module:function``, or
    ``file.py:function`` with the file in the data folder."""

    top_k: Positive | None = None
    """Take the images that activate the unit most instead of all; those of a channel's maximum are cropped to it."""

    n_facets: Positive = 4
    """Number of facets."""

    crop_fraction: Fraction | None = None
    """Share of a resized image that the center crop keeps, per side; 1 for images that were cropped before."""


@declare(RunError)
class ImageClass(_Images):
    """A class: its logit in each network with a class layer is a cell, and the networks' cells are one cluster."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    """Name of the class."""

    index: NotNegative
    """Index of the class's logit, the same in all networks."""


@declare(RunError)
class HiddenUnit(_Images):
    """A unit of one network, which the evaluating networks don't have; a cluster of its own."""

    network: str
    """Name of the network."""

    unit: str
    """The unit, ``LAYER:INDEX``."""

    reduce: Literal["mean", "max", "center", "cls", "patches"] = "max"
    """How positions become one number."""

    @model_validator(mode="after")
    def _check(self) -> HiddenUnit:
        Unit.parse(self.unit)
        return self


@dataclass(frozen=True)
class Cell:
    """A unit of a network and where its images are: methods are compared on each cell.

    Args:
        name: the cell's name, which is that of its files.
        network: name of the network.
        unit: the unit.
        cluster: name of the cluster that intervals resample: the class, or the hidden unit.
        source: images and number of facets.
        class_name: the class, or None for a hidden unit.
        tuning: whether methods may be tuned on the cell.
    """

    name: str
    network: str
    unit: Unit
    cluster: str
    source: _Images
    class_name: str | None = None
    tuning: bool = False


@declare(RunError)
class Suite:
    """Networks, and the units of these on which methods are compared.

    Raises:
        RunError: if a value is invalid; the message names the field.
    """

    name: Annotated[str, Field(min_length=1, max_length=60)]
    """The suite's name."""

    summary: str
    """Description in one line."""

    networks: Annotated[Mapping[str, Network], Field(min_length=2)]
    """Networks by name; those that don't have a cell's unit evaluate its images."""

    classes: tuple[ImageClass, ...] = ()
    """Classes, each a cell of each network."""

    units: tuple[HiddenUnit, ...] = ()
    """Hidden units."""

    tuning: tuple[ImageClass, ...] = ()
    """Classes on which methods may be tuned; they are not in the table of the others."""

    @model_validator(mode="after")
    def _check(self) -> Suite:
        for one in self.units:
            if one.network not in self.networks:
                raise ValueError(f"units: no network {one.network!r}{suggest(one.network, self.networks)}")
        names = [cell.name.casefold() for cell in (*self.cells(), *self.cells(tuning=True))]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two cells are named {twice!r}; give each class and unit one entry, and another name")
        if not names:
            raise ValueError("classes, units or tuning must have an entry")
        return self

    def cells(self, *, tuning: bool = False) -> list[Cell]:
        """Return the cells: of all networks class by class, then of hidden units; or the cells for tuning."""
        found = []
        for one in self.tuning if tuning else self.classes:
            for name, network in self.networks.items():
                if network.class_layer is not None:
                    unit = Unit(network.class_layer, one.index)
                    found.append(Cell(_cell_name(name, one.name), name, unit, one.name, one, one.name, tuning))
        for hidden in () if tuning else self.units:
            unit, name = replace(Unit.parse(hidden.unit), reduce=hidden.reduce), _cell_name(hidden.network, hidden.unit)
            found.append(Cell(name, hidden.network, unit, name, hidden))
        return found

    def choose(self, patterns: Sequence[str] | None, *, tuning: bool = False) -> list[Cell]:
        """Return the cells whose names match a pattern, with ``*`` and ``?``; None: all.

        Raises:
            RunError: if a pattern matches no cell.
        """
        cells = self.cells(tuning=tuning)
        if patterns is None:
            return cells
        for pattern in patterns:
            if not any(fnmatchcase(cell.name, pattern) for cell in cells):
                kind = "tuning cell" if tuning else "cell"
                hint = suggest(pattern, [cell.name for cell in cells]) or f"; the first is {cells[0].name}"
                raise RunError(f"suite {self.name} has no {kind} {pattern!r}{hint if cells else ''}")
        return [cell for cell in cells if any(fnmatchcase(cell.name, pattern) for pattern in patterns)]


def _cell_name(network: str, rest: str) -> str:
    return safe_name(f"{network}-{rest}")


def get_suite(suite: str | os.PathLike[str] | Suite) -> Suite:
    """Return the suite of a name, or of the ``.json`` file at a path; a `Suite` is returned as is.

    A suite names models and images that may be functions in files, which are *run*: use only suites that you trust.

    Raises:
        RunError: if no suite has the name, or the file contains no suite; the message names the field.
    """
    if isinstance(suite, Suite):
        return suite
    text = os.fspath(suite)
    if not text.endswith(".json") and text not in SUITES:
        raise RunError(f"no suite {text!r}; there are {', '.join(SUITES)}, or FILE.json{suggest(text, SUITES)}")
    path = Path(text) if text.endswith(".json") else _FOLDER / f"{text}.json"
    try:
        data: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read as a suite: {error}") from error
    try:
        return validate(Suite, data, f"suite {path}")
    except ValueError as error:
        raise RunError(str(error)) from None
