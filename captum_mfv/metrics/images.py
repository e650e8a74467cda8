"""What the network makes of its facets' images: does each show its facet?"""

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
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.facets.head import nearest
from captum_mfv.images import Images, InputSpec
from captum_mfv.metrics.judged import off_facet, real_off_facet

__all__ = ["ImageScores", "percentile", "retention", "score_images"]

_ROWS = 16  # images in one pass, of which gradients are kept


@dataclass(frozen=True)
class ImageScores:
    """Figures of one facet's image.

    Args:
        index: the facet.
        activation: the unit's activation on the image.
        percentile: share of the dataset's images that activate the unit less, in [0, 1].
        nearest_facet: the facet whose center, in the network's own codes, is nearest.
        start_distance: root mean square difference from the start image, in [0, 1].
        off_facet: share of the unit's activation that the facet's real images don't account for (`off_facet`).
        real_off_facet: the same of one of its real images by its others, a mean; None if there is only one.
    """

    index: int
    activation: float
    percentile: float
    nearest_facet: int
    start_distance: float
    off_facet: float
    real_off_facet: float | None


def percentile(activation: float, real: NDArray[Any]) -> float:
    """Share of real images that activate the unit less than this, in [0, 1]; NaNs are left out."""
    real = real[np.isfinite(real)]
    return float((real < activation).mean())


def retention(codes: NDArray[Any], facets: FacetSet) -> float:
    """Share of images (one a facet, in order) whose nearest center is their own; chance is 1 / n_facets."""
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
    """Figures of every facet's image, and the share that keeps its facet in the network's own codes.

    The network that made an image is no independent witness: its own codes are an upper bound.

    Args:
        model: the model in which the facets were found; left as it was.
        facets: the facets.
        images: (C, H, W) in [0, 1], one a facet, in order.
        starts: where they started.
        real: the dataset in which the facets were found.
        input_spec: what turns images in [0, 1] into the model's input.
    """
    drives = pure_code(model, facets.unit, facets.code.layer, input_spec=input_spec)
    look = partial(
        collect, model, facets.unit, code=facets.code, code_fn=drives, input_spec=input_spec, batch_size=_ROWS
    )
    members = np.flatnonzero(facets.labels >= 0)
    seen, found = look(images=images), look(images=Subset(real, members.tolist()))  # type: ignore[arg-type]
    own = nearest(seen.codes, facets.centers)
    off, off_real = _off_facets(seen, found, facets.labels[members])
    scores = [
        ImageScores(
            index=k,
            activation=float(seen.activations[k]),
            percentile=percentile(float(seen.activations[k]), facets.activations),
            nearest_facet=int(own[k]),
            start_distance=float((images[k] - starts[k]).square().mean().sqrt()),
            off_facet=off[k],
            real_off_facet=off_real[k],
        )
        for k in range(len(facets))
    ]
    return scores, retention(seen.codes, facets)


def _off_facets(
    seen: Collection, real: Collection, labels: NDArray[np.int64]
) -> tuple[list[float], list[float | None]]:
    """`off_facet` of each facet's image, and the mean one of its real images."""
    assert seen.fn_codes is not None and real.fn_codes is not None
    counts = np.bincount(labels)
    by_image, own = real_off_facet(real.fn_codes, labels), labels[counts[labels] > 1]
    means = [float(by_image[own == k].mean()) if n > 1 else None for k, n in enumerate(counts)]
    return off_facet(seen.fn_codes, real.fn_codes, labels).tolist(), means
