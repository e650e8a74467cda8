"""Recipes: how an image is synthesised, as data."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from captum_mfv.errors import RecipeError
from captum_mfv.optvis.objectives import FACET_WEIGHTS
from captum_mfv.optvis.terms import TERMS
from captum_mfv.optvis.transform import make_transform
from captum_mfv.storage.untrusted import read_json

__all__ = ["PARAMS", "RECIPES", "STARTS", "Phase", "Ramp", "Recipe", "get_recipe", "read_recipe"]

STARTS = ("mean", "medoid", "noise", "spectrum")
PARAMS = ("fft", "pixel", "maco")
OPTIMIZERS = ("adam", "tv")
_MOST_STEPS = 10**6


@dataclass(frozen=True)
class Ramp:
    """A number that changes over the n steps of a phase: start + (end − start)·i/n at step i.

    With ``released``, the schedule as the paper's code ran it, where a misplaced parenthesis made it
    start − (start − end·i)/n: from start·(1 − 1/n) to about start + end.

    >>> [Ramp(1, 2).at(step, 4) for step in range(4)]
    [1.0, 1.25, 1.5, 1.75]
    >>> [Ramp(1, 2, released=True).at(step, 4) for step in range(4)]
    [0.75, 1.25, 1.75, 2.25]
    """

    start: float
    end: float
    released: bool = False

    def __post_init__(self) -> None:
        _finite("what a phase's numbers begin and end with", self.start, self.end)

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
        weights: objective terms (`terms.TERMS`) and their weights.
        optimizer: ``adam``, or ``tv`` for `optimizers.TVAscent`.
        lr: Adam's learning rate, or TV ascent's step in grey levels.
        scale: side of the canvas, as a share of the image's; the canvas is resized (cubic) before the phase.
            Of one that ends above 1 the middle is the image.
        tv_weight: the denoiser's weight, for ``tv``.
        transforms: functions of `transform` in order and their arguments, drawn anew for each image and step.

    Raises:
        RecipeError: if a number or a name can't be used.
    """

    steps: int
    weights: Mapping[str, float]
    optimizer: str = "adam"
    lr: Ramp = field(default_factory=lambda: Ramp(0.03, 0.03))
    scale: float = 1.0
    tv_weight: Ramp | None = None
    transforms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise RecipeError(f"a phase's steps must be an integer of at least 1, not {self.steps!r}")
        _check_most(self.steps)
        if not self.weights:
            raise RecipeError(f"a phase needs at least one objective; there are {', '.join(TERMS)}")
        for name in self.weights:
            _among("objective", name, TERMS)
        _among("optimizer", self.optimizer, OPTIMIZERS)
        if not 0 < self.scale <= 16:
            raise RecipeError(f"a phase's scale must be above 0 and at most 16, not {self.scale}")
        if min(self.lr.start, self.lr.end) < 0:
            raise RecipeError(f"a phase's lr must be at least 0, not {self.lr.start} to {self.lr.end}")
        _finite("an objective's weight", *self.weights.values())
        for name, arguments in self.transforms.items():
            _finite(f"the arguments of transform {name}", *arguments.values())
            make_transform(name, arguments, 1, torch.Generator())


