"""Scores by the network that has the unit: multifacetedness of the unit, and scores of its facets' images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from captum_mfv.activations.codes import collect
from captum_mfv.errors import FacetError
from captum_mfv.facets.excess import Excess, excess
from captum_mfv.facets.facet_set import FacetSet, nearest
from captum_mfv.facets.finder import STABLE
from captum_mfv.images import Images, InputSpec, batches
from captum_mfv.metrics.scores import off_facet, real_off_facet
from captum_mfv.storage.schema import check_seed

__all__ = ["ImageScores", "Multifacetedness", "multifacetedness", "percentile", "score_images"]

_BATCH_SIZE = 16  # small: gradients are kept


@dataclass(frozen=True)
class Multifacetedness:
    """How multifaceted a unit is, measured on the images that activate it.

    Args:
        score: share of the codes' scatter that clusters explain in excess of codes of one cluster with the same
            covariance, in [0, 1]; 0 for one facet, also an elongated or heavy-tailed one. The score does not depend
            on the requested number of facets, so that units can be ranked.
        p_value: p-value of one facet, whose score may be up to .05.
        coverage: share of the unit's activation, summed over its images, that is in stable facets, in [0, 1]: facets
            whose mean recovery in bootstrap samples is at least .6. Negative activations count as 0; if no activation
            is positive, all images count the same. None if the stability of facets was not computed.
    """

    score: float
    p_value: float
    coverage: float | None

    @classmethod
    def of(cls, facets: FacetSet, found: Excess) -> Multifacetedness:
        """Return it from the excess of the facets' codes."""
        if facets.stability is None:
            return cls(found.score, found.p_value, None)
        readable = np.isfinite(facets.activations)
        weights = np.maximum(facets.activations[readable], 0)
        weights = weights if weights.any() else np.ones_like(weights)
        stable = np.append(np.array(facets.stability) >= STABLE, False)  # noise is -1: the last entry
        coverage = np.average(stable[facets.labels[readable]], weights=weights)
        return cls(found.score, found.p_value, float(coverage))


def multifacetedness(facets: FacetSet, *, seed: int = 0) -> Multifacetedness:
    """Return how multifaceted a unit is, with a p-value, and the share of its activation in stable facets.

    Compare units on the same number of images, such as the top 200 of each (`top_images`): small clusters are easier
    to detect in more images. The seed is that of the null distribution's draws.
    """
    codes = facets.codes[np.isfinite(facets.activations)]
    return Multifacetedness.of(facets, excess(codes.astype(np.float64), check_seed(seed)))


@dataclass(frozen=True)
class ImageScores:
    """Scores of one facet's image.

    Args:
        index: index of the facet.
        activation: the unit's activation on the image.
        percentile: share of the dataset's images with a smaller activation, in [0, 1].
        nearest_facet: index of the facet whose center is nearest in the network's codes.
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
    return float((real[np.isfinite(real)] < activation).mean())


def score_images(
    model: nn.Module,
    facets: FacetSet,
    images: Sequence[Tensor],
    starts: Sequence[Tensor],
    real: Images,
    *,
    input_spec: InputSpec | None = None,
) -> tuple[list[ImageScores], float]:
    """Return the scores of each facet's image, and the share of images nearest to their own facet's center.

    The network that rendered the images is not independent: the share, retention, is an upper bound; chance is
    1 / n_facets.

    Args:
        model: the model in which the facets were found; its state is not changed.
        facets: the facets.
        images: (C, H, W) in [0, 1], one per facet, in order.
        starts: the images' start images.
        real: the dataset in which the facets were found.
        input_spec: preprocessing of images in [0, 1].

    Raises:
        FacetError: if there isn't one image and one start image for each facet.
    """
    n, counts = len(facets), np.array([len(facet) for facet in facets])
    if not len(images) == len(starts) == n:
        raise FacetError(f"{n} facets need one image and one start image each, not {len(images)} and {len(starts)}")
    members = np.flatnonzero(facets.labels >= 0)
    labels, own = facets.labels[members], facets.labels[members][counts[facets.labels[members]] > 1]
    made = collect(model, facets.unit, images, code=facets.code, input_spec=input_spec)
    from captum_mfv.attr import pure_code  # here, since importing Captum takes a second

    code = pure_code(model, facets.unit, facets.code.layer, input_spec=input_spec)
    contributions = _contributions(code, images)
    real_contributions = _contributions(code, Subset(real, members.tolist()))  # type: ignore[arg-type]
    off = off_facet(contributions, real_contributions, labels)
    real_off = real_off_facet(real_contributions, labels)
    closest = nearest(made.codes, facets.centers)
    scores = [
        ImageScores(
            index=k,
            activation=float(made.activations[k]),
            percentile=percentile(float(made.activations[k]), facets.activations),
            nearest_facet=int(closest[k]),
            start_distance=float((images[k] - starts[k]).square().mean().sqrt()),
            off_facet=float(off[k]),
            real_off_facet=float(real_off[own == k].mean()) if counts[k] > 1 else None,
        )
        for k in range(n)
    ]
    return scores, float((closest == np.arange(n)).mean())


def _contributions(code: Callable[[Tensor], Tensor], images: Images | Sequence[Tensor]) -> NDArray[np.float32]:
    """Return the contributions of a layer's channels to the unit, (n, C)."""
    return np.concatenate([code(batch).float().numpy() for _, batch in batches(images, _BATCH_SIZE)])
