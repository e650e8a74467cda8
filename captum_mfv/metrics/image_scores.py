"""Scores of facets' images by the network that rendered them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from captum_mfv.activations.codes import Collection, collect
from captum_mfv.attr import pure_code
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.facets.head import nearest
from captum_mfv.images import Images, InputSpec
from captum_mfv.metrics.scores import off_facet, real_off_facet

__all__ = ["ImageScores", "percentile", "retention", "score_images"]

_BATCH_SIZE = 16  # small: gradients are kept


@dataclass(frozen=True)
class ImageScores:
    """Scores of one facet's image.

    Args:
        index: index of the facet.
        activation: the unit's activation on the image.
        percentile: share of the dataset's images with a smaller activation, in [0, 1].
        nearest_facet: index of the facet whose center is nearest in the network's own codes.
        start_distance: root mean square difference from the start image, in [0, 1].
        off_facet: share of the unit's activation that the facet's real images do not explain (`off_facet`).
        real_off_facet: mean `off_facet` of the facet's real images; None if there is only one.
    """

    index: int
    activation: float
    percentile: float
    nearest_facet: int
    start_distance: float
    off_facet: float
    real_off_facet: float | None


def percentile(activation: float, real: NDArray[Any]) -> float:
    """Return the share of real activations, (n,), below an activation, in [0, 1]; NaN is left out."""
    real = real[np.isfinite(real)]
    return float((real < activation).mean())


def retention(codes: NDArray[Any], facets: FacetSet) -> float:
    """Return the share of codes, one per facet in order, nearest to their own center; chance is 1 / n_facets."""
    return float((nearest(codes, facets.centers) == np.arange(len(facets))).mean())


def score_images(
    model: nn.Module,
    facets: FacetSet,
    images: Sequence[Tensor],
    starts: Sequence[Tensor],
    real: Images,
    *,
    input_spec: InputSpec | None = None,
) -> tuple[list[ImageScores], float]:
    """Return the scores of each facet's image, and the `retention` of all images in the network's own codes.

    The network that rendered the images is not independent: its retention is an upper bound.

    Args:
        model: the model in which the facets were found; left as it was.
        facets: the facets.
        images: (C, H, W) in [0, 1], one per facet, in order.
        starts: the images' start images.
        real: the dataset in which the facets were found.
        input_spec: preprocessing of images in [0, 1].

    Raises:
        FacetError: if there isn't one image and one start image for each facet.
    """
    if not len(images) == len(starts) == len(facets):
        raise FacetError(
            f"{len(facets)} facets need one image and one start image each, not {len(images)} and {len(starts)}"
        )
    contributions = pure_code(model, facets.unit, facets.code.layer, input_spec=input_spec)
    read = partial(
        collect,
        model,
        facets.unit,
        code=facets.code,
        code_fn=contributions,
        input_spec=input_spec,
        batch_size=_BATCH_SIZE,
    )
    members = np.flatnonzero(facets.labels >= 0)
    made, found = read(images=images), read(images=Subset(real, members.tolist()))  # type: ignore[arg-type]
    own = nearest(made.codes, facets.centers)
    off, off_real = _off_facets(made, found, facets.labels[members])
    scores = [
        ImageScores(
            index=k,
            activation=float(made.activations[k]),
            percentile=percentile(float(made.activations[k]), facets.activations),
            nearest_facet=int(own[k]),
            start_distance=float((images[k] - starts[k]).square().mean().sqrt()),
            off_facet=off[k],
            real_off_facet=off_real[k],
        )
        for k in range(len(facets))
    ]
    return scores, retention(made.codes, facets)


def _off_facets(
    made: Collection, real: Collection, labels: NDArray[np.int64]
) -> tuple[list[float], list[float | None]]:
    """Return `off_facet` of each facet's image, and the mean of its real images; None for a facet of one image."""
    assert made.fn_codes is not None and real.fn_codes is not None
    counts = np.bincount(labels)
    by_image, own = real_off_facet(real.fn_codes, labels), labels[counts[labels] > 1]
    means = [float(by_image[own == k].mean()) if n > 1 else None for k, n in enumerate(counts)]
    return off_facet(made.fn_codes, real.fn_codes, labels).tolist(), means
