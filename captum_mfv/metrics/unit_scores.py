"""Scores of a unit: multifacetedness, and the share of its activation in stable facets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.facets.separation import excess
from captum_mfv.facets.stability import STABLE
from captum_mfv.storage.schema import check_seed

__all__ = ["Multifacetedness", "coverage", "multifacetedness"]


@dataclass(frozen=True)
class Multifacetedness:
    """How multifaceted a unit is, measured on the images that activate it.

    Args:
        score: share of the codes' scatter that clusters explain in excess of codes of one cluster with the same
            covariance, in [0, 1]; 0 for one facet, also an elongated or heavy-tailed one. It does not depend on the
            requested number of facets, so that units can be ranked by it.
        p_value: p-value of one facet, whose score may be up to .05.
        coverage: share of the unit's activation in stable facets (`coverage`); None without the facets' stability.
    """

    score: float
    p_value: float
    coverage: float | None


def multifacetedness(facets: FacetSet, *, seed: int = 0) -> Multifacetedness:
    """Return how multifaceted a unit is, with a p-value, and the share of its activation in stable facets.

    Compare units on the same number of images, such as the top 200 of each (`top_images`): small clusters are easier
    to detect in more images.

    Args:
        facets: facets of the unit.
        seed: seed of the null distribution's draws.
    """
    codes = facets.codes[np.isfinite(facets.activations)].astype(np.float64)
    found = excess(codes, check_seed(seed))
    explained = None if facets.stability is None else coverage(facets)
    return Multifacetedness(found.value, found.p_value, explained)


def coverage(facets: FacetSet) -> float:
    """Return the share of the unit's activation, summed over its images, that is in stable facets, in [0, 1].

    A facet is stable if its mean recovery in bootstrap samples is at least .6 (`captum_mfv.facets.stability`).
    Negative activations count as 0; if no activation is positive, all images count the same.

    Raises:
        FacetError: if the facet set has no stability.
    """
    if facets.stability is None:
        raise FacetError("coverage needs the stability of facets; find facets with n_bootstraps above 0")
    readable = np.isfinite(facets.activations)
    weights = np.maximum(facets.activations[readable], 0)
    weights = weights if weights.any() else np.ones_like(weights)
    stable = np.append(np.array(facets.stability) >= STABLE, False)  # noise is -1: the last entry
    return float(np.average(stable[facets.labels[readable]], weights=weights))
