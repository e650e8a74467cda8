"""A network that took no part, and its figures of a run's images, with controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations import capture, guard, layer_name, trace
from captum_mfv.collect import collect
from captum_mfv.errors import FacetError
from captum_mfv.images import Images, InputSpec
from captum_mfv.metrics.estimate import Estimate, estimate
from captum_mfv.metrics.judged import (
    Naturalness,
    confusion,
    diversity,
    naturalness,
    predicts,
    real_predicts,
    retained,
    separation_ratio,
)
from captum_mfv.units import Code, Unit

__all__ = ["Judge", "Judgement", "Verdict", "verdict"]

Codes = NDArray[np.float32]

_SHUFFLES = 50  # of the clusters that mean nothing


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a judge sees in images.

    Args:
        codes: (n, D) codes; NaN where an image can't be read.
        probabilities: (n,) of the class, or None if the judge has none.
        called: (n,) whether the class is its first choice, or None.
    """

    codes: Codes
    probabilities: Codes | None = None
    called: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Judgement:
        parts = (None if part is None else part[rows] for part in (self.probabilities, self.called))
        return Judgement(self.codes[rows], *parts)


@dataclass(frozen=True, eq=False)
class Judge:
    """A network that took no part in making images.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: its logit of the class that the images are of; None: it only gives codes.
        code: which of its numbers describe an image; None: the last layer with positions before the unit,
            pooled, or without a unit the last one of all.
        input_spec: what turns images in [0, 1] into its input.
    """

    model: nn.Module
    unit: Unit | None = None
    code: Code | None = None
    input_spec: InputSpec | None = None

    def __call__(self, images: Images | Sequence[Tensor]) -> Judgement:
        """What it sees in images in [0, 1]."""
        spec = self.input_spec or InputSpec()
        unit = self.unit or self._any_unit(spec)
        seen = collect(
            self.model, unit, images, code=self.code, view=self._classes if self.unit else None, input_spec=spec
        )
        if seen.views is None or self.unit is None:
            return Judgement(seen.codes)
        index = self.unit.index
        if not isinstance(index, int):
            raise FacetError("the judge's unit must be a class, not a direction")
        return Judgement(seen.codes, seen.views[:, index], seen.views.argmax(1) == index)

    def _classes(self, images: Tensor) -> Tensor:
        """Probabilities, (N, classes), of the unit's layer."""
        assert self.unit is not None
        spec, name = self.input_spec or InputSpec(), layer_name(self.model, self.unit.layer)
        with guard(self.model), torch.no_grad(), capture(self.model, [name]) as run:
            outputs = run(spec.feed(self.model)(images))[name]
        return self.unit.read_channels(outputs).softmax(1)

    def _any_unit(self, spec: InputSpec) -> Unit:
        """A unit of the last layer, before which codes are taken."""
        calls = trace(self.model, spec.feed(self.model)(spec.grey()))
        return Unit(next(call.name for call in reversed(calls) if call.runs == 1), 0)


@dataclass(frozen=True)
class Verdict:
    """A judge's figures of facets' images; each of the shares in [0, 1], chance is that of retention.

    Args:
        chance: 1 / n_facets.
        retention: share of images whose nearest facet center is their own facet's.
        centered: the same with what all have in common removed.
        confusion: cosine of each facet's image (rows) to each facet's center, both centered.
        predicts: share of real images whose nearest facet image is their facet's.
        real_predicts: the same with the mean of the facet's other images in the place of its image.
        held_out: ``predicts`` of images that took no part in finding the facets, if there are any.
        probability: of the class, of the images; None if the judge has no unit.
        top1: share of images that the judge calls the class.
        real_probability: of the class, of the real images.
        real_top1: share of the real images that the judge calls the class.
        naturalness: distance to the nearest real image, precision and recall.
        diversity: mean of 1 - cosine over pairs of images.
        real_diversity: the same over the real images nearest to the facets' centers.
        separation: distance of real images across facets over that within.
        controls: retention of the start images, and of the images against clusters that mean nothing.
    """

    chance: float
    retention: Estimate
    centered: Estimate
    confusion: tuple[tuple[float, ...], ...]
    predicts: Estimate
    real_predicts: Estimate
    held_out: Estimate | None
    probability: Estimate | None
    top1: Estimate | None
    real_probability: Estimate | None
    real_top1: Estimate | None
    naturalness: Naturalness
    diversity: float
    real_diversity: float
    separation: float
    controls: dict[str, Estimate]


def verdict(
    made: Judgement,
    starts: Judgement,
    real: Judgement,
    labels: NDArray[np.int64],
    *,
    held_out: tuple[Judgement, NDArray[np.int64]] | None = None,
    seed: int = 0,
) -> Verdict:
    """A judge's figures of one image for each facet.

    Args:
        made: of the facets' images, in order.
        starts: of where they started.
        real: of the images that the facets were found in.
        labels: the facet of each of these, -1 for none.
        held_out: of images that took no part in finding the facets, and the facet of each.
        seed: of bootstrap samples and shuffles.
    """
    rows = np.flatnonzero((labels >= 0) & np.isfinite(real.codes).all(1))
    real, labels = real[rows], labels[rows]
    codes = made.codes
    rng = np.random.default_rng(seed)
    chance = [retained(codes, real.codes, rng.permutation(labels)).mean() for _ in range(_SHUFFLES)]
    similar = confusion(codes, real.codes, labels, centered=True)
    nearest = [_middle(real.codes, np.flatnonzero(labels == k)) for k in range(len(made))]
    return Verdict(
        chance=1 / len(made),
        retention=estimate(retained(codes, real.codes, labels), seed=seed),
        centered=estimate(retained(codes, real.codes, labels, centered=True), seed=seed),
        confusion=tuple(tuple(map(float, row)) for row in similar),
        predicts=estimate(predicts(codes, real.codes, labels), seed=seed),
        real_predicts=estimate(real_predicts(real.codes, labels), seed=seed),
        held_out=None if held_out is None else estimate(predicts(codes, held_out[0].codes, held_out[1]), seed=seed),
        probability=_mean(made.probabilities, seed),
        top1=_mean(made.called, seed),
        real_probability=_mean(real.probabilities, seed),
        real_top1=_mean(real.called, seed),
        naturalness=naturalness(codes, real.codes, k=min(3, len(made) - 1)),
        diversity=diversity(codes),
        real_diversity=diversity(real.codes[nearest]),
        separation=separation_ratio(real.codes, labels),
        controls={
            "start": estimate(retained(starts.codes, real.codes, labels), seed=seed),
            "shuffled clusters": estimate(np.array(chance), seed=seed),
        },
    )


def _middle(codes: Codes, rows: NDArray[np.intp]) -> int:
    """The row that is nearest to the mean of some rows."""
    return int(rows[np.linalg.norm(codes[rows] - codes[rows].mean(0), axis=1).argmin()])


def _mean(values: NDArray[Any] | None, seed: int) -> Estimate | None:
    return None if values is None else estimate(values, seed=seed)
