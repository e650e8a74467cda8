"""What a network that took no part makes of facets' images: retention, transfer, naturalness, prediction.

All figures are of codes, (n, D), in an encoder of the caller's; distances are cosine unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_mfv.errors import FacetError

__all__ = [
    "Naturalness",
    "centers_of",
    "confusion",
    "diversity",
    "naturalness",
    "predicts",
    "real_predicts",
    "retained",
    "separation_ratio",
]

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def centers_of(codes: Floats, labels: Labels) -> Floats:
    """Mean code of each facet, (n_facets, D), of images (n, D) and their facets (n,); -1 is none.

    Raises:
        FacetError: if a facet has no image.
    """
    counts = np.bincount(labels[labels >= 0])
    if not len(counts) or not counts.all():
        raise FacetError("every facet must have at least one image that is judged")
    return np.stack([codes[labels == k].mean(0) for k in range(len(counts))])


def confusion(made: Floats, real: Floats, labels: Labels, *, centered: bool = False) -> NDArray[np.float64]:
    """Cosine of each facet's image, a row each, to each facet's center, (n_facets, n_facets).

    Args:
        made: (n_facets, D) codes of the facets' images, in order.
        real: (n, D) codes of real images.
        labels: (n,) the facet of each, -1 for none.
        centered: remove what all have in common first: the images' mean code from them, the real images'
            from the centers.
    """
    centers = centers_of(real, labels)
    if centered:
        made, centers = made - made.mean(0), centers - real[labels >= 0].mean(0)
    return np.asarray(_unit(made) @ _unit(centers).T, np.float64)


def retained(made: Floats, real: Floats, labels: Labels, *, centered: bool = False) -> NDArray[np.bool_]:
    """Whether each image's nearest facet center is its own facet's, (n_facets,); chance is 1 / n_facets.

    Arguments are those of `confusion`.
    """
    similar = confusion(made, real, labels, centered=centered)
    return np.asarray(similar.argmax(1) == np.arange(len(similar)))


def predicts(made: Floats, real: Floats, labels: Labels) -> NDArray[np.bool_]:
    """Whether each real image's nearest facet image, both centered, is its facet's: (n with a facet,).

    Do the images tell what the facets are? Give images that took no part in making them for a held-out
    figure: a machine's answer to the question that the machine interpretability score asks (Zimmermann et
    al. 2024, arXiv 2405.08366).
    """
    kept = labels >= 0
    own = real[kept] - real[kept].mean(0)
    nearest = (_unit(own) @ _unit(made - made.mean(0)).T).argmax(1)
    return np.asarray(nearest == labels[kept])


def real_predicts(real: Floats, labels: Labels) -> NDArray[np.bool_]:
    """The same with the mean of the facet's *other* images in the place of its image: the ceiling."""
    kept = labels >= 0
    codes, own = real[kept] - real[kept].mean(0), labels[kept]
    sums = np.stack([codes[own == k].sum(0) for k in range(own.max() + 1)])
    counts = np.bincount(own)
    right = []
    for code, k in zip(codes, own, strict=True):
        means, n = sums.copy(), counts.copy()
        means[k], n[k] = means[k] - code, n[k] - 1
        similar = _unit(means / np.maximum(n, 1)[:, None]) @ _unit(code[None])[0]
        right.append(np.where(n > 0, similar, -np.inf).argmax() == k)
    return np.array(right)


@dataclass(frozen=True)
class Naturalness:
    """How near images are to real ones.

    Args:
        distance: mean Euclidean distance to the nearest real image, over the mean distance of a real image
            to its nearest other: 1 is as near as real images are.
        precision: share of images within a real image's neighbourhood, its k-th nearest real image.
        recall: share of real images within an image's neighbourhood, its k-th nearest image.
    """

    distance: float
    precision: float
    recall: float


def naturalness(made: Floats, real: Floats, k: int = 3) -> Naturalness:
    """How near images are to real ones, and how much of the real ones they cover.

    Args:
        made: (m, D) codes of the images, more than k.
        real: (n, D) codes of real images, more than k.
        k: size of a neighbourhood.

    Raises:
        FacetError: if there are too few of either.

    Source: Kynkäänniemi et al. 2019, "Improved precision and recall metric", arXiv 1904.06991.
    """
    if min(len(made), len(real)) <= k:
        raise FacetError(f"naturalness needs more than {k} images of each kind, not {len(made)} and {len(real)}")
    between = _distances(made, real)
    among_real, among_made = np.sort(_distances(real, real)), np.sort(_distances(made, made))
    return Naturalness(
        distance=float(between.min(1).mean() / among_real[:, 1].mean()),
        precision=float((between <= among_real[None, :, k]).any(1).mean()),
        recall=float((between <= among_made[:, None, k]).any(0).mean()),
    )


def diversity(made: Floats) -> float:
    """Mean of 1 - cosine over all pairs of images, in [0, 2]: 0 if all are the same to the encoder."""
    similar = _unit(made) @ _unit(made).T
    return float(1 - similar[~np.eye(len(made), dtype=bool)].mean())


def separation_ratio(real: Floats, labels: Labels) -> float:
    """Mean Euclidean distance of images of different facets over that of images of the same; 1: no facets.

    Source: Dreyer et al. 2024, "PURE", arXiv 2404.06453, who report the two apart.
    """
    codes, own = real[labels >= 0], labels[labels >= 0]
    apart = _distances(codes, codes)
    same = own[:, None] == own[None]
    pairs = ~np.eye(len(codes), dtype=bool)
    return float(apart[~same].mean() / apart[same & pairs].mean())


def _unit(codes: Floats) -> Floats:
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return np.asarray(codes / np.where(lengths > 0, lengths, 1))


def _distances(a: Floats, b: Floats) -> NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))
