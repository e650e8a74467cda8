"""Evaluation of facets' images by an independent network, the judge: scores with intervals, and those of controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.codes import collect
from captum_mfv.activations.layers import trace
from captum_mfv.errors import FacetError
from captum_mfv.images import Images, InputSpec
from captum_mfv.metrics.intervals import Estimate, NullDistribution, estimate, estimate_ratio, null_distribution
from captum_mfv.metrics.scores import (
    confusion,
    diversity,
    naturalness,
    predicts,
    real_predicts,
    retained,
    same_over_seeds,
    spread,
)
from captum_mfv.storage.schema import check_seed
from captum_mfv.units import Code, Unit

__all__ = ["Evaluation", "EvaluationScores", "Judge", "JudgeOutput", "LabeledOutput", "evaluate_images", "judge_scores"]

Codes = NDArray[np.float32]
Labels = NDArray[np.int64]

_SHUFFLES = 199  # the smallest p-value is 1 / 200


@dataclass(frozen=True, eq=False)
class JudgeOutput:
    """Output of a judge for a set of images; without a unit, a judge returns only codes.

    Args:
        codes: (n, D) codes; NaN for unreadable images.
        probabilities: (n,) probability of the judge's class, in [0, 1].
        top1: (n,) whether that class is the most likely one.
    """

    codes: Codes
    probabilities: Codes | None = None
    top1: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> JudgeOutput:
        parts = (None if part is None else part[rows] for part in (self.probabilities, self.top1))
        return JudgeOutput(self.codes[rows], *parts)


@dataclass(frozen=True, eq=False)
class LabeledOutput:
    """A judge's output for images, and the facet index of each image, (n,), -1 for none.

    Raises:
        FacetError: if the two differ in length.
    """

    images: JudgeOutput
    labels: Labels

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise FacetError(f"labels must have one row per image: {len(self.labels)} for {len(self.images)} images")

    def kept(self) -> LabeledOutput:
        """Return the readable images that have a facet."""
        rows = np.flatnonzero((self.labels >= 0) & np.isfinite(self.images.codes).all(1))
        return LabeledOutput(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Judge:
    """An independent network: one that was not used to find facets or to render images.

    Args:
        model: any PyTorch vision model; its state is not changed.
        unit: the logit of the class of the images, or its text, such as ``"fc:945"``; None: only codes are returned.
        code: the code that describes an image, or its text, such as ``"layer4:mean"``; None: the default
            code of `find_facets`, or without a unit that of the model's last layer.
        input_spec: preprocessing of images in [0, 1].

    Raises:
        FacetError: if the unit is a direction or a latent; it must be a class.
    """

    model: nn.Module
    unit: Unit | str | None = None
    code: Code | str | None = None
    input_spec: InputSpec | None = None

    def __post_init__(self) -> None:
        unit = None if self.unit is None else Unit.parse(self.unit)
        if unit is not None and (unit.encoder is not None or not isinstance(unit.index, int)):
            raise FacetError("the unit of a judge must be a class, not a direction or a latent")

    def __call__(self, images: Images | Sequence[Tensor]) -> JudgeOutput:
        """Return codes, and with a unit class probabilities, of images in [0, 1]."""
        spec = self.input_spec or InputSpec()
        read = partial(collect, self.model, images=images, code=self.code, input_spec=self.input_spec)
        if self.unit is None:
            return JudgeOutput(read(self._last_unit(spec)).codes)
        unit = Unit.parse(self.unit)
        found = read(unit, code_fn=partial(self._probabilities, unit, spec))
        assert found.fn_codes is not None and isinstance(unit.index, int)
        return JudgeOutput(found.codes, found.fn_codes[:, unit.index], found.fn_codes.argmax(1) == unit.index)

    def _probabilities(self, unit: Unit, spec: InputSpec, images: Tensor) -> Tensor:
        """Return probabilities of all classes, (N, n_classes), in float32."""
        name = layer_name(self.model, unit.layer)
        with guard(self.model), torch.no_grad(), capture(self.model, [name]) as run:
            outputs = run(spec.feed(self.model)(images))[name]
        return unit.read_channels(outputs).float().softmax(1)

    def _last_unit(self, spec: InputSpec) -> Unit:
        """Return a unit of the last layer that runs once; codes are taken before it."""
        calls = trace(self.model, spec.feed(self.model)(spec.gray()))
        return Unit(next(call.name for call in reversed(calls) if call.runs == 1 and call.first), 0)


@dataclass(frozen=True)
class EvaluationScores:
    """A judge's scores of one image for each facet.

    Args:
        retention: share of images whose most similar facet center is their own facet's; chance is 1 / n_facets.
        centered: retention after subtracting the mean code of the images, and of the real images.
        predicts: share of real images whose most similar facet image is their own facet's.
        top1: share of images whose most likely class is the judge's unit; None if the judge has no unit.
        probability: mean probability of that class; None if the judge has no unit.
        distance, precision, covered: means of `Naturalness`.
        diversity: mean of 1 - cosine of images to each other; None for one facet.
    """

    retention: Estimate
    centered: Estimate
    predicts: Estimate
    top1: Estimate | None
    probability: Estimate | None
    distance: Estimate | None
    precision: Estimate | None
    covered: Estimate | None
    diversity: Estimate | None


def judge_scores(made: JudgeOutput, real: LabeledOutput, *, seed: int = 0) -> EvaluationScores:
    """Return a judge's scores of one image for each facet, in order, against real images.

    Raises:
        FacetError: if a facet has no readable real image, or there isn't one image for each facet.
    """
    kept, codes = real.kept(), made.codes
    compared, near = (codes, kept.images.codes, kept.labels), naturalness(codes, kept.images.codes)
    return EvaluationScores(
        retention=estimate(retained(*compared), seed=seed),
        centered=estimate(retained(*compared, centered=True), seed=seed),
        predicts=estimate(predicts(*compared), seed=seed),
        top1=_estimate(made.top1, seed),
        probability=_estimate(made.probabilities, seed),
        distance=_estimate(near.distance, seed),
        precision=_estimate(near.precision, seed),
        covered=_estimate(near.covered, seed),
        diversity=_estimate(diversity(codes) if len(codes) > 1 else None, seed),
    )


@dataclass(frozen=True)
class Evaluation:
    """A judge's scores of facets' images, and the scores to compare them with.

    Args:
        chance: retention and predictions by chance, 1 / n_facets.
        scores: scores of the images.
        controls: scores of controls by name: ``start`` images, one ``real image`` of each facet, and rendered
            controls (`CONTROLS`).
        confusion: cosine of each facet's image (rows) to each facet's center, both centered.
        shuffled: null distribution of the retention: labels of the real images are shuffled.
        held_out: share of held-out images predicted right; None without held-out images.
        over_seeds: share of images whose most similar image of another seed is their own facet's, with an interval
            over facets; None without another seed.
        real_predicts: share of real images predicted right by the mean of their facet's other images: the ceiling.
        real_top1, real_probability: top1 and probability of the real images.
        separation: distance of real images across facets divided by that within facets; 1: no facets. None for one
            facet, or if images of the same facet have the same code.
    """

    chance: float
    scores: EvaluationScores
    controls: Mapping[str, EvaluationScores]
    confusion: tuple[tuple[float, ...], ...]
    shuffled: NullDistribution
    held_out: Estimate | None
    over_seeds: Estimate | None
    real_predicts: Estimate
    real_top1: Estimate | None
    real_probability: Estimate | None
    separation: Estimate | None


def evaluate_images(
    made: JudgeOutput,
    real: LabeledOutput,
    *,
    controls: Mapping[str, tuple[JudgeOutput, Labels]] | None = None,
    again: JudgeOutput | None = None,
    held_out: LabeledOutput | None = None,
    seed: int = 0,
) -> Evaluation:
    """Return a judge's scores of one image for each facet, and those of controls.

    Args:
        made: output for the facets' images, in order.
        real: output for the images in which the facets were found.
        controls: by name, output for a control's images, and the labels, (n,), of the real images with which the
            control is compared.
        again: output for the facets' images rendered with another seed.
        held_out: output for images that were not used to find the facets.
        seed: seed of the bootstrap samples and shuffles.

    Raises:
        FacetError: if a facet has no readable real image, or there isn't one image for each facet.
        TypeError, ValueError: if the seed is not an integer from 0 to 2**32 - 1.
    """
    kept, seed = real.kept(), check_seed(seed)
    unseen = None if held_out is None else held_out.kept()
    codes, labels = kept.images.codes, kept.labels
    scores = judge_scores(made, kept, seed=seed)
    rng = np.random.default_rng(seed)
    shuffled = [retained(made.codes, codes, rng.permutation(labels)).mean() for _ in range(_SHUFFLES)]
    others = {
        name: judge_scores(images, LabeledOutput(real.images, control_labels), seed=seed)
        for name, (images, control_labels) in (controls or {}).items()
    }
    return Evaluation(
        chance=1 / len(made),
        scores=scores,
        controls={"real image": _central_scores(kept, seed), **others},
        confusion=tuple(tuple(map(float, row)) for row in confusion(made.codes, codes, labels, centered=True)),
        shuffled=null_distribution(np.array(shuffled), scores.retention.value),
        held_out=_estimate(None if unseen is None else predicts(made.codes, unseen.images.codes, unseen.labels), seed),
        over_seeds=None if again is None else _over_seeds(made, again, seed),
        real_predicts=estimate(real_predicts(codes, labels), seed=seed),
        real_top1=_estimate(kept.images.top1, seed),
        real_probability=_estimate(kept.images.probabilities, seed),
        separation=estimate_ratio(*spread(codes, labels), seed=seed),
    )


def _central_scores(real: LabeledOutput, seed: int) -> EvaluationScores:
    """Return the scores of the real image nearest to each facet's center, against the facet's other images if any."""
    picks, counts = [], np.bincount(real.labels)
    for k in range(len(counts)):
        rows = np.flatnonzero(real.labels == k)
        codes = real.images.codes[rows]
        picks.append(int(rows[np.linalg.norm(codes - codes.mean(0, dtype=np.float64), axis=1).argmin()]))
    left = np.setdiff1d(np.arange(len(real.labels)), [row for k, row in enumerate(picks) if counts[k] > 1])
    return judge_scores(real.images[picks], LabeledOutput(real.images[left], real.labels[left]), seed=seed)


def _over_seeds(made: JudgeOutput, again: JudgeOutput, seed: int) -> Estimate:
    """Return the share over facets: the two directions of a facet are one observation, their mean."""
    shares = same_over_seeds(np.stack([made.codes, again.codes])).mean((0, 1))
    return estimate(shares == 1 if np.isin(shares, (0, 1)).all() else shares, seed=seed)


def _estimate(values: NDArray[Any] | None, seed: int) -> Estimate | None:
    return None if values is None else estimate(values, seed=seed)
