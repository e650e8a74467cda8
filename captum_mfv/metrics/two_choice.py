"""The two-choice test: do reference images show which of two real images activates a unit more?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics.pairwise import cosine_similarity

from captum_mfv.errors import FacetError
from captum_mfv.metrics.intervals import Estimate, estimate
from captum_mfv.storage.schema import check_integer, check_seed

__all__ = ["TwoChoice", "two_choice"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class TwoChoice:
    """Choices between two real images by their similarity to reference images.

    Args:
        right: (n_pairs,) whether the chosen image is the one that activates the unit more.
        gaps: (n_pairs,) difference between the two images' quantiles of the activation, in (0, 1].
        pairs: (n_pairs, 2) rows of the two images, the one that activates the unit more first.
    """

    right: NDArray[np.bool_]
    gaps: NDArray[np.float64]
    pairs: NDArray[np.int64]

    @property
    def estimate(self) -> Estimate:
        """Share of right choices with its interval; chance is .5."""
        return estimate(self.right)

    def by_gap(self, edges: Sequence[float] = (0, 1 / 3, 2 / 3, 1)) -> list[Estimate | None]:
        """Return the share of right choices of the pairs with gaps between successive edges; None for no pair."""
        chosen = [self.right[(self.gaps > low) & (self.gaps <= high)] for low, high in pairwise(edges)]
        return [estimate(right) if len(right) else None for right in chosen]


def two_choice(
    references: Floats, real: Floats, activations: Floats, *, n_pairs: int = 400, seed: int = 0
) -> TwoChoice:
    """Return how often the image more similar to reference images is the one that activates a unit more.

    The similarity of a real image is the cosine of its code to that of the most similar reference, after subtracting
    the mean code of the real images: an image of a multifaceted unit resembles one of its facets, not all. A tie
    between two similarities is decided at random.

    Images are paired at random, so that pairs come from all quantiles of the activation, and pairs of equal activation
    are left out. The expected share is therefore (1 + τ) / 2, where τ is Kendall's rank correlation between similarity
    and activation. No image is in two pairs until all were drawn; beyond, with more than n / 2 pairs, pairs are not
    independent, and the interval of the share is too narrow. The pairs depend on activations, number and seed only:
    different references are compared on the same pairs.

    Args:
        references: (m, D) codes of the references, such as the images of a unit's facets, in an independent network.
        real: (n, D) codes of real images in the same network; rows that aren't finite are left out. Real images that
            serve as references must not be among them.
        activations: (n,) the unit's activation on the real images.
        n_pairs: number of pairs.
        seed: seed of the pairs.

    Raises:
        FacetError: if codes and activations differ in shape, there is no reference, or all activations are equal.
        TypeError, ValueError: if the number of pairs is below 1 or the seed is not an integer from 0 to 2**32 - 1.

    Sources: Borowski et al. 2021, arXiv 2010.12606, who ask people about pairs of a strongly and a weakly activating
    image; Zimmermann et al. 2024, arXiv 2405.08366, who ask a network.
    """
    n_pairs, rng = check_integer(n_pairs, "n_pairs", 1, FacetError), np.random.default_rng(check_seed(seed))
    references, real, activations = np.asarray(references), np.asarray(real), np.asarray(activations)
    if references.ndim != 2 or real.ndim != 2 or activations.shape != real.shape[:1]:
        shapes = f"{references.shape}, {real.shape} and {activations.shape}"
        raise FacetError(f"references, real and activations must be (m, D), (n, D) and (n,), not {shapes}")
    if not len(references) or references.shape[1] != real.shape[1] or not np.isfinite(references).all():
        raise FacetError(
            f"references must be at least one finite code of length {real.shape[1]}, not an array {references.shape}"
        )
    kept = np.flatnonzero(np.isfinite(activations) & np.isfinite(real).all(1))
    if len(np.unique(activations[kept])) < 2:
        raise FacetError("activations must have at least two different finite values")
    codes, origin = real[kept].astype(np.float64), real[kept].mean(0, dtype=np.float64)
    similar = cosine_similarity(codes - origin, references - origin).max(1)
    quantiles = (rankdata(activations[kept]) - 1) / (len(kept) - 1)
    pairs = _pairs(quantiles, n_pairs, rng)
    ahead = similar[pairs[:, 0]] - similar[pairs[:, 1]]
    right = np.where(ahead == 0, rng.random(n_pairs) < 0.5, ahead > 0)
    return TwoChoice(right, quantiles[pairs[:, 0]] - quantiles[pairs[:, 1]], kept[pairs])


def _pairs(quantiles: NDArray[np.float64], n_pairs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return pairs of different quantiles, the larger first, (n_pairs, 2): of one permutation after another."""
    found, n_found = [], 0
    while n_found < n_pairs:
        pairs = rng.permutation(len(quantiles))[: len(quantiles) // 2 * 2].reshape(-1, 2)
        ahead = quantiles[pairs[:, 0]] - quantiles[pairs[:, 1]]
        pairs = np.where((ahead > 0)[:, None], pairs, pairs[:, ::-1])[ahead != 0]
        found.append(pairs)
        n_found += len(pairs)
    return np.concatenate(found)[:n_pairs]
