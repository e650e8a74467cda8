"""Scores of a cell's images, and of its real images: by each judge, and means over judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from captum_mfv.activations.codes import collect
from captum_mfv.bench.scene import Scene
from captum_mfv.errors import FacetError
from captum_mfv.images import image_at
from captum_mfv.images.loading import check_range
from captum_mfv.metrics import Judge, LabeledOutput, judge_scores
from captum_mfv.metrics.scores import confusion, real_predicts

__all__ = ["SCORES", "CellScores", "checked_images", "high_share", "image_scores", "matched", "real_scores"]

_JUDGED = ("retention", "top1", "predicts", "probability", "distance")

SCORES: Mapping[str, str] = {
    "retention": "share of images whose most similar facet center, to a judge, is their own facet's",
    "top1": "share of images that a judge recognizes as the unit's class; not of hidden units",
    "predicts": "share of real images whose most similar image, to a judge, is that of their own facet",
    "probability": "mean probability of the unit's class; not of hidden units",
    "distance": "distance to the nearest real image; 1: as near as real images are to each other",
    "high": "share of an image's spectral energy above a quarter of the sampling frequency",
    "activation": "the unit's activation on its image, relative to the largest on a real image",
    "seconds": "CPU seconds of one step of one image; of a recipe without measuring the real images",
}
"""Scores by name; those by judges are means over the judges."""

_N_NEAREST = 15  # real images of each facet


@dataclass(frozen=True)
class CellScores:
    """Scores of a cell's images: means over facets, and over judges those of each judge."""

    means: Mapping[str, float]
    judges: Mapping[str, Mapping[str, float]]


def checked_images(images: Any, scene: Scene) -> list[Tensor]:
    """Return what a method returned as one (C, H, W) float32 image in [0, 1] for each facet, on the CPU.

    Raises:
        FacetError: if there isn't one image for each facet, or one has another shape or number of channels, isn't
            finite or isn't in [0, 1].
    """
    n, channels = len(scene.facets), scene.spec.channels
    wanted = f"must return {n} images, one for each facet, ({channels}, H, W) in [0, 1]"
    try:
        found = [torch.as_tensor(image).detach().cpu().float() for image in images]
    except (TypeError, ValueError, RuntimeError) as error:
        raise FacetError(f"the method {wanted}, not {type(images).__name__}: {error}") from error
    if len(found) != n:
        raise FacetError(f"the method {wanted}, not {len(found)}")
    for k, image in enumerate(found):
        if image.ndim != 3 or len(image) != channels or not image.numel():
            raise FacetError(f"the method {wanted}; image {k} has the shape {tuple(image.shape)}")
        if not image.isfinite().all():
            raise FacetError(
                f"the method {wanted}; image {k} has {int((~image.isfinite()).sum())} values that aren't finite"
            )
        check_range(image, f"image {k} of the method")
    return [image.clamp(0, 1) for image in found]


def image_scores(
    scene: Scene, images: Sequence[Tensor], labels: NDArray[np.int64], *, has_facets: bool = True
) -> CellScores:
    """Return the scores of one image for each facet.

    Args:
        scene: the cell.
        images: (C, H, W) in [0, 1].
        labels: (n,) facet of each real image with which the images are compared; -1 for none.
        has_facets: whether the images are in the order of the facets; otherwise each judge assigns them.
    """
    judged = {}
    for name, judge in scene.judges.items():
        real = LabeledOutput(scene.real[name].images, labels)
        ordered = images if has_facets else matched(images, judge, real)
        scores = judge_scores(judge(ordered), real)
        judged[name] = {key: one.value for key in _JUDGED if (one := getattr(scores, key)) is not None}
    activations = collect(scene.model, scene.facets.unit, images, input_spec=scene.spec).activations
    return CellScores({**_means(judged), **_own(scene, images, activations)}, judged)


def real_scores(scene: Scene) -> CellScores:
    """Return the scores of the real images, each predicted by the mean of its facet's other images."""
    judged = {}
    for name, real in scene.real.items():
        kept = real.kept()
        found: dict[str, NDArray[Any]] = {"predicts": real_predicts(kept.images.codes, kept.labels)}
        if kept.images.top1 is not None and kept.images.probabilities is not None:
            found |= {"top1": kept.images.top1, "probability": kept.images.probabilities}
        judged[name] = {key: float(values.mean()) for key, values in found.items()}
    nearest = [image_at(scene.images, int(i)) for facet in scene.facets for i in facet.members[:_N_NEAREST]]
    return CellScores({**_means(judged), **_own(scene, nearest, scene.facets.activations)}, judged)


def _own(scene: Scene, images: Sequence[Tensor], activations: NDArray[np.float32]) -> dict[str, float]:
    """Return the scores without a judge; the activation is left out for a unit that is positive on no real image."""
    found, peak = {"high": fmean(map(high_share, images))}, scene.facets[0].peak
    return found | ({"activation": float(np.nanmean(activations)) / peak} if peak > 0 else {})


def matched(images: Sequence[Tensor], judge: Judge, real: LabeledOutput) -> list[Tensor]:
    """Return images of a unit in the order in which a judge finds them most similar to the facets, all together."""
    similar = confusion(judge(images).codes, real.kept().images.codes, real.kept().labels, centered=True)
    rows, facets = linear_sum_assignment(-similar)
    return [images[rows[k]] for k in np.argsort(facets)]


def high_share(image: Tensor) -> float:
    """Return the share of an image's energy, mean color excluded, above a quarter of the sampling frequency.

    The image is multiplied by a Hann window, since the step between opposite borders has energy at all frequencies. 0
    for an image of one color.
    """
    height, width = image.shape[1:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)
    centered = (image - (image * window).mean((1, 2), keepdim=True) / window.mean()) * window
    power = torch.fft.fft2(centered).abs().square().sum(0)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width))
    total = float(power.sum())
    return float(power[frequency > 0.25].sum()) / total if total > 0 else 0.0


def _means(judged: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the judges, of scores that all judges have."""
    rows = list(judged.values())
    return {key: fmean(row[key] for row in rows) for key in _JUDGED if all(key in row for row in rows)}
