"""A figure and how far it can be trusted: a mean with its bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "estimate", "estimate_ratio"]

_N_SAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over facets or images.

    Args:
        value: the mean.
        low: lower end of the 95 % bootstrap interval.
        high: upper end. Of a share that is 0 or 1 the bootstrap sees no spread: both ends are the share
            then, and n says how little that may mean.
        n: how many facets or images there were.
    """

    value: float
    low: float
    high: float
    n: int


def estimate(values: NDArray[Any], *, n_samples: int = _N_SAMPLES, seed: int = 0) -> Estimate:
    """The mean of values, (n,), and the 2.5th and 97.5th percentile of the means of bootstrap samples.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    return estimate_ratio(values, np.ones(len(values)), n_samples=n_samples, seed=seed)


def estimate_ratio(
    numerators: NDArray[Any], denominators: NDArray[Any], *, n_samples: int = _N_SAMPLES, seed: int = 0
) -> Estimate:
    """The ratio of two means over the same n, (n,) each, with its interval as in `estimate`."""
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    draws = np.random.default_rng(seed).integers(len(top), size=(n_samples, len(top)))
    low, high = np.percentile(top[draws].sum(1) / bottom[draws].sum(1), [2.5, 97.5])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), len(top))
