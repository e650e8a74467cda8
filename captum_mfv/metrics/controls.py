"""Controls: the same synthesis with one part removed or replaced, and facets of shuffled or halved images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images
from captum_mfv.optvis.initializer import mean_images
from captum_mfv.optvis.recipes import Recipe
from captum_mfv.optvis.render import Rendering, render_facets
from captum_mfv.storage.schema import check_seed

__all__ = ["CONTROLS", "Control", "draw_control", "halved", "shuffled"]

Labels = NDArray[np.int64]
_OF_THE_UNIT = ("unit", "capped_unit", "probability")  # terms that do not depend on facets


def shuffled(facets: FacetSet, *, seed: int = 0) -> FacetSet:
    """Return facets of the same sizes whose images are assigned at random, by a permutation of the labels."""
    labels, rng = facets.labels.copy(), np.random.default_rng(check_seed(seed))
    labels[labels >= 0] = rng.permutation(labels[labels >= 0])
    return replace(facets, labels=labels, stability=None, stability_interval=None, p_value=None)


def halved(facets: FacetSet) -> tuple[FacetSet, Labels]:
    """Return facets of every second image, nearest to the center first, and the labels of the other images.

    Random clusters have centers too, and an image synthesized from a cluster's images is near the cluster's center.
    Only images that were not used for the synthesis can distinguish facets from random clusters.

    Returns:
        Facets of one half, and the facet index of each image of the other half, (n_images,), -1 for all other images.

    Raises:
        FacetError: if a facet has one image.
    """
    if single := [facet.index for facet in facets if len(facet) == 1]:
        raise FacetError(
            f"facet {single[0]} has one image and can't be halved; find fewer facets, or leave out the controls "
            f"'half of the images' and 'shuffled clusters'"
        )
    kept, left = np.full_like(facets.labels, -1), np.full_like(facets.labels, -1)
    for facet in facets:
        kept[facet.members[::2]] = facet.index
        left[facet.members[1::2]] = facet.index
    return replace(facets, labels=kept, stability=None, stability_interval=None, p_value=None), left


@dataclass(frozen=True)
class Control:
    """The same synthesis with one part removed or replaced.

    Args:
        summary: what is removed or replaced, in one line.
        recipe: function from the run's recipe to that of the control.
        start: function from facets and dataset to start images; None: the start of the recipe.
        facets: function from facets and seed to the facets that are rendered, and the labels of the real images with
            which they are compared.
        seed_offset: offset added to the run's seed.
    """

    summary: str
    recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe
    start: Callable[[FacetSet, Images], Tensor] | None = None
    facets: Callable[[FacetSet, int], tuple[FacetSet, Labels]] = lambda facets, seed: (facets, facets.labels)
    seed_offset: int = 0


def _unit_alone(recipe: Recipe) -> Recipe:
    phases = []
    for phase in recipe.phases:
        weights = {name: weight for name, weight in phase.weights.items() if name in _OF_THE_UNIT}
        phases.append(replace(phase, weights=weights or {"unit": 1.0}))
    return replace(recipe, phases=tuple(phases))


CONTROLS: Mapping[str, Control] = {
    "another facet's start": Control(
        "each image starts at the mean image of the previous facet",
        start=lambda facets, images: mean_images(facets.facets, images).roll(1, 0),
    ),
    "one start for all": Control(
        "every image starts at the mean of the facets' mean images",
        start=lambda facets, images: mean_images(facets.facets, images).mean(0),
    ),
    "noise start": Control("every image starts at noise", recipe=lambda recipe: replace(recipe, start="noise")),
    "unit alone": Control("the objective is the unit's activation, without the terms of the facet", recipe=_unit_alone),
    "half of the images": Control(
        "the image is synthesized from half of the facet's images and compared with the other half",
        facets=lambda facets, seed: halved(facets),
    ),
    "shuffled clusters": Control(
        "half of the images of random clusters: retention and predictions must be at chance",
        facets=lambda facets, seed: halved(shuffled(facets, seed=seed)),
    ),
    "another seed": Control("the same facets with the next seed", seed_offset=1),
}
"""Controls that can be rendered, by name."""


def draw_control(
    name: str, model: nn.Module, facets: FacetSet, images: Images, recipe: Recipe, *, seed: int = 0, **options: Any
) -> list[Rendering]:
    """Render a control: one image for each facet.

    Args:
        name: one of `CONTROLS`.
        model: the model; unchanged afterwards.
        facets: the facets of the run.
        images: the dataset in which the facets were found.
        recipe: the run's recipe.
        seed: the run's seed.
        **options: further arguments of `optvis.render.render_facets`, such as ``size`` and ``input_spec``.

    Raises:
        FacetError: if there is no control of that name, or the control needs halves and a facet has one image.
        TypeError, ValueError: if the seed is not an integer from 0 to 2**32 - 1.
    """
    control, seed = get_control(name), check_seed(seed)
    drawn, _ = control.facets(facets, seed)
    if control.start is not None:
        options["start"] = control.start(drawn, images)
    return render_facets(
        model, drawn, images, recipe=control.recipe(recipe), seed=seed + control.seed_offset, **options
    )


def get_control(name: str) -> Control:
    """Return a control by name; raise FacetError if there is none of that name."""
    if name not in CONTROLS:
        raise FacetError(f"no control {name!r}; there are {', '.join(CONTROLS)}")
    return CONTROLS[name]
