"""How much better clusters explain codes than they explain one cloud: the gap statistic, its p-value and its number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from captum_mfv.facets.clouds import Array, elliptical, log_scatter, principal, sample

__all__ = ["Excess", "excess"]

_COMPONENTS = 50
_MOST_CODES = 500  # larger numbers of codes are sampled
_NUMBERS, _DRAWS = (2, 3, 4, 5, 6, 8, 10, 12), 50
_DEVIATIONS = 3.0  # of the null: a smaller excess is as good
_STARTS, _STARTS_OF_CODES = 2, 10  # clusters far apart are missed from few starts, a cloud's hardly
_FAR = 1.5  # in median distances from the median code; principal axes then aren't those of a few far codes
_ALLOWED = 0.05  # excess of a single non-Gaussian cluster under the null hypothesis


@dataclass(frozen=True)
class Excess:
    """The excess scatter that clusters explain.

    Args:
        score: the excess as a share of the null's scatter within clusters, in [0, 1]: 0 for one cluster of any shape,
            close to 1 for clusters far apart.
        p_value: p-value of one cluster, whose score may be up to .05.
        n_clusters: the smallest number of clusters whose excess is within three standard deviations of the largest.
    """

    score: float
    p_value: float
    n_clusters: int


def excess(codes: Array, seed: int = 0) -> Excess:
    """Return the excess scatter that clusters explain, compared with one elliptical cloud of the same covariance.

    The excess is the largest difference between the logarithms of the within-cluster scatters (the gap statistic,
    Tibshirani et al. 2001) over 2 to 12 clusters, in the first 50 principal components. So that heavy tails do not
    count as clusters, distances from the median code are clipped to 1.5 times their median, and then Mahalanobis
    distances to their median; the cloud has the same Mahalanobis distances. The p-value allows an excess of .05,
    because real codes are not elliptical, and is corrected for the choice of the number of clusters.

    Args:
        codes: (n, d) finite codes.
        seed: seed of k-means and of the null distribution's draws.
    """
    rng = np.random.default_rng(seed)
    codes = sample(codes, _MOST_CODES, rng)
    n_distinct = len(np.unique(codes, axis=0))
    components, spread = principal(_clipped(codes - np.median(codes, 0), _FAR))
    codes, spread = principal(_clipped(components[:, :_COMPONENTS], 1.0, spread[:_COMPONENTS]))
    numbers = [k for k in _NUMBERS if 3 * k <= len(codes) and k <= n_distinct]
    if not numbers or not len(spread):
        return Excess(0.0, 1.0, 1)
    radii = np.linalg.norm(codes / spread, axis=1)
    clouds = np.stack([elliptical(radii, spread, rng) for _ in range(_DRAWS)])
    found = log_scatter(codes[None], numbers, _STARTS_OF_CODES, rng)[:, 0]
    draws = log_scatter(clouds, numbers, _STARTS, rng).T
    null, deviation = np.mean(draws, 0), np.std(draws, 0, ddof=1) + 1e-12
    largest = ((null - draws) / deviation).max(1)
    beyond = ((null - found + np.log(1 - _ALLOWED)) / deviation).max()
    p_value = norm.sf((beyond - largest.mean()) / (largest.std(ddof=1) + 1e-12))
    gaps = null - found
    enough = gaps >= gaps.max() - _DEVIATIONS * deviation[gaps.argmax()]
    return Excess(float(max(0.0, 1 - np.exp(-gaps.max()))), float(p_value), numbers[int(enough.argmax())])


def _clipped(codes: Array, most: float, spread: Array | float = 1.0) -> Array:
    """Return codes whose lengths, in standard deviations along each axis, are clipped to so many medians."""
    lengths = np.linalg.norm(codes / spread, axis=1, keepdims=True)
    typical = np.median(lengths[lengths > 0]) if lengths.any() else 0.0  # most may be 0
    return np.asarray(codes * np.minimum(1, most * typical / np.maximum(lengths, 1e-30)))
