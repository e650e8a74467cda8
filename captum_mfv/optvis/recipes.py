"""Recipes: the start, parameterization and optimization phases of an image, as data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator

from captum_mfv.errors import RecipeError
from captum_mfv.optvis.terms import TERMS, check_term
from captum_mfv.optvis.transform import make_transform
from captum_mfv.storage.schema import FROM_NUMPY, Flag, Number, Positive, Steps, declare, suggest, validate
from captum_mfv.storage.untrusted import read_json

__all__ = ["RECIPES", "Phase", "Ramp", "Recipe", "get_recipe", "read_recipe"]

Start = Literal["mean", "medoid", "noise", "spectrum"]
Param = Literal["fft", "pixel", "maco"]

Weights = Mapping[Annotated[str, AfterValidator(check_term), Field(json_schema_extra={"enum": list(TERMS)})], Number]


@declare(RecipeError)
class Ramp:
    """A number that changes linearly over the n steps of a phase: start + (end − start)·i/n at step i.

    With ``released``, the schedule of the paper's released code, where a misplaced parenthesis computes
    start − (start − end·i)/n: from start·(1 − 1/n) to about start + end.

    >>> [Ramp(1, 2).at(step, 4) for step in range(4)]
    [1.0, 1.25, 1.5, 1.75]
    >>> [Ramp(1, 2, released=True).at(step, 4) for step in range(4)]
    [0.75, 1.25, 1.75, 2.25]
    """

    start: Number
    end: Number
    released: Flag = False

    def at(self, step: int, n_steps: int) -> float:
        """Return the value at step 0 … n_steps − 1."""
        if self.released and n_steps > 1:  # with one step the value would be 0
            return self.start - (self.start - self.end * step) / n_steps
        return self.start + (self.end - self.start) * step / n_steps


@declare(RecipeError)
class Phase:
    """A number of steps with one objective and one optimizer; invalid values raise as in `Recipe`."""

    steps: Steps
    """Number of steps."""

    weights: Annotated[Weights, Field(min_length=1)]
    """Objective terms (`terms.TERMS`) and their weights."""

    optimizer: Literal["adam", "damped_adam", "tv"] = "adam"
    """``adam``, ``damped_adam`` for `optimizers.DampedAdam`, or ``tv`` for `optimizers.TVAscent`."""

    lr: Ramp = Ramp(0.03, 0.03)
    """Adam's learning rate, or TV ascent's step in gray levels."""

    scale: Annotated[float, Field(strict=True, gt=0, le=16), FROM_NUMPY] = 1.0
    """Side of the canvas, as a multiple of the image's side; above 1, the image is the canvas's center."""

    tv_weight: Ramp | None = None
    """The denoiser's weight, for ``tv``."""

    transforms: Mapping[str, Mapping[str, Number]] = Field(default_factory=dict)
    """Functions of `transform` in order and their arguments, drawn anew for each image and step."""

    @model_validator(mode="after")
    def _check(self) -> Phase:
        if min(self.lr.start, self.lr.end) < 0:
            raise RecipeError(f"lr must be at least 0, not {self.lr.start:g} to {self.lr.end:g}")
        for name, arguments in self.transforms.items():
            make_transform(name, arguments, 1, torch.Generator())
        return self


@declare(RecipeError)
class Recipe:
    """A start, a parameterization and phases.

    Raises:
        RecipeError: if a value is invalid; the message names the field.
    """

    name: str
    """The recipe's name."""

    summary: str
    """Description in one line."""

    start: Start
    """``mean`` (mean image of the nearest members), ``medoid`` (the nearest member), ``noise``, or ``spectrum`` (noise
    with the spectrum of the facet's images)."""

    param: Param
    """``fft``, ``pixel``, or ``maco`` (phases with fixed magnitudes, those of the facet's images)."""

    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    """Optimization phases, in order."""

    n_images: Positive = 15
    """Number of members that are averaged for the mean image."""

    noise: tuple[Number, Number] = (0.5, 0.01)
    """Mean and standard deviation of the pixels of a noise start."""

    colors: Literal["imagenet", "images"] = "imagenet"
    """``imagenet``, or ``images`` to measure color decorrelation on the dataset, as for other than 1 or 3 channels."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.param != "pixel" and any(phase.optimizer == "tv" for phase in self.phases):
            raise RecipeError("the optimizer tv steps on pixels; set param to pixel")
        return self

    def with_steps(self, steps: int) -> Recipe:
        """Return the recipe with another total number of steps, its phases in proportion, each at least one step.

        >>> recipe = get_recipe("paper-mean")
        >>> [phase.steps for phase in recipe.phases]
        [190, 150, 20, 10]
        >>> [phase.steps for phase in recipe.with_steps(37).phases]
        [19, 15, 2, 1]

        Raises:
            RecipeError: if there are fewer steps than phases, or more than 10⁶.
        """
        if steps < len(self.phases):
            raise RecipeError(f"recipe {self.name} has {len(self.phases)} phases, so steps must be at least that")
        shares = [max(1, round(phase.steps * steps / self.n_steps)) for phase in self.phases]
        while sum(shares) != steps:
            shares[shares.index(max(shares))] += 1 if sum(shares) < steps else -1
        phases = tuple(replace(phase, steps=n) for phase, n in zip(self.phases, shares, strict=True))
        return replace(self, phases=phases)

    @property
    def n_steps(self) -> int:
        """Number of steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def to_json(self) -> str:
        """Return the recipe as JSON, to edit and read again with `read_recipe`."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Build a recipe from its parsed JSON.

        Raises:
            RecipeError: if a field is missing, unknown or invalid; the message names the field, after ``where``.
        """
        try:
            return validate(cls, data, where)
        except ValueError as error:
            raise RecipeError(str(error)) from None


def get_recipe(recipe: str | Recipe) -> Recipe:
    """Return the recipe of a name, or of the ``.json`` file at a path; a `Recipe` is returned as is.

    Raises:
        RecipeError: if no recipe has the name, or the file contains no recipe.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str) and recipe.endswith(".json"):
        return read_recipe(recipe)
    if recipe not in RECIPES:
        raise RecipeError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}{suggest(recipe, RECIPES)}")
    return RECIPES[recipe]


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a JSON file, such as the output of ``captum-mfv list recipes NAME``.

    Raises:
        RecipeError: if the file can't be read or contains no recipe.
    """
    try:
        data = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{os.fspath(path)} can't be read as a recipe: {error}") from error
    return Recipe.from_dict(data, f"recipe {os.fspath(path)}")


RECIPES: Mapping[str, Recipe] = {
    path.stem: read_recipe(path) for path in sorted((Path(__file__).parent / "presets").glob("*.json"))
}
"""The package's recipes by name; each is a JSON file in ``presets``."""
