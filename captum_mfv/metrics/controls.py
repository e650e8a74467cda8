"""Controls: facets that mean nothing, and halves of facets, to read figures of real ones against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from captum_mfv.facets import FacetSet

__all__ = ["halved", "shuffled"]


def shuffled(facets: FacetSet, *, seed: int = 0) -> FacetSet:
    """Clusters of the same sizes, of the same images, that mean nothing."""
    labels = facets.labels.copy()
    kept = labels >= 0
    labels[kept] = np.random.default_rng(seed).permutation(labels[kept])
    return replace(facets, labels=labels, stability=None, p_value=None)


def halved(facets: FacetSet) -> tuple[FacetSet, NDArray[np.int64]]:
    """Every second image of each facet, nearest to the center first, and the labels of the images left out.

    Clusters that mean nothing have centers too, and an image made from a cluster's images is near theirs: only
    images that took no part tell the two apart.

    Returns:
        Facets of the one half; of the other the facet of each image, (n_images,), -1 where it isn't in it.
    """
    kept, left = np.full_like(facets.labels, -1), np.full_like(facets.labels, -1)
    for facet in facets:
        kept[facet.members[::2]] = facet.index
        left[facet.members[1::2]] = facet.index
    return replace(facets, labels=kept, stability=None, p_value=None), left
