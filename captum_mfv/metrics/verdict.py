"""A judge's figures of facets' images, each with its interval, beside those of controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_mfv.metrics.estimate import Estimate, estimate, estimate_ratio
from captum_mfv.metrics.judge import Judgement
from captum_mfv.metrics.judged import (
    confusion,
    diversity,
    naturalness,
    predicts,
    real_predicts,
    retained,
    same_over_seeds,
    spread,
)

__all__ = ["Judged", "Scores", "Verdict", "judge_scores", "verdict"]

Labels = NDArray[np.int64]

_SHUFFLES = 50  # of the clusters that mean nothing
_NEIGHBOURS = 3  # of naturalness


@dataclass(frozen=True, eq=False)
class Judged:
    """What a judge sees in images, and the facet of each.

    Args:
        images: what it sees.
        labels: (n,) the facet of each image, -1 for none.
    """

    images: Judgement
    labels: Labels

    def kept(self) -> Judged:
        """Those that have a facet and could be read."""
        rows = np.flatnonzero((self.labels >= 0) & np.isfinite(self.images.codes).all(1))
        return Judged(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Scores:
    """A judge's figures of one image for each facet.

    Args:
        retention: share of images whose nearest facet center is their own facet's; chance is 1 / n_facets.
        centered: the same with what all have in common removed.
        predicts: share of real images whose nearest facet image is their facet's.
        top1: share of images that the judge calls the class; None if it has no unit.
        probability: the class's, a mean over images; None if it has no unit.
        distance: of images to the nearest real one, where 1 is as near as real images are to each other.
        precision: share of images in a real one's neighbourhood.
        recall: share of real images in an image's neighbourhood.
        diversity: mean of 1 - cosine of images to each other.
    """

    retention: Estimate
    centered: Estimate
    predicts: Estimate
    top1: Estimate | None
    probability: Estimate | None
    distance: Estimate
    precision: Estimate
    recall: Estimate
    diversity: Estimate


def judge_scores(made: Judgement, real: Judged, *, seed: int = 0) -> Scores:
    """A judge's figures of one image for each facet.

    Args:
        made: of the facets' images, in order.
        real: of real images.
        seed: of bootstrap samples.
    """
    kept, codes = real.kept(), made.codes
    seen, labels = kept.images.codes, kept.labels
    near = naturalness(codes, seen, k=min(_NEIGHBOURS, len(made) - 1))
    return Scores(
        retention=estimate(retained(codes, seen, labels), seed=seed),
        centered=estimate(retained(codes, seen, labels, centered=True), seed=seed),
        predicts=estimate(predicts(codes, seen, labels), seed=seed),
        top1=_mean(made.called, seed),
        probability=_mean(made.probabilities, seed),
        distance=estimate(near.distance, seed=seed),
        precision=estimate(near.precision, seed=seed),
        recall=estimate(near.recall, seed=seed),
        diversity=estimate(diversity(codes), seed=seed),
    )


@dataclass(frozen=True)
class Verdict:
    """A judge's figures of facets' images, and what to read them against.

    Args:
        chance: of retention and predictions, 1 / n_facets.
        scores: of the images.
        controls: by name, of ``start`` images, of one ``real image`` of each facet, and of more controls
            that were drawn (`controls.CONTROLS`).
        confusion: cosine of each facet's image (rows) to each facet's center, both centered.
        shuffled: retention of the images against clusters that mean nothing, many times.
        held_out: predictions of images that took no part in finding the facets, if there are any.
        over_seeds: share of images whose nearest one of another seed is their facet's, if there are several.
        real_predicts: predictions of real images by the mean of the facet's other images: the ceiling.
        real_top1: share of the real images that the judge calls the class.
        real_probability: the class's, of the real images.
        separation: distance of real images across facets over that within; 1: no facets. None of one facet.
    """

    chance: float
    scores: Scores
    controls: Mapping[str, Scores]
    confusion: tuple[tuple[float, ...], ...]
    shuffled: Estimate
    held_out: Estimate | None
    over_seeds: Estimate | None
    real_predicts: Estimate
    real_top1: Estimate | None
    real_probability: Estimate | None
    separation: Estimate | None


def verdict(
    made: Judgement,
    real: Judged,
    *,
    controls: Mapping[str, tuple[Judgement, Labels]] | None = None,
    again: Judgement | None = None,
    held_out: Judged | None = None,
    seed: int = 0,
) -> Verdict:
    """A judge's figures of one image for each facet, beside controls.

    Args:
        made: of the facets' images, in order.
        real: of the images that the facets were found in.
        controls: by name, of a control's images, and the labels, (n,), of the real images that judge them.
        again: of the facets' images drawn with another seed.
        held_out: of images that took no part in finding the facets.
        seed: of bootstrap samples and shuffles.
    """
    kept = real.kept()
    codes, labels = kept.images.codes, kept.labels
    rng = np.random.default_rng(seed)
    chance = [retained(made.codes, codes, rng.permutation(labels)).mean() for _ in range(_SHUFFLES)]
    others = {
        name: judge_scores(images, Judged(real.images, its), seed=seed)
        for name, (images, its) in (controls or {}).items()
    }
    return Verdict(
        chance=1 / len(made),
        scores=judge_scores(made, kept, seed=seed),
        controls={"real image": _middle_scores(kept, seed), **others},
        confusion=tuple(tuple(map(float, row)) for row in confusion(made.codes, codes, labels, centered=True)),
        shuffled=estimate(np.array(chance), seed=seed),
        held_out=None if held_out is None else _prediction(made, held_out, seed),
        over_seeds=None if again is None else _over_seeds(made, again, seed),
        real_predicts=estimate(real_predicts(codes, labels), seed=seed),
        real_top1=_mean(kept.images.called, seed),
        real_probability=_mean(kept.images.probabilities, seed),
        separation=_separation(kept, seed),
    )


def _middle_scores(real: Judged, seed: int) -> Scores:
    """Of the real image nearest to each facet's center, judged by the others where the facet has any."""
    picks = [_middle(real.images.codes, np.flatnonzero(real.labels == k)) for k in range(real.labels.max() + 1)]
    counts = np.bincount(real.labels)
    left = np.setdiff1d(np.arange(len(real.labels)), [row for k, row in enumerate(picks) if counts[k] > 1])
    return judge_scores(real.images[picks], Judged(real.images[left], real.labels[left]), seed=seed)


def _middle(codes: NDArray[np.float32], rows: NDArray[np.intp]) -> int:
    """The row that is nearest to the mean of some rows."""
    return int(rows[np.linalg.norm(codes[rows] - codes[rows].mean(0), axis=1).argmin()])


def _prediction(made: Judgement, held_out: Judged, seed: int) -> Estimate:
    kept = held_out.kept()
    return estimate(predicts(made.codes, kept.images.codes, kept.labels), seed=seed)


def _over_seeds(made: Judgement, again: Judgement, seed: int) -> Estimate:
    return estimate(same_over_seeds(np.stack([made.codes, again.codes])).ravel(), seed=seed)


def _separation(real: Judged, seed: int) -> Estimate | None:
    across, within = spread(real.images.codes, real.labels)
    return estimate_ratio(across, within, seed=seed) if len(across) else None


def _mean(values: NDArray[Any] | None, seed: int) -> Estimate | None:
    return None if values is None else estimate(values, seed=seed)