@dataclass(frozen=True)
class Recipe:
    """A start, a parameterization and phases.

    Args:
        name: how it is called.
        summary: what it is, in a line.
        start: ``mean`` (mean image of the nearest members), ``medoid`` (the nearest member), ``noise``, or
            ``spectrum`` (noise with the spectrum of the facet's images).
        param: ``fft``, ``pixel``, or ``maco`` (phases under the magnitudes of the facet's images).
        phases: what is done, in order.
        n_images: how many members the mean image has.
        noise: mean and standard deviation of the pixels of a noise start.
        colors: ``imagenet``, or ``images`` to measure colour decorrelation on the facets' images.

    Raises:
        RecipeError: if a name isn't known or there is no phase.
    """

    name: str
    summary: str
    start: str
    param: str
    phases: tuple[Phase, ...]
    n_images: int = 15
    noise: tuple[float, float] = (0.5, 0.01)
    colors: str = "imagenet"

    def __post_init__(self) -> None:
        _among("start", self.start, STARTS)
        _among("param", self.param, PARAMS)
        _among("colors", self.colors, ("imagenet", "images"))
        if not self.phases:
            raise RecipeError(f"recipe {self.name} has no phase")
        if type(self.n_images) is not int or self.n_images < 1:
            raise RecipeError(f"recipe {self.name}: n_images must be an integer of at least 1, not {self.n_images!r}")
        _finite(f"recipe {self.name}: noise", *self.noise)
        if self.param != "pixel" and any(phase.optimizer == "tv" for phase in self.phases):
            raise RecipeError(f"recipe {self.name}: the optimizer tv steps on pixels; set param to pixel")

    def with_steps(self, steps: int) -> Recipe:
        """The same recipe in another number of steps, its phases in proportion, each at least one.

        >>> recipe = get_recipe("paper-mean")
        >>> [phase.steps for phase in recipe.phases]
        [190, 150, 20, 10]
        >>> [phase.steps for phase in recipe.with_steps(37).phases]
        [19, 15, 2, 1]
        """
        if steps < len(self.phases):
            raise RecipeError(f"recipe {self.name} has {len(self.phases)} phases, so steps must be at least that")
        _check_most(steps)
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

    def to_json(self) -> str:
        """The recipe as JSON, to change and give to `read_recipe`."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """A recipe from the tables and lists of its JSON.

        Raises:
            RecipeError: if they aren't those of a recipe.
        """
        try:
            table = _known(cls, data)
            phases = tuple(_phase(phase) for phase in table["phases"])
            mean, std = map(float, table.get("noise", (0.5, 0.01)))
            return cls(**{**table, "phases": phases, "noise": (mean, std)})
        except RecipeError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise RecipeError(f"this isn't a recipe: {type(error).__name__}: {error}") from error


def _phase(data: Mapping[str, Any]) -> Phase:
    table = _known(Phase, data)
    ramps = {name: Ramp(**_known(Ramp, table[name])) for name in ("lr", "tv_weight") if table.get(name) is not None}
    table["weights"] = _numbers(table["weights"])
    table["transforms"] = {name: _numbers(arguments) for name, arguments in table.get("transforms", {}).items()}
    return Phase(**{**table, **ramps})


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(number) for name, number in data.items()}


def _known(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    names = [item.name for item in fields(kind)]
    for name in data:
        _among(f"setting of a {kind.__name__.lower()}", name, names)
    return dict(data)


def _check_most(steps: int) -> None:
    if steps > _MOST_STEPS:
        raise RecipeError(f"steps must be at most {_MOST_STEPS}, not {steps}")


def _finite(what: str, *numbers: float) -> None:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise RecipeError(f"{what} must be finite numbers, not {number!r}")


def _among(what: str, name: Any, names: Any) -> None:
    if name not in names:
        near = difflib.get_close_matches(str(name), [str(n) for n in names], n=1)
        raise RecipeError(
            f"no {what} {name!r}; there are {', '.join(names)}{f'; did you mean {near[0]}?' if near else ''}"
        )


def _ascent(
    term: str,
    scale: float,
    steps: int,
    lr: tuple[float, float],
    tv: tuple[float, float],
    margin: float = 0.0,
    window: float = 0.3,
) -> Phase:
    """A row of the paper's schedules, TV weights as its code ran them; the margin in pixels of 227."""
    transforms = {"center_crop": {"window": window}, "gradient_mask": {"margin": margin / 227}}
    return Phase(steps, {term: 1.0}, "tv", Ramp(*lr), scale, Ramp(*tv, released=True), transforms)


_AFFINE: Mapping[str, Mapping[str, float]] = {"affine": {"degrees": 15.0, "scale": 0.25, "shift": 0.1}}


def _adam(
    steps: int,
    weights: Mapping[str, float],
    lr: tuple[float, float],
    transforms: Mapping[str, Mapping[str, float]] = _AFFINE,
) -> Phase:
    return Phase(steps, weights, lr=Ramp(*lr), transforms=transforms)


