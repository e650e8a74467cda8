"""Scores of a unit's strongest images, the examples, from their codes in an independent network: Semantic Lens.

All three are cosines, and so depend on where the codes' origin is: if codes have a large common part, as after a ReLU,
clarity and redundancy are near 1 and polysemanticity is near 0 for every unit.

Source: Dreyer et al. 2025, "Mechanistic understanding and validation of large AI models with SemanticLens", arXiv
2501.05398, whose network is a CLIP.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics.pairwise import cosine_similarity

from captum_mfv.errors import FacetError
from captum_mfv.storage.schema import check_seed

__all__ = ["clarity", "polysemanticity", "redundancy"]

Floats = NDArray[np.floating[Any]]

_N_SAMPLES = 10


def clarity(codes: Floats) -> float:
    """Return the mean cosine of two examples of a unit, in [-1 / (n - 1), 1]; 1: all have the same direction.

    Args:
        codes: (n, D) codes of the unit's examples, two at least.

    Raises:
        FacetError: if there are fewer than two codes, or a code isn't finite.
    """
    similar = cosine_similarity(_checked(codes))
    n = len(similar)
    return float((similar.sum() - np.trace(similar)) / (n * (n - 1)))


def polysemanticity(codes: Floats, *, seed: int = 0) -> float:
    """Return 1 minus the cosine of the centers of two k-means clusters of a unit's examples, in [0, 2].

    If a cluster has one example, the centers are far apart for that example alone; the score is then the mean of 1
    minus the cosine of each of the first ten examples to the mean of all, as the authors' code has it. Arguments and
    errors are those of `clarity`, and the seed of k-means.
    """
    codes = _checked(codes)
    clusters = KMeans(2, n_init=10, random_state=check_seed(seed))
    if len(np.unique(codes, axis=0)) > 1 and np.bincount(clusters.fit_predict(codes)).min() > 1:
        return float(1 - cosine_similarity(clusters.cluster_centers_)[0, 1])
    return float(1 - cosine_similarity(codes[:_N_SAMPLES], codes.mean(0, keepdims=True)).mean())


def redundancy(means: Floats) -> NDArray[np.float64]:
    """Return the largest cosine of each unit's mean code to that of another unit, (n_units,) in [-1, 1].

    Args:
        means: (n_units, D) mean code of each unit's examples, of two units at least.

    Raises:
        FacetError: if there are fewer than two units, or a code isn't finite.
    """
    similar = cosine_similarity(_checked(means))
    np.fill_diagonal(similar, -np.inf)
    return np.asarray(similar.max(1))


def _checked(codes: Floats) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.asarray(codes, np.float64)
    if found.ndim != 2 or len(found) < 2 or not np.isfinite(found).all():
        raise FacetError(f"codes must be (n, D) and finite, with n of at least 2, not an array {found.shape}")
    return found
