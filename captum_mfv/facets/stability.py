"""Stability of clusters: their recovery in bootstrap samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

__all__ = ["STABLE", "bounds", "recoveries", "stability"]

STABLE = 0.6
"""Smallest stability of a stable facet; below, a facet is "doubtful" (Hennig 2007)."""


def recoveries(codes: NDArray[Any], labels: NDArray[Any], n_samples: int = 20, seed: int = 0) -> NDArray[np.float64]:
    """Return the recovery of each cluster in bootstrap samples of the codes.

    k-means clusters each sample into the same number of clusters; the recovery of a cluster is its largest Jaccard
    index with one of them, 1 if it is found again unchanged. The codes are resampled rather than their embedding, so
    that islands that only t-SNE separates are not stable.

    Args:
        codes: (n, d) codes.
        labels: (n,) cluster index of each code; noise, -1, is left out.
        n_samples: number of bootstrap samples.
        seed: seed of samples and k-means.

    Returns:
        (n_samples, n_clusters) in [0, 1]; NaN where a sample has no code of a cluster.

    Source: Hennig 2007, "Cluster-wise assessment of cluster stability", Computational Statistics & Data
    Analysis 52.
    """
    codes, labels = codes[labels >= 0], labels[labels >= 0]
    k = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    found = np.full((n_samples, k), np.nan)
    for sample in found:
        drawn = rng.integers(len(codes), size=len(codes))
        distinct = np.unique(drawn)
        n_clusters = min(k, len(np.unique(codes[distinct], axis=0)))
        again = KMeans(n_clusters, n_init=2, random_state=int(rng.integers(2**31))).fit(codes[drawn])
        table = np.zeros((k, n_clusters))
        np.add.at(table, (labels[distinct], again.predict(codes[distinct])), 1)
        union = table.sum(1, keepdims=True) + table.sum(0) - table
        sample[:] = (table / np.maximum(union, 1)).max(1)
        sample[table.sum(1) == 0] = np.nan  # no code of this cluster in the sample
    return found


def stability(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each cluster's `recoveries`, (n_clusters,) in [0, 1]; 0 without any."""
    return np.array([_of(column, np.mean, 0.0) for column in found.T])


def bounds(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 2.5th and 97.5th percentile of each cluster's `recoveries`, (n_clusters, 2); 0 and 1 without any."""
    return np.array([_of(column, lambda seen: np.percentile(seen, [2.5, 97.5]), (0.0, 1.0)) for column in found.T])


def _of(column: NDArray[np.float64], figure: Callable[[NDArray[np.float64]], Any], without: Any) -> Any:
    seen = column[np.isfinite(column)]
    return figure(seen) if len(seen) else without
