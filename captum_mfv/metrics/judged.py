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
    "off_facet",
    "predicts",
    "real_off_facet",
    "real_predicts",
    "retained",
    "same_over_seeds",
    "spread",
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


@dataclass(frozen=True, eq=False)
class Naturalness:
    """How near images are to real ones, image by image; take means.

    Args:
        distance: (m,) Euclidean distance of each image to the nearest real one, over the mean distance of a
            real image to its nearest other: 1 is as near as real images are.
        precision: (m,) whether each image lies within a real image's neighbourhood, its k-th nearest real image.
        recall: (n,) whether each real image lies within an image's neighbourhood, its k-th nearest image.
    """

    distance: NDArray[np.float64]
    precision: NDArray[np.bool_]
    recall: NDArray[np.bool_]


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
        distance=between.min(1) / among_real[:, 1].mean(),
        precision=np.asarray((between <= among_real[None, :, k]).any(1)),
        recall=np.asarray((between <= among_made[:, None, k]).any(0)),
    )


def diversity(made: Floats) -> NDArray[np.float64]:
    """Mean of 1 - cosine of each image to the others, (m,) in [0, 2]: 0 if all are the same to the encoder."""
    if len(made) == 1:
        return np.zeros(1)
    similar = _unit(made) @ _unit(made).T
    silent = ~made.any(1)
    similar[np.ix_(silent, silent)] = 1  # codes without a direction are the same
    others = (similar.sum(1) - np.diag(similar)) / (len(made) - 1)
    return np.asarray(1 - others, np.float64)


def spread(real: Floats, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean Euclidean distance of each image to those of other facets, and to the others of its own.

    Their means' ratio, `estimate_ratio`, is 1 where there are no facets, and the larger the further they are apart.
    Images that are alone in their facet are left out.

    Source: Dreyer et al. 2024, "PURE", arXiv 2404.06453, who report the two apart.
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
    """Whether an image drawn again with another seed is nearest to its own facet's: chance is 1 / n_facets.

    Args:
        made: (n_seeds, n_facets, D) codes of the facets' images.

    Returns:
        (n_seeds, n_seeds - 1, n_facets): of each image and other seed, whether the nearest image there, each
        seed's mean code removed, is the same facet's.
    """
    codes = np.stack([_unit(one - one.mean(0)) for one in made])
    nearest = np.einsum("skd,tld->stkl", codes, codes).argmax(3)
    right = nearest == np.arange(made.shape[1])
    return np.stack([np.delete(rows, i, axis=0) for i, rows in enumerate(right)])


def off_facet(made: Floats, real: Floats, labels: Labels) -> NDArray[np.float64]:
    """Share of the unit's activation on each image that its facet's real images don't account for, (n_facets,).

    What drives the unit is divided among channels; what a channel has beyond its share on the facet's images is
    off the facet. 0: the same channels drive the unit in the same proportions; 1: all others. Half means that half
    of the activation comes from elsewhere, such as another facet. Real images have figures of their own to read it
    against (`real_off_facet`).

    Args:
        made: (n_facets, D) how much each channel drives the unit on the facets' images, as `attr.pure_code` tells.
        real: (n, D) the same of real images.
        labels: (n,) the facet of each, -1 for none.
    """
    profiles = centers_of(_shares(real), labels)
    return np.asarray(_beyond(_shares(made), profiles))


def real_off_facet(real: Floats, labels: Labels) -> NDArray[np.float64]:
    """`off_facet` of each real image, by its facet's *other* images, (n with more of its facet,)."""
    shares, own = _shares(real[labels >= 0]), labels[labels >= 0]
    counts = np.bincount(own)
    sums = np.stack([shares[own == k].sum(0) for k in range(len(counts))])
    several = counts[own] > 1
    shares, own = shares[several], own[several]
    return np.asarray(_beyond(shares, (sums[own] - shares) / (counts[own] - 1)[:, None]))


def _shares(drives: Floats) -> NDArray[np.float64]:
    """Rows of what is above 0 as shares that sum to 1; evenly where nothing is."""
    above = np.maximum(drives.astype(np.float64), 0)
    totals = above.sum(1, keepdims=True)
    return np.where(totals > 0, above / np.where(totals > 0, totals, 1), 1 / above.shape[1])


def _beyond(shares: Floats, profiles: Floats) -> NDArray[np.float64]:
    return np.asarray(np.maximum(shares - profiles, 0).sum(1), np.float64)


def _unit(codes: Floats) -> Floats:
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return np.asarray(codes / np.where(lengths > 0, lengths, 1))


def _distances(a: Floats, b: Floats) -> NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))
