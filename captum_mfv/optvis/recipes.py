"""Recipes: how an image is synthesised, as data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from captum_mfv.errors import RecipeError
from captum_mfv.optvis.objectives import FACET_WEIGHTS

__all__ = ["RECIPES", "Phase", "Ramp", "Recipe", "get_recipe"]


@dataclass(frozen=True)
class Ramp:
    """A number that changes over the n steps of a phase: start + (end − start)·i/n at step i.

    With ``released``, the schedule as the paper's code ran it, where a misplaced parenthesis made it
    start − (start − end·i)/n: from start·(1 − 1/n) to about start + end.
    """

    start: float
    end: float
    released: bool = False

    def at(self, step: int, n_steps: int) -> float:
        """The value at step 0 … n_steps − 1."""
        if self.released and n_steps > 1:  # one step would have the weight 0
            return self.start - (self.start - self.end * step) / n_steps
        return self.start + (self.end - self.start) * step / n_steps


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one objective and one optimizer.

    Args:
        steps: number of steps.
        weights: objective terms and their weights.
        optimizer: ``adam``, or ``tv`` for `optimizers.TVAscent`.
        lr: Adam's learning rate, or TV ascent's step in grey levels.
        scale: the canvas is resized by this (cubic) before the phase.
        tv_weight: the denoiser's weight, for ``tv``.
        margin: border of the crop whose gradient is set to zero, as a share of its side, for ``tv``.
        window: spread of the centre-biased crop, for ``tv``.
        affine: rotation (degrees), zoom and shift (shares) of each image and step, for ``adam``.
    """

    steps: int
    weights: Mapping[str, float]
    optimizer: str = "adam"
    lr: Ramp = field(default_factory=lambda: Ramp(0.03, 0.03))
    scale: float = 1.0
    tv_weight: Ramp | None = None
    margin: float = 0.0
    window: float = 0.0
    affine: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Recipe:
    """A start, a parameterization and phases.

    Args:
        name: how it is called.
        summary: what it is, in a line.
        start: ``mean`` (mean image of the nearest members) or ``noise``.
        param: ``fft`` or ``pixel``.
        phases: what is done, in order.
        n_images: how many members the mean image has.
        noise: mean and standard deviation of the pixels of a noise start.
    """

    name: str
    summary: str
    start: str
    param: str
    phases: tuple[Phase, ...]
    n_images: int = 15
    noise: tuple[float, float] = (0.5, 0.01)

    def with_steps(self, steps: int) -> Recipe:
        """The same recipe in another number of steps, its phases in proportion, each at least one."""
        if steps < len(self.phases):
            raise RecipeError(f"recipe {self.name} has {len(self.phases)} phases, so steps must be at least that")
        total = sum(phase.steps for phase in self.phases)
        shares = [max(1, round(phase.steps * steps / total)) for phase in self.phases]
        while sum(shares) != steps:
            shares[shares.index(max(shares))] += 1 if sum(shares) < steps else -1
        phases = tuple(replace(phase, steps=n) for phase, n in zip(self.phases, shares, strict=True))
        return replace(self, phases=phases)

    @property
    def n_steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)


def _ascent(
    term: str,
    scale: float,
    steps: int,
    lr: tuple[float, float],
    tv: tuple[float, float],
    margin: float = 0.0,
    window: float = 0.3,
) -> Phase:
    """A row of the paper's schedules, TV weights as its code ran them."""
    return Phase(steps, {term: 1.0}, "tv", Ramp(*lr), scale, Ramp(*tv, released=True), margin=margin, window=window)


_FACET = Recipe(
    name="facet",
    summary="from the mean image: the unit, the facet's code, and activations distributed as on its images",
    start="mean",
    param="fft",
    phases=(Phase(200, FACET_WEIGHTS, lr=Ramp(0.05, 0.01), affine=(15.0, 0.25, 0.1)),),
)

_PAPER_MEAN = Recipe(
    name="paper-mean",
    summary="the paper's ascent from the mean image (arXiv 1602.03616), schedules as its code ran them",
    start="mean",
    param="pixel",
    phases=(
        _ascent("unit", 1.0, 190, (1, 1), (0.4, 0.4)),
        _ascent("unit", 1.2, 150, (1, 1), (0.01, 2)),
        _ascent("unit", 1.0, 20, (2, 2), (0.1, 2), margin=50 / 227, window=0.2),
        _ascent("unit", 1.0, 10, (2, 2), (0.4, 2)),
    ),
)

_PAPER_CENTER_BIASED = Recipe(
    name="paper-center-biased",
    summary="the paper's centre-biased ascent from noise (arXiv 1602.03616), schedules as its code ran them",
    start="noise",
    param="pixel",
    phases=(
        _ascent("probability", 1.0, 190, (11, 11), (0.001, 0.05)),
        _ascent("probability", 1.2, 150, (6, 6), (0.01, 0.08)),
        _ascent("unit", 1.2, 150, (1, 1), (0.01, 2)),
        _ascent("unit", 1.0, 30, (3, 3), (0.1, 2), margin=50 / 227, window=0.1),
        _ascent("unit", 1.0, 10, (6, 3), (0.01, 2)),
    ),
    noise=(175 / 255, 8 / 255),
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (_FACET, _PAPER_MEAN, _PAPER_CENTER_BIASED)}
"""The recipes by name."""


def get_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe by name, or one of yours as it is.

    Raises:
        RecipeError: if there is none of that name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        near = difflib.get_close_matches(str(recipe), RECIPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}{hint}")
    return RECIPES[recipe]
