"""A figure and how far it can be trusted: a mean with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "estimate", "estimate_ratio"]

_N_SAMPLES = 2000
_Z = 1.959964  # of a normal distribution's 97.5 %


@dataclass(frozen=True)
class Estimate:
    """A mean over facets or images.

    Args:
        value: the mean.
        low: lower end of the 95 % interval: the bootstrap's, and of a share Wilson's.
        high: upper end.
        n: how many facets or images there were.
    """

    value: float
    low: float
    high: float
    n: int


def estimate(values: NDArray[Any], *, n_samples: int = _N_SAMPLES, seed: int = 0) -> Estimate:
    """The mean of values, (n,), and its interval.

    Of numbers, the 2.5th and 97.5th percentile of the means of bootstrap samples; of truth values, Wilson's score
    interval, since of a share that is 0 or 1 the bootstrap sees no spread.

    Sources: Efron 1979, "Bootstrap methods: another look at the jackknife"; Brown, Cai & DasGupta 2001, "Interval
    estimation for a binomial proportion".
    """
    if np.asarray(values).dtype == bool:
        return _share(np.asarray(values))
    return estimate_ratio(values, np.ones(len(values)), n_samples=n_samples, seed=seed)


def _share(found: NDArray[np.bool_]) -> Estimate:
    n, share = len(found), float(found.mean())
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return Estimate(share, min(share, middle - half), max(share, middle + half), n)


def estimate_ratio(
    numerators: NDArray[Any], denominators: NDArray[Any], *, n_samples: int = _N_SAMPLES, seed: int = 0
) -> Estimate:
    """The ratio of two means over the same n, (n,) each, with its bootstrap interval."""
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    draws = np.random.default_rng(seed).integers(len(top), size=(n_samples, len(top)))
    low, high = np.percentile(top[draws].sum(1) / bottom[draws].sum(1), [2.5, 97.5])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), len(top))
