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


def gaussian(n_codes: int, spread: Array, rng: np.random.Generator) -> Array:
    """Draw centered codes of a Gaussian with the given standard deviation along each axis."""
    draws: Array = rng.normal(size=(n_codes, len(spread))) * spread
    return np.asarray(draws - draws.mean(0))


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


def log_scatter(clouds: Array, n_clusters: int, n_init: int, rng: np.random.Generator) -> Array:
    """Return the log share of each cloud's scatter that is within the clusters of k-means, the best of some starts.

    Clouds of one size, (n_clouds, n, d), are clustered at once, since a library's call takes longer than the work on
    a few hundred codes: Lloyd's algorithm from k-means++ starts.
    """
    scaled: _Singles = (clouds / max(abs(clouds).max(), 1e-300)).astype(np.float32)  # precise enough, and twice as fast
    total = np.square(scaled).sum((1, 2))
    scaled = np.repeat(scaled, n_init, 0)
    squares = np.square(scaled).sum(2)
    centers = _starts(scaled, squares, n_clusters, rng)
    labels = np.full(squares.shape, -1)
    for _ in range(_MAX_ITERATIONS):
        distances = _distances(scaled, squares, centers)
        nearest = distances.argmin(2)
        if (nearest == labels).all():
            break
        labels = nearest
        own = (labels[:, :, None] == np.arange(n_clusters)).transpose(0, 2, 1).astype(np.float32)
        sizes = own.sum(2, keepdims=True)
        centers = np.where(sizes > 0, own @ scaled / np.maximum(sizes, 1), centers)
    within = _distances(scaled, squares, centers).min(2).sum(1).reshape(-1, n_init).min(1)
    return np.asarray(np.log(within / np.maximum(total, 1e-30) + 1e-30), np.float64)


def _starts(clouds: _Singles, squares: _Singles, n_clusters: int, rng: np.random.Generator) -> _Singles:
    """Draw codes as centers with chances in proportion to the square distance to the nearest center so far."""
    centers, chances = np.empty((len(clouds), 0, clouds.shape[2]), np.float32), np.ones_like(squares)
    for _ in range(n_clusters):
        reached = chances.cumsum(1)
        drawn = (reached < rng.random((len(clouds), 1)) * reached[:, -1:]).sum(1).clip(max=clouds.shape[1] - 1)
        new = clouds[np.arange(len(clouds)), drawn][:, None]
        distances = _distances(clouds, squares, new)[:, :, 0]
        chances = np.minimum(chances, distances) if centers.shape[1] else distances
        centers = np.concatenate([centers, new], 1)
    return centers


def _distances(clouds: _Singles, squares: _Singles, centers: _Singles) -> _Singles:
    """Return square distances between codes and centers, (n_clouds, n, k)."""
    products = clouds @ centers.transpose(0, 2, 1)
    return np.asarray(np.maximum(squares[:, :, None] - 2 * products + np.square(centers).sum(2)[:, None], 0))
