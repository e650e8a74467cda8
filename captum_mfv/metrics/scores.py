"""Scores of facets' images in the codes of any network.

Arguments: ``made``, (n_facets, D), codes of the facets' images, in order; ``real``, (n, D), codes of real images;
``labels``, (n,), facet index of each real image, -1 for none. Similarities are cosines and are computed in float64;
distances are Euclidean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_mfv.errors import FacetError

__all__ = [
    "Naturalness",
    "confusion",
    "diversity",
    "naturalness",
    "off_facet",
    "predicts",
    "real_off_facet",
    "real_predicts",
    "retained",
    "same_over_seeds",
    "spread",
]

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Labels = NDArray[np.integer[Any]]

_N_NEIGHBORS = 3
_RESOLUTION = 1e-12  # squared distances below this share of the largest squared code are rounding errors


def confusion(made: Floats, real: Floats, labels: Labels, *, centered: bool = False) -> Doubles:
    """Return the cosine of each facet's image (rows) to each facet's center (columns), (n_facets, n_facets).

    If ``centered``, the images' mean code is subtracted from the images, that of the real images from the centers.

    Raises:
        FacetError: if a facet has no real image, or there isn't one image for each facet.
    """
    centers = _centers(real, labels, len(made))
    if centered:
        made, centers = _centered(made), centers - _mean(real[labels >= 0])
    cosines: Doubles = _unit(made) @ _unit(centers).T
    return cosines


def retained(made: Floats, real: Floats, labels: Labels, *, centered: bool = False) -> NDArray[np.bool_]:
    """Return whether the center most similar to each facet's image is its own facet's, (n_facets,).

    Chance is 1 / n_facets. Labels that are wrong at random hardly change which center is the most similar one; they
    lower `predicts`, `spread` and the stability of facets. Arguments and errors are those of `confusion`.
    """
    similar = confusion(made, real, labels, centered=centered)
    return np.asarray(similar.argmax(1) == np.arange(len(similar)))


def predicts(made: Floats, real: Floats, labels: Labels) -> NDArray[np.bool_]:
    """Return whether the facet image most similar to each real image is its own facet's, (n with a facet,).

    Both sets of codes are centered. With held-out real images, this is an automatic form of the question that the
    machine interpretability score asks.

    Source: Zimmermann et al. 2024, arXiv 2405.08366.
    """
    kept = labels >= 0
    most_similar = (_unit(_centered(real[kept])) @ _unit(_centered(made)).T).argmax(1)
    return np.asarray(most_similar == labels[kept])


def real_predicts(real: Floats, labels: Labels) -> NDArray[np.bool_]:
    """Return `predicts` with the mean code of each facet's other real images as its image: the ceiling."""
    kept = labels >= 0
    codes, own, right = _centered(real[kept]), labels[kept], []
    sums, counts = _sums(codes, own)
    for code, k in zip(codes, own, strict=True):
        means, n = sums.copy(), counts.copy()
        means[k], n[k] = means[k] - code, n[k] - 1
        similar = _unit(means / np.maximum(n, 1)[:, None]) @ _unit(code[None])[0]
        right.append(np.where(n > 0, similar, -np.inf).argmax() == k)
    return np.array(right)


@dataclass(frozen=True, eq=False)
class Naturalness:
    """How near images are to real images.

    Args:
        distance: (m,) Euclidean distance of each image to the nearest real image, divided by the mean distance of
            real images to their nearest other real image; 1: as near as real images are to each other. None if there
            is one real image, or all real images have the same code as another.
        precision: (m,) whether each image is in the neighborhood of a real image, the ball that reaches its third
            nearest other real image; None with three or fewer real images.
        covered: (n,) whether each real image has one of the images in its neighborhood; None where precision is.
    """

    distance: Doubles | None
    precision: NDArray[np.bool_] | None
    covered: NDArray[np.bool_] | None


def naturalness(made: Floats, real: Floats) -> Naturalness:
    """Return how near images, (m, D), are to real images, and which real images they cover.

    Sources: Kynkäänniemi et al. 2019, "Improved precision and recall metric", arXiv 1904.06991 (precision);
    Naeem et al. 2020, "Reliable fidelity and diversity metrics", arXiv 2002.09797 (coverage).
    """
    between, among = _distances(made, real), np.sort(_distances(real, real))  # column 0: distance to itself
    typical = among[:, 1].mean() if len(real) > 1 else 0.0
    near = between <= among[:, _N_NEIGHBORS] if len(real) > _N_NEIGHBORS else None
    return Naturalness(
        distance=between.min(1) / typical if typical > 0 else None,
        precision=None if near is None else np.asarray(near.any(1)),
        covered=None if near is None else np.asarray(near.any(0)),
    )


def diversity(made: Floats) -> Doubles:
    """Return the mean of 1 - cosine of each image to the other images, (m,) in [0, 2]; 0 for a single image."""
    if len(made) == 1:
        return np.zeros(1)
    similar = _unit(made) @ _unit(made).T
    silent = ~made.any(1)
    similar[np.ix_(silent, silent)] = 1  # codes of zero have no direction and are equal
    return np.asarray(1 - (similar.sum(1) - np.diag(similar)) / (len(made) - 1))


