"""Controls of the recipe ``facet``, as methods of the benchmark: by name, the images that a real method must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.bench.peers import Render
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, InputSpec
from captum_mfv.metrics import CONTROLS, draw_control
from captum_mfv.optvis.initializer import mean_images, medoid_images
from captum_mfv.optvis.recipes import get_recipe

__all__ = ["BENCH_CONTROLS", "BenchControl"]

Labels = Callable[[FacetSet, int], NDArray[np.int64]]


@dataclass(frozen=True)
class BenchControl:
    """A control.

    Args:
        summary: what is shown, in one line.
        render: the function, called as a method's.
        labels: function from facets and seed to the labels of the real images with which the images are compared.
        has_steps: whether images are synthesized, in a number of steps.
    """

    summary: str
    render: Render
    labels: Labels = lambda facets, seed: facets.labels
    has_steps: bool = True


def _nearest(model: nn.Module, unit: object, facets: FacetSet, images: Images, **options: object) -> list[Tensor]:
    return list(medoid_images(facets.facets, images))


def _start(model: nn.Module, unit: object, facets: FacetSet, images: Images, **options: object) -> list[Tensor]:
    return list(mean_images(facets.facets, images))


def _without_nearest(facets: FacetSet, seed: int) -> NDArray[np.int64]:
    """Return the labels without each facet's nearest image, unless it is the only one."""
    labels: NDArray[np.int64] = facets.labels.copy()
    labels[[facet.members[0] for facet in facets if len(facet) > 1]] = -1
    return labels


def _draw(
    name: str,
    model: nn.Module,
    unit: object,
    facets: FacetSet,
    images: Images,
    *,
    input_spec: InputSpec,
    seed: int,
    steps: int,
) -> list[Tensor]:
    """Return the images of a control of `CONTROLS`."""
    recipe = get_recipe("facet").with_steps(steps)
    drawn = draw_control(name, model, facets, images, recipe, input_spec=input_spec, seed=seed)
    if not all(one.complete for one in drawn):
        raise KeyboardInterrupt
    return [one.image for one in drawn]


def _labels(name: str, facets: FacetSet, seed: int) -> NDArray[np.int64]:
    return CONTROLS[name].facets(facets, seed)[1]


BENCH_CONTROLS: Mapping[str, BenchControl] = {
    "nearest image": BenchControl(
        "the real image nearest to the facet's center, compared with the facet's other images",
        _nearest,
        _without_nearest,
        has_steps=False,
    ),
    "start alone": BenchControl(
        "the mean image of the facet, from which the recipe starts, without a step", _start, has_steps=False
    ),
    **{name: BenchControl(one.summary, partial(_draw, name), partial(_labels, name)) for name, one in CONTROLS.items()},
}
"""Controls by name: two without synthesis, and those of `metrics.CONTROLS`."""
