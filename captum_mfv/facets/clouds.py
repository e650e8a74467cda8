"""Clouds of codes: their principal axes, draws of one cloud of the same covariance, and the scatter within clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

__all__ = ["Array", "elliptical", "gaussian", "log_scatter", "lower_tail", "principal", "sample"]

Array = NDArray[np.float64]
_Singles = NDArray[np.float32]

_MAX_ITERATIONS = 30


def principal(codes: Array) -> tuple[Array, Array]:
    """Return the centered codes in their principal axes, and the standard deviation along each axis."""
    codes = codes - codes.mean(0)
    left, sizes, _ = np.linalg.svd(codes, full_matrices=False)
    kept = sizes > 1e-6 * sizes.max(initial=1e-30)
    return (left * sizes)[:, kept], sizes[kept] / np.sqrt(len(codes))


def gaussian(n_clouds: int, n_codes: int, spread: Array, rng: np.random.Generator) -> Array:
    """Draw clouds, (n_clouds, n, d), of centered codes of a Gaussian with a standard deviation along each axis."""
    draws: Array = rng.normal(size=(n_clouds, n_codes, len(spread))) * spread
    return np.asarray(draws - draws.mean(1, keepdims=True))


def elliptical(radii: Array, spread: Array, rng: np.random.Generator) -> Array:
    """Draw codes in random directions at the given Mahalanobis distances, in random order."""
    draws: Array = rng.normal(size=(len(radii), len(spread)))
    draws *= (rng.permutation(radii) / np.linalg.norm(draws, axis=1))[:, None] * spread
    return np.asarray(draws - draws.mean(0))


def sample(codes: Array, n_codes: int, rng: np.random.Generator) -> Array:
    """Return so many of the codes at most, drawn without replacement."""
    return codes if len(codes) <= n_codes else codes[rng.choice(len(codes), n_codes, replace=False)]


def lower_tail(found: float, null: Sequence[float] | Array) -> float:
    """Return the probability of a value as small under the null, by a normal fit because the draws are few."""
    return float(norm.cdf((found - np.mean(null)) / (np.std(null, ddof=1) + 1e-12)))


def log_scatter(clouds: Array, numbers: Sequence[int], n_init: int, rng: np.random.Generator) -> Array:
    """Return the log share of each cloud's scatter that is within the clusters of k-means, the best of some starts.

    Centered clouds of one size, (n_clouds, n, d), are clustered at once, since a library's call takes longer than the
    work on a few hundred codes: Lloyd's algorithm from k-means++ starts. Returns (n_numbers, n_clouds), for each
    number of clusters.
    """
    scaled: _Singles = (clouds / max(abs(clouds).max(), 1e-300)).astype(np.float32)  # precise enough, and twice as fast
    total = np.square(scaled).sum((1, 2))
    scaled = np.repeat(scaled, n_init, 0)
    squares = np.square(scaled).sum(2)
    within = np.stack([_within(scaled, squares, n_clusters, rng) for n_clusters in numbers])
    best = within.reshape(len(numbers), -1, n_init).min(2)
    return np.asarray(np.log(best / np.maximum(total, 1e-30) + 1e-30), np.float64)


def _within(clouds: _Singles, squares: _Singles, n_clusters: int, rng: np.random.Generator) -> _Singles:
    """Return the scatter of each cloud within the clusters of k-means from one start."""
    centers = _starts(clouds, squares, n_clusters, rng)
    left, points, lengths = np.arange(len(clouds)), clouds, squares
    own = np.zeros((len(clouds), n_clusters, clouds.shape[1]), np.bool_)
    for _ in range(_MAX_ITERATIONS):
        nearest = _nearest(points, lengths, centers[left])
        moved = (nearest != own).any((1, 2))
        if not moved.any():
            break
        own = nearest
        if 2 * moved.sum() < len(moved):  # the centers of the others don't move any more
            left, points, lengths, own = left[moved], points[moved], lengths[moved], own[moved]
        sizes = own.sum(2, keepdims=True, dtype=np.float32)
        means = own.astype(np.float32) @ points / np.maximum(sizes, 1)
        centers[left] = np.where(sizes > 0, means, centers[left])
    return np.asarray(_distances(clouds, squares, centers).min(1).sum(1))


def _nearest(clouds: _Singles, squares: _Singles, centers: _Singles) -> NDArray[np.bool_]:
    """Return which center, the first of several, is nearest to each code, (n_clouds, k, n)."""
    distances = _distances(clouds, squares, centers)
    found = np.asarray(distances == distances.min(1, keepdims=True))  # several times faster than argmin
    if np.count_nonzero(found) > squares.size:  # equally near centers
        found = distances.argmin(1)[:, None] == np.arange(centers.shape[1])[:, None]
    return found


def _starts(clouds: _Singles, squares: _Singles, n_clusters: int, rng: np.random.Generator) -> _Singles:
    """Draw codes as centers with chances in proportion to the square distance to the nearest center so far."""
    centers = np.empty((len(clouds), n_clusters, clouds.shape[2]), np.float32)
    chances = np.ones_like(squares)
    for k in range(n_clusters):
        reached = chances.cumsum(1)
        drawn = (reached < rng.random((len(clouds), 1)) * reached[:, -1:]).sum(1).clip(max=clouds.shape[1] - 1)
        centers[:, k] = clouds[np.arange(len(clouds)), drawn]
        distances = _distances(clouds, squares, centers[:, k : k + 1])[:, 0]
        chances = np.minimum(chances, distances) if k else distances
    return centers


def _distances(clouds: _Singles, squares: _Singles, centers: _Singles) -> _Singles:
    """Return square distances between centers and codes, (n_clouds, k, n)."""
    found = (-2 * centers) @ clouds.transpose(0, 2, 1)
    found += squares[:, None]
    found += np.square(centers).sum(2)[:, :, None]
    return np.asarray(np.maximum(found, 0, out=found))
