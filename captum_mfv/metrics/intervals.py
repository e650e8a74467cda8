"""Means with 95 % confidence intervals, and null distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, bootstrap, norm, rankdata

from captum_mfv.errors import FacetError
from captum_mfv.storage.schema import check_seed

__all__ = [
    "Estimate",
    "NullDistribution",
    "aurocs",
    "estimate",
    "estimate_auroc",
    "estimate_ratio",
    "null_distribution",
]

Floats = NDArray[np.float64]

_N_SAMPLES = 2000
_BATCH = 2**20  # indices of bootstrap samples in memory at once
_TINY = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` facets or images; ``low`` and ``high`` are the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class NullDistribution:
    """A score's distribution under a null hypothesis.

    Args:
        value: mean of the draws.
        low, high: 2.5th and 97.5th percentile of the draws.
        n: number of draws.
        p_value: (1 + draws at least as large as the observed score) / (1 + draws).
    """

    value: float
    low: float
    high: float
    n: int
    p_value: float


def estimate(values: NDArray[Any], *, seed: int = 0) -> Estimate:
    """Return the mean of numbers or truth values, (n,), with its 95 % interval.

    The interval of numbers is computed by the percentile bootstrap with 2000 samples; that of truth values is Wilson's
    score interval, because the bootstrap of a share of 0 or 1 has no spread. The interval of a single number is the
    number itself.

    Raises:
        FacetError: if there are no values, or a value is not finite.

    Sources: Efron 1979, "Bootstrap methods: another look at the jackknife"; Brown, Cai & DasGupta 2001, "Interval
    estimation for a binomial proportion".
    """
    values = np.asarray(values)
    if not len(values) or not np.isfinite(values).all():
        raise FacetError("an estimate needs at least one value, and finite ones")
    if values.dtype != bool:
        return _bootstrapped(values.astype(np.float64), np.ones(len(values)), seed)
    interval = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return Estimate(float(values.mean()), float(interval.low), float(interval.high), len(values))


def estimate_ratio(numerators: NDArray[Any], denominators: NDArray[Any], *, seed: int = 0) -> Estimate | None:
    """Return the ratio of two means over the same finite numbers, (n,) each, with its bootstrap interval.

    The denominators must be at least 0. Returns None if there are none or all are 0; a bootstrap sample whose
    denominators are all 0 counts as the ratio itself.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    return _bootstrapped(top, bottom, seed) if bottom.any() else None


def _bootstrapped(top: Floats, bottom: Floats, seed: int) -> Estimate:
    n, ratio, rng = len(top), float(top.sum() / bottom.sum()), np.random.default_rng(check_seed(seed))
    if n == 1:
        return Estimate(ratio, ratio, ratio, 1)

    def statistic(top: Floats, bottom: Floats, axis: int) -> Floats:
        sums, totals = top.sum(axis), bottom.sum(axis)
        return np.asarray(np.divide(sums, totals, out=np.full_like(sums, ratio), where=totals > 0))

    sampling: dict[str, Any] = {"n_resamples": _N_SAMPLES, "batch": max(1, _BATCH // n), "rng": rng}
    found = bootstrap((top, bottom), statistic, paired=True, vectorized=True, axis=0, method="percentile", **sampling)
    return Estimate(ratio, float(found.confidence_interval.low), float(found.confidence_interval.high), n)


def aurocs(values: NDArray[Any], groups: NDArray[np.int64], n_groups: int) -> Floats:
    """Return the AUROC of each group's rows against all other rows, (n_groups, D), for each column of values, (n, D).

    The AUROC is the share of pairs, one row of the group and one other row, in which the group's value is larger; ties
    count as half. It is .5 for a group that has no rows, or all.
    """
    ranks, members = rankdata(values, axis=0), (groups == np.arange(n_groups)[:, None]).astype(np.float64)
    sizes = members.sum(1)[:, None]
    larger, pairs = members @ ranks - sizes * (sizes + 1) / 2, sizes * (len(values) - sizes)
    return np.asarray(np.divide(larger, pairs, out=np.full_like(larger, 0.5), where=pairs > 0))


def estimate_auroc(positive: NDArray[Any], negative: NDArray[Any], *, level: float = 0.95) -> Estimate:
    """Return the AUROC of positive, (m,), against negative values, (n,), with Newcombe's interval; its n is m.

    The interval is the fifth method of Newcombe 2006, a score interval: its variance is that of the AUROC at its own
    ends, so that an AUROC of 1 has an interval of positive width. It excludes .5 exactly if the Mann-Whitney test in
    its normal approximation rejects equality.

    Args:
        positive: values that should be larger.
        negative: values that should be smaller.
        level: coverage of the interval, in (0, 1).

    Raises:
        FacetError: if either has no values, or a value is not a number.

    Source: Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part
    2: asymptotic methods and evaluation", Statistics in Medicine 25, 559-573.
    """
    m, n = len(positive), len(negative)
    values = np.concatenate([positive, negative])[:, None]
    if not (m and n) or np.isnan(values).any():
        raise FacetError("an AUROC needs at least one value on each side, and no NaN")
    value = float(aurocs(values, np.repeat([0, 1], [m, n]), 1)[0, 0])
    z, others = norm.ppf((1 + level) / 2), (m + n) / 2 - 1

    def excess(end: float) -> float:
        variance = end * (1 - end) * (1 + others * ((1 - end) / (2 - end) + end / (1 + end))) / (m * n)
        return float((value - end) ** 2 - z**2 * variance)

    # 0 and 1 are roots of their own where the AUROC is 0 or 1
    low = 0.0 if value == 0 else brentq(excess, 0, min(value, 1 - _TINY))
    high = 1.0 if value == 1 else brentq(excess, max(value, _TINY), 1)
    return Estimate(value, float(low), float(high), m)


def null_distribution(draws: NDArray[Any], observed: float) -> NullDistribution:
    """Return the mean, the central 95 % and the p-value of an observed score, from draws of the null, (n,).

    Source: Phipson & Smyth 2010, "Permutation p-values should never be zero".
    """
    low, high = np.percentile(draws, [2.5, 97.5])
    p_value = (1 + int((draws >= observed).sum())) / (1 + len(draws))
    return NullDistribution(float(draws.mean()), float(low), float(high), len(draws), p_value)