def spread(real: Floats, labels: Labels) -> tuple[Doubles, Doubles]:
    """Return the mean Euclidean distance of each image to those of other facets, and to the others of its own.

    The ratio of the two means, `estimate_ratio`, is 1 without facets and larger the further facets are apart. Images
    that are alone in their facet are left out.

    Source: Dreyer et al. 2024, "PURE", arXiv 2404.06453, who report the two distances.
    """
    codes, own = real[labels >= 0], labels[labels >= 0]
    apart = _distances(codes, codes)
    same = own[:, None] == own[None]
    n_same = same.sum(1)
    counted = (n_same > 1) & (n_same < len(own))
    within = (apart * same).sum(1)[counted] / (n_same[counted] - 1)
    across = (apart * ~same).sum(1)[counted] / (len(own) - n_same[counted])
    return np.asarray(across), np.asarray(within)


def same_over_seeds(made: Floats) -> NDArray[np.bool_]:
    """Return whether each image's most similar image of another seed is its own facet's; chance is 1 / n_facets.

    From codes, (n_seeds, n_facets, D), to (n_seeds, n_seeds - 1, n_facets): for each seed, other seed and facet. Each
    seed's mean code is subtracted.
    """
    codes = np.stack([_unit(_centered(one)) for one in made])
    most_similar = np.einsum("skd,tld->stkl", codes, codes).argmax(3)
    right = most_similar == np.arange(made.shape[1])
    return np.stack([np.delete(rows, i, axis=0) for i, rows in enumerate(right)])


def off_facet(made: Floats, real: Floats, labels: Labels) -> Doubles:
    """Return the share of the unit's activation on each image that its facet's real images do not explain.

    Codes are contributions of each channel to the unit (`attr.pure_code`). The excess of a channel over its mean share
    on the facet's real images is off the facet. (n_facets,) in [0, 1]; 0: the same channels in the same proportions;
    1: only other channels. Compare with `real_off_facet`. Errors are those of `confusion`.
    """
    return _excess(_shares(made), _centers(_shares(real), labels, len(made)))


def real_off_facet(real: Floats, labels: Labels) -> Doubles:
    """Return `off_facet` of each real image by its facet's other images, (n with others in their facet,)."""
    shares, own = _shares(real[labels >= 0]), labels[labels >= 0]
    sums, counts = _sums(shares, own)
    shares, own = shares[counts[own] > 1], own[counts[own] > 1]
    return _excess(shares, (sums[own] - shares) / (counts[own] - 1)[:, None])


def _centers(codes: Floats, labels: Labels, n_facets: int) -> Doubles:
    """Return the mean code of each facet, (n_facets, D)."""
    counts = np.bincount(labels[labels >= 0], minlength=n_facets)
    if len(counts) > n_facets:
        raise FacetError(f"there must be one image for each facet: {n_facets} images, {len(counts)} facets")
    if not counts.all():
        raise FacetError(f"facet {counts.argmin()} has no real image to compare with; every facet must have one")
    return np.stack([_mean(codes[labels == k]) for k in range(n_facets)])


def _sums(codes: Doubles, own: Labels) -> tuple[Doubles, Labels]:
    """Return the sum of each facet's codes, (n_facets, D), and the number of each facet's images."""
    counts = np.bincount(own)
    return np.stack([codes[own == k].sum(0) for k in range(len(counts))]), counts


def _shares(contributions: Floats) -> Doubles:
    """Return the positive part of each row, scaled to sum to 1; uniform if nothing is positive."""
    positive = np.maximum(contributions.astype(np.float64), 0)
    totals = positive.sum(1, keepdims=True)
    return np.where(totals > 0, positive / np.where(totals > 0, totals, 1), 1 / positive.shape[1])


def _excess(shares: Doubles, profiles: Doubles) -> Doubles:
    return np.asarray(np.maximum(shares - profiles, 0).sum(1))


def _mean(codes: Floats) -> Doubles:
    return np.asarray(codes.mean(0, dtype=np.float64))


def _centered(codes: Floats) -> Doubles:
    return np.asarray(codes - _mean(codes))


def _unit(codes: Floats) -> Doubles:
    """Return rows of length 1; rows of zeros stay zero."""
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return np.asarray(codes / np.where(lengths > 0, lengths, 1), np.float64)


def _distances(a: Floats, b: Floats) -> Doubles:
    """Return Euclidean distances, (len(a), len(b)), in float64; equal codes have distance 0."""
    origin = _mean(b)
    a, b = a - origin, b - origin
    lengths = (a**2).sum(1)[:, None], (b**2).sum(1)[None]
    squares = lengths[0] + lengths[1] - 2 * a @ b.T
    return np.sqrt(np.where(squares > _RESOLUTION * max(lengths[0].max(), lengths[1].max()), squares, 0))
