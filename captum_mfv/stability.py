"""Stability: would a facet be found again in another sample of images?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

__all__ = ["STABLE", "stability"]

STABLE = 0.6
"""From here on a facet counts as stable; below it is "doubtful" (Hennig 2007)."""


def stability(codes: NDArray[Any], labels: NDArray[Any], n_samples: int = 20, seed: int = 0) -> NDArray[np.float64]:
    """How well each cluster is found again in bootstrap samples of the codes.

    k-means clusters each sample anew, into as many clusters; a cluster's stability is the mean, over
    samples, of its largest Jaccard index with one of them: 1 if it always comes back the same. Codes of
    which an embedding has made clusters are resampled themselves, so that islands that t-SNE alone makes
    don't pass as stable.

    Args:
        codes: (n, d).
        labels: (n,) cluster of each code; -1, noise, is left out.
        n_samples: number of bootstrap samples.
        seed: of samples and k-means.

    Returns:
        (n_clusters,) in [0, 1].

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
        sample[table.sum(1) == 0] = np.nan  # the sample has none of it
    return np.asarray(np.nan_to_num(np.nanmean(found, axis=0)) if len(found) else np.ones(k))
