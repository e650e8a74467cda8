"""How multifaceted a unit is, and what the network makes of its images: does each show its facet?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.collect import collect
from captum_mfv.errors import FacetError
from captum_mfv.facets import FacetSet, nearest
from captum_mfv.images import InputSpec
from captum_mfv.separation import excess
from captum_mfv.stability import STABLE

__all__ = ["ImageScores", "Multifacetedness", "coverage", "multifacetedness", "percentile", "retention", "score_images"]


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


@dataclass(frozen=True)
class Multifacetedness:
    """How multifaceted a unit is, by the images that activate it.

    Args:
        score: how much better clusters explain its images' codes than they explain codes of one cluster
            with the same covariance, in [0, 1]: 0 for one facet, also an elongated or heavy-tailed one.
            It doesn't depend on the number of facets that was asked for, so that units can be ranked by it.
        p_value: of one facet, allowing it a score of .05.
        coverage: share of the unit's activation that its stable facets explain, see `coverage`; None if
            the facets' stability wasn't tried.
    """

    score: float
    p_value: float
    coverage: float | None


def multifacetedness(facets: FacetSet, *, seed: int = 0) -> Multifacetedness:
    """How multifaceted a unit is: one figure, its p-value, and what the facets explain.

    Compare units by the same number of images, such as the top 200 of each (`top_images`): with more, a
    cluster that is small shows better.

    Args:
        facets: the unit's facets.
        seed: of the null's draws.
    """
    codes = facets.codes[np.isfinite(facets.activations)].astype(np.float64)
    found = excess(codes, seed)
    explained = None if facets.stability is None else coverage(facets)
    return Multifacetedness(found.value, found.p_value, explained)


def coverage(facets: FacetSet) -> float:
    """Share of the unit's activation, summed over its images, that lies in stable facets, in [0, 1].

    Stable is a facet that bootstrap samples find again (`captum_mfv.stability`, at least .6). Negative
    activations count as none.

    Raises:
        FacetError: if the facets' stability wasn't tried.
    """
    if facets.stability is None:
        raise FacetError("coverage needs the facets' stability; find them with n_bootstraps above 0")
    seen = np.isfinite(facets.activations)
    weights = np.maximum(facets.activations[seen], 0)
    weights = weights if weights.any() else np.ones_like(weights)
    stable = np.append(np.array(facets.stability) >= STABLE, False)  # noise, -1, is never
    return float(np.average(stable[facets.labels[seen]], weights=weights))


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
