"""What the network makes of its facets' images: does each show its facet?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.collect import collect
from captum_mfv.facets import FacetSet, nearest
from captum_mfv.images import InputSpec

__all__ = ["ImageScores", "percentile", "retention", "score_images"]


@dataclass(frozen=True)
class ImageScores:
    """Figures of one facet's image.

    Args:
        index: the facet.
        activation: the unit's activation on the image.
        percentile: share of the dataset's images that activate the unit less, in [0, 1].
        nearest_facet: the facet whose center, in the network's own codes, is nearest.
        start_distance: root mean square difference from the start image, in [0, 1].
    """

    index: int
    activation: float
    percentile: float
    nearest_facet: int
    start_distance: float


def percentile(activation: float, real: NDArray[Any]) -> float:
    """Share of real images that activate the unit less than this, in [0, 1]; NaNs are left out."""
    real = real[np.isfinite(real)]
    return float((real < activation).mean())


def retention(codes: NDArray[Any], facets: FacetSet) -> float:
    """Share of images (one a facet, in order) whose nearest center is their own; chance is 1 / n_facets."""
    return float((nearest(codes, facets.centers) == np.arange(len(facets))).mean())


def score_images(
    model: nn.Module,
    facets: FacetSet,
    images: Sequence[Tensor],
    starts: Sequence[Tensor],
    *,
    input_spec: InputSpec | None = None,
) -> tuple[list[ImageScores], float]:
    """Figures of every facet's image, and the share that keeps its facet in the network's own codes.

    The network that made an image is no independent witness: its own codes are an upper bound.

    Args:
        model: the model in which the facets were found; left as it was.
        facets: the facets.
        images: (C, H, W) in [0, 1], one a facet, in order.
        starts: where they started.
        input_spec: what turns images in [0, 1] into the model's input.
    """
    seen = collect(model, facets.unit, images, code=facets.code, input_spec=input_spec)
    own = nearest(seen.codes, facets.centers)
    scores = [
        ImageScores(
            index=k,
            activation=float(seen.activations[k]),
            percentile=percentile(float(seen.activations[k]), facets.activations),
            nearest_facet=int(own[k]),
            start_distance=float((images[k] - starts[k]).square().mean().sqrt()),
        )
        for k in range(len(facets))
    ]
    return scores, retention(seen.codes, facets)
