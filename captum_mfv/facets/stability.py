"""Stability of clusters: their recovery in bootstrap samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

__all__ = ["STABLE", "stability"]

Floats = NDArray[np.float64]

STABLE = 0.6
"""Smallest stability of a stable facet; below, a facet is "doubtful" (Hennig 2007)."""


def stability(codes: NDArray[Any], labels: NDArray[Any], n_samples: int = 20, seed: int = 0) -> tuple[Floats, Floats]:
    """Return the mean recovery of each cluster in bootstrap samples of the codes, and its 95 % interval.

    k-means clusters each sample into the same number of clusters; the recovery of a cluster is its largest Jaccard
    index with one of them, 1 if it is found again unchanged. The codes are resampled rather than their embedding, so
    that islands that only t-SNE separates are not stable.

    Args:
        codes: (n, d) codes.
        labels: (n,) cluster index of each code; noise, -1, is left out.
        n_samples: number of bootstrap samples; with 0, all results are NaN.
        seed: seed of samples and k-means.

    Returns:
        Means, (n_clusters,), and 2.5th and 97.5th percentiles, (n_clusters, 2), in [0, 1]. The mean of a cluster that
        is in no sample is 0, its interval 0 to 1.

    Source: Hennig 2007, "Cluster-wise assessment of cluster stability", Computational Statistics & Data
    Analysis 52.
    """
    k = int(labels.max()) + 1
    if not n_samples:
        return np.full(k, np.nan), np.full((k, 2), np.nan)
    means, intervals = np.zeros(k), np.tile([0.0, 1.0], (k, 1))
    for cluster, column in enumerate(_recoveries(codes[labels >= 0], labels[labels >= 0], n_samples, seed).T):
        found = column[np.isfinite(column)]
        if len(found):
            means[cluster], intervals[cluster] = found.mean(), np.percentile(found, [2.5, 97.5])
    return means, intervals


def _recoveries(codes: NDArray[Any], labels: NDArray[Any], n_samples: int, seed: int) -> Floats:
    """Return recoveries, (n_samples, n_clusters); NaN where a sample has no code of a cluster."""
    k, rng = int(labels.max()) + 1, np.random.default_rng(seed)
    found = np.full((n_samples, k), np.nan)
    for sample in found:
        drawn = rng.integers(len(codes), size=len(codes))
        distinct = np.unique(drawn)
        n_clusters = min(k, len(np.unique(codes[distinct], axis=0)))
        again = KMeans(n_clusters, n_init=2, random_state=int(rng.integers(2**31))).fit(codes[drawn])
        table = np.zeros((k, n_clusters))
        np.add.at(table, (labels[distinct], again.predict(codes[distinct])), 1)
        union = table.sum(1, keepdims=True) + table.sum(0) - table
        present = table.any(1)
        sample[present] = (table / np.maximum(union, 1)).max(1)[present]
    return found
