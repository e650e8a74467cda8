"""How multifaceted a unit is, and how much of its activation its facets explain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.facets.separation import excess
from captum_mfv.facets.stability import STABLE

__all__ = ["Multifacetedness", "coverage", "multifacetedness"]


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

    Stable is a facet that bootstrap samples find again (`captum_mfv.facets.stability`, at least .6). Negative
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
