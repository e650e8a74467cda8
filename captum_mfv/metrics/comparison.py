"""Paired comparison of two methods on the same cells: difference, effect size, p-value, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import permutation_test

from captum_mfv.errors import FacetError
from captum_mfv.metrics.intervals import Estimate, estimate
from captum_mfv.storage.schema import check_seed

__all__ = ["Comparison", "cluster_means", "compare", "holm"]

Floats = NDArray[np.float64]

_EXACT = 16  # clusters up to which all signs are tried
_EQUAL = 1e-12  # relative spread of the differences that is rounding


@dataclass(frozen=True)
class Comparison:
    """Scores of one method minus those of another one on the same cells.

    Args:
        difference: mean difference over clusters, with its 95 % interval.
        effect: paired standardized difference (Cohen's d for paired samples, d_z): the mean difference divided by the
            standard deviation of the clusters' differences. None for one cluster, or if the differences are equal.
        p_value: two-sided p-value of no difference: how often the mean is as far from 0 if the sign of each cluster's
            difference is chosen at random.
    """

    difference: Estimate
    effect: float | None
    p_value: float


def cluster_means(values: ArrayLike, clusters: Sequence[str]) -> Floats:
    """Return the mean value of each cluster, (n_clusters,), in the order in which the clusters first occur.

    Cells of a cluster, such as the units of one class in several networks, are not independent; the means of clusters
    are. `intervals.estimate` of these means is therefore the interval of bootstrap samples of clusters.

    Raises:
        FacetError: if there isn't one cluster for each value.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(clusters),):
        raise FacetError(f"values and clusters must be of one length, not {values.shape} and {len(clusters)}")
    found: dict[str, list[float]] = {}
    for value, cluster in zip(values.tolist(), clusters, strict=True):
        found.setdefault(cluster, []).append(value)
    return np.array([np.mean(one) for one in found.values()])


def compare(differences: ArrayLike, clusters: Sequence[str], *, seed: int = 0) -> Comparison:
    """Return the mean of paired differences, its interval, effect size and p-value over clusters.

    With 16 clusters or fewer the test is exact: all signs are tried. With more, 65536 draws are.

    Args:
        differences: (n,) score of one method minus that of the other on each cell.
        clusters: (n,) name of the cluster of each cell.
        seed: seed of bootstrap samples, and of the signs where there are too many to try all.

    Raises:
        FacetError: if there is no difference, one isn't finite, or there isn't one cluster for each.

    Sources: Fisher 1935, "The design of experiments", section 21 (the test); Cohen 1988, "Statistical power analysis
    for the behavioral sciences", section 2.3.5 (the effect size).
    """
    means, rng = cluster_means(differences, clusters), np.random.default_rng(check_seed(seed))
    found = estimate(means, seed=seed)
    if len(means) == 1:
        return Comparison(found, None, 1.0)
    spread = float(means.std(ddof=1))
    effect = found.value / spread if spread > _EQUAL * np.abs(means).max() else None
    tested = permutation_test(
        (means,), _mean, permutation_type="samples", vectorized=True, n_resamples=2**_EXACT, batch=2**12, rng=rng
    )
    return Comparison(found, effect, float(tested.pvalue))


def _mean(values: NDArray[Any], axis: int) -> Floats:
    return np.asarray(values.mean(axis))


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values, (n,), adjusted for n tests by Holm's method, in their order.

    At most .05 of all families of tests have an adjusted p-value below .05 by chance, whatever the tests' dependence.

    >>> holm([0.25, 0.5, 0.0625]).tolist()
    [0.5, 0.5, 0.1875]

    Raises:
        FacetError: if a p-value isn't in [0, 1].

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise FacetError(f"p-values must be a list of numbers in [0, 1], not {p_values!r}")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return np.minimum(adjusted, 1)
