"""Controls: the same synthesis with one thing taken away, and facets that mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, InputSpec
from captum_mfv.optvis.initializer import mean_images
from captum_mfv.optvis.recipes import Recipe
from captum_mfv.optvis.render import Rendering, render_facets

__all__ = ["CONTROLS", "Control", "draw_control", "halved", "shuffled"]

Labels = NDArray[np.int64]
_OF_THE_UNIT = ("unit", "capped_unit", "probability")  # terms that know nothing of facets

Start = Callable[[FacetSet, Images], Tensor]


def shuffled(facets: FacetSet, *, seed: int = 0) -> FacetSet:
    """Clusters of the same sizes, of the same images, that mean nothing."""
    labels = facets.labels.copy()
    kept = labels >= 0
    labels[kept] = np.random.default_rng(seed).permutation(labels[kept])
    return replace(facets, labels=labels, stability=None, stability_interval=None, p_value=None)


def halved(facets: FacetSet) -> tuple[FacetSet, Labels]:
    """Every second image of each facet, nearest to the center first, and the labels of the images left out.

    Clusters that mean nothing have centers too, and an image made from a cluster's images is near theirs: only
    images that took no part tell the two apart.

    Returns:
        Facets of the one half; of the other the facet of each image, (n_images,), -1 where it isn't in it.
    """
    kept, left = np.full_like(facets.labels, -1), np.full_like(facets.labels, -1)
    for facet in facets:
        kept[facet.members[::2]] = facet.index
        left[facet.members[1::2]] = facet.index
    return replace(facets, labels=kept, stability=None, stability_interval=None, p_value=None), left


@dataclass(frozen=True)
class Control:
    """The same synthesis with one thing taken away or replaced.

    Args:
        summary: what is taken away, in a line.
        recipe: the recipe it takes, from the one it controls.
        start: where images start, from facets and dataset; None: where the recipe says.
        facets: the facets that are drawn, from facets and seed, and the labels of the images that judge them.
        seed_offset: how far its seed is from the one it controls.
    """

    summary: str
    recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe
    start: Start | None = None
    facets: Callable[[FacetSet, int], tuple[FacetSet, Labels]] = lambda facets, seed: (facets, facets.labels)
    seed_offset: int = 0


def _others_starts(facets: FacetSet, images: Images) -> Tensor:
    return mean_images(facets.facets, images).roll(1, 0)


def _global_mean(facets: FacetSet, images: Images) -> Tensor:
    """One start for all: the mean of the facets' own mean images, each of as many images."""
    return mean_images(facets.facets, images).mean(0)


def _unit_alone(recipe: Recipe) -> Recipe:
    phases = []
    for phase in recipe.phases:
        weights = {name: weight for name, weight in phase.weights.items() if name in _OF_THE_UNIT}
        phases.append(replace(phase, weights=weights or {"unit": 1.0}))
    return replace(recipe, phases=tuple(phases))


CONTROLS: Mapping[str, Control] = {
    "another facet's start": Control(
        "each image starts at the mean image of the facet before it", start=_others_starts
    ),
    "one start for all": Control("every image starts at the mean of the facets' mean images", start=_global_mean),
    "noise start": Control("every image starts at noise", recipe=lambda recipe: replace(recipe, start="noise")),
    "unit alone": Control("the recipe's objective is the unit, and nothing of the facet", recipe=_unit_alone),
    "half of the images": Control(
        "half of each facet's images make the image, the other half judges it",
        facets=lambda facets, seed: halved(facets),
    ),
    "shuffled clusters": Control(
        "the same of clusters that mean nothing: retention and predictions must fall to chance",
        facets=lambda facets, seed: halved(shuffled(facets, seed=seed)),
    ),
    "another seed": Control("the same facets once more, from the next seed", seed_offset=1),
}
"""The controls that are drawn, by name."""


def draw_control(
    name: str,
    model: nn.Module,
    facets: FacetSet,
    images: Images,
    recipe: Recipe,
    *,
    size: int | None = None,
    input_spec: InputSpec | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> list[Rendering]:
    """Draw a control of images that a recipe made: one image for each facet.

    Args:
        name: one of `CONTROLS`.
        model: the model; left as it was.
        facets: the facets of the images that are controlled.
        images: the dataset in which they were found.
        recipe: what made the images.
        size: side of the images in pixels.
        input_spec: what turns images in [0, 1] into the model's input.
        seed: what made the images.
        dtype: precision in which the network runs under autocast.
        progress: show a progress bar.

    Raises:
        FacetError: if there is no control of that name, or a facet is too small to be halved.
    """
    control = get_control(name)
    drawn, _ = control.facets(facets, seed)
    return render_facets(
        model,
        drawn,
        images,
        recipe=control.recipe(recipe),
        size=size,
        start=None if control.start is None else control.start(drawn, images),
        input_spec=input_spec,
        seed=seed + control.seed_offset,
        dtype=dtype,
        progress=progress,
    )


def get_control(name: str) -> Control:
    """A control by name.

    Raises:
        FacetError: if there is none of that name.
    """
    if name not in CONTROLS:
        raise FacetError(f"no control {name!r}; there are {', '.join(CONTROLS)}")
    return CONTROLS[name]
