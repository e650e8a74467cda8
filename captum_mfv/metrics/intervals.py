"""Means with 95 % confidence intervals, and null distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from captum_mfv.errors import FacetError
from captum_mfv.storage.schema import check_seed

__all__ = ["Estimate", "NullDistribution", "estimate", "estimate_ratio", "null_distribution"]

Floats = NDArray[np.float64]

_N_SAMPLES = 2000
_BATCH = 2**20  # indices of bootstrap samples in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean over facets or images with its 95 % interval.

    Args:
        value: the mean.
        low: lower end of the interval: of the bootstrap, or Wilson's for a share.
        high: upper end of the interval.
        n: number of facets or images.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class NullDistribution:
    """A score's distribution under a null hypothesis.

    Args:
        value: mean of the draws.
        low: 2.5th percentile of the draws.
        high: 97.5th percentile of the draws.
        n: number of draws.
        p_value: (1 + draws at least as large as the observed score) / (1 + draws).
    """

    value: float
    low: float
    high: float
    n: int
    p_value: float


def estimate(values: NDArray[Any], *, n_samples: int = _N_SAMPLES, seed: int = 0) -> Estimate:
    """Return the mean of values, (n,), with its interval.

    The interval of numbers is the percentile bootstrap's; that of truth values is Wilson's score interval, because
    the bootstrap of a share of 0 or 1 has no spread. A single number is its own interval.

    Args:
        values: (n,) numbers or truth values.
        n_samples: number of bootstrap samples.
        seed: seed of the bootstrap samples.

    Raises:
        FacetError: if there are no values, or a value is not finite.

    Sources: Efron 1979, "Bootstrap methods: another look at the jackknife"; Brown, Cai & DasGupta 2001, "Interval
    estimation for a binomial proportion".
    """
    values = np.asarray(values)
    if not len(values) or not np.isfinite(values).all():
        raise FacetError("an estimate needs at least one value, and finite ones")
    if values.dtype != bool:
        return _bootstrapped(values.astype(np.float64), np.ones(len(values)), n_samples, seed)
    interval = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return Estimate(float(values.mean()), float(interval.low), float(interval.high), len(values))


def estimate_ratio(
    numerators: NDArray[Any], denominators: NDArray[Any], *, n_samples: int = _N_SAMPLES, seed: int = 0
) -> Estimate | None:
    """Return the ratio of two means over the same n, (n,) each, with its bootstrap interval.

    Args:
        numerators: (n,) finite numbers.
        denominators: (n,) finite numbers of at least 0.
        n_samples: number of bootstrap samples.
        seed: seed of the bootstrap samples.

    Returns:
        The ratio; None if there are no numbers or all denominators are 0. A bootstrap sample whose denominators are
        all 0 counts as the ratio itself.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    return _bootstrapped(top, bottom, n_samples, seed) if bottom.any() else None


def _bootstrapped(top: Floats, bottom: Floats, n_samples: int, seed: int) -> Estimate:
    n, ratio, rng = len(top), float(top.sum() / bottom.sum()), np.random.default_rng(check_seed(seed))
    if n == 1:
        return Estimate(ratio, ratio, ratio, 1)

    def statistic(top: Floats, bottom: Floats, axis: int) -> Floats:
        sums, totals = top.sum(axis), bottom.sum(axis)
        return np.asarray(np.divide(sums, totals, out=np.full_like(sums, ratio), where=totals > 0))

    found = bootstrap(
        (top, bottom),
        statistic,
        n_resamples=n_samples,
        batch=max(1, _BATCH // n),
        vectorized=True,
        paired=True,
        axis=0,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return Estimate(ratio, float(found.low), float(found.high), n)


def null_distribution(draws: NDArray[Any], observed: float) -> NullDistribution:
    """Return the mean, the central 95 % and the p-value of an observed score, from draws of the null, (n,).

    Source: Phipson & Smyth 2010, "Permutation p-values should never be zero".
    """
    low, high = np.percentile(draws, [2.5, 97.5])
    p_value = (1 + int((draws >= observed).sum())) / (1 + len(draws))
    return NullDistribution(float(draws.mean()), float(low), float(high), len(draws), p_value)
