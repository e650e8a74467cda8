"""Controls of the recipe `facet`, for `suite.py`.

Each function is called like those of `peers.py` and returns an image per facet:

nearest_image      the real image nearest to the facet's center, evaluated with the facet's other images
start_alone        the facet's mean image, from which the recipe starts, without a step
another_start      the recipe from another facet's mean image
unit_alone         the unit's term alone, without those of the facet
half_of_images     the recipe with every second image of each facet, evaluated with the other half
shuffled_clusters  the same of random clusters of the same sizes: retention and predictions must be at chance

`captum_mfv.metrics.CONTROLS` has the last four. ``COMPARED_WITH`` has the labels of the real images with which a
control's images are compared, where these are not the facets' own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv import FacetSet, InputSpec
from captum_mfv.images import Images
from captum_mfv.metrics import CONTROLS, draw_control
from captum_mfv.optvis.initializer import mean_images, medoid_images
from captum_mfv.optvis.recipes import get_recipe

_SEED = 0  # that of suite.py

Draw = Callable[..., list[Tensor]]


def nearest_image(
    model: nn.Module, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    return list(medoid_images(facets.facets, images))


def _others(facets: FacetSet) -> NDArray[np.int64]:
    """Return the labels without each facet's nearest image, unless it is the only one."""
    labels = facets.labels.copy()
    labels[[facet.members[0] for facet in facets if len(facet) > 1]] = -1
    return labels


def start_alone(
    model: nn.Module, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    return list(mean_images(facets.facets, images))


def _control(name: str) -> Draw:
    """Return the function that renders a control of `CONTROLS`."""

    def draw(
        model: nn.Module, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
    ) -> list[Tensor]:
        recipe = get_recipe("facet").with_steps(steps)
        drawn = draw_control(name, model, facets, images, recipe, input_spec=input_spec, seed=seed)
        return [one.image for one in drawn]

    return draw


another_start = _control("another facet's start")
unit_alone = _control("unit alone")
half_of_images = _control("half of the images")
shuffled_clusters = _control("shuffled clusters")

COMPARED_WITH: Mapping[Draw, Callable[[FacetSet], NDArray[np.int64]]] = {
    nearest_image: _others,
    half_of_images: lambda facets: CONTROLS["half of the images"].facets(facets, _SEED)[1],
    shuffled_clusters: lambda facets: CONTROLS["shuffled clusters"].facets(facets, _SEED)[1],
}