_FACET = Recipe(
    name="facet",
    summary="from the mean image: the unit, the facet's code, and activations distributed as on its images",
    start="mean",
    param="fft",
    phases=(_adam(160, FACET_WEIGHTS, (0.05, 0.01)),),
)

_FACET_FROM_NOISE = replace(
    _FACET,
    name="facet-from-noise",
    summary="the same from noise with the spectrum of the facet's images, to see what the mean image gives away",
    start="spectrum",
    phases=(  # the facet first: a unit that is driven hard from noise finds what any facet has
        _adam(120, {**FACET_WEIGHTS, "capped_unit": 0.5}, (0.05, 0.03)),
        _adam(80, FACET_WEIGHTS, (0.03, 0.01)),
    ),
)

_PAPER_MEAN = Recipe(
    name="paper-mean",
    summary="the paper's ascent from the mean image (arXiv 1602.03616), schedules as its code ran them",
    start="mean",
    param="pixel",
    phases=(
        _ascent("unit", 1.0, 190, (1, 1), (0.4, 0.4)),
        _ascent("unit", 1.2, 150, (1, 1), (0.01, 2)),
        _ascent("unit", 1.2, 20, (2, 2), (0.1, 2), margin=50, window=0.2),
        _ascent("unit", 1.2, 10, (2, 2), (0.4, 2)),
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
        _ascent("unit", 1.44, 150, (1, 1), (0.01, 2)),
        _ascent("unit", 1.44, 30, (3, 3), (0.1, 2), margin=50, window=0.1),
        _ascent("unit", 1.44, 10, (6, 3), (0.01, 2)),
    ),
    noise=(175 / 255, 8 / 255),
)

_LOGIT = Recipe(
    name="logit",
    summary="from the mean image: the unit alone, as a control",
    start="mean",
    param="fft",
    phases=(_adam(200, {"unit": 1.0}, (0.01, 0.01)),),
)

_MACO = Recipe(
    name="maco",
    summary="phases alone, under the mean magnitudes of the facet's images (MACO, arXiv 2306.06805)",
    start="spectrum",
    param="maco",
    phases=(
        Phase(
            256,
            {"unit": 1.0},
            lr=Ramp(0.3, 0.03),
            transforms={"random_crop": {"share": 0.25, "spread": 0.05}, "noise": {"std": 0.08}},
        ),
    ),
)

_FACETED = Recipe(
    name="faceted",
    summary="from noise: the unit and a probe of the facet (faceted feature visualization, Goh et al. 2021)",
    start="noise",
    param="fft",
    phases=(_adam(200, {"unit": 1.0, "probe": 1.0, "grey": 10.0}, (0.02, 0.02)),),
)

# Lucent's jitter is by 4 + 2 of 128 pixels; it fills with grey what comes in at the border, ours reflects it.
_LUCENT = {"jitter": {"shift": 0.05}, "affine": {"degrees": 10.0, "scale": 0.1, "shift": 0.0}}

_PLAIN = Recipe(
    name="plain",
    summary="from noise: the unit alone, without facets, in Lucent's default steps, learning rate and transforms",
    start="noise",
    param="fft",
    phases=(_adam(512, {"unit": 1.0}, (0.05, 0.05), _LUCENT),),
)

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (_FACET, _FACET_FROM_NOISE, _PAPER_MEAN, _PAPER_CENTER_BIASED, _LOGIT, _MACO, _FACETED, _PLAIN)
}
"""The recipes by name."""


def get_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe by name, one read from the ``.json`` file of that path, or one of yours as it is.

    Raises:
        RecipeError: if there is none of that name, or the file holds none.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str) and recipe.endswith(".json"):
        return read_recipe(recipe)
    _among("recipe", recipe, RECIPES)
    return RECIPES[recipe]


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a JSON file, such as ``captum-mfv list recipes NAME`` prints.

    Raises:
        RecipeError: if it can't be read.
    """
    try:
        data = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{os.fspath(path)} can't be read as a recipe: {error}") from error
    return Recipe.from_dict(data)
