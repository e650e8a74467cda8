"""Names and meanings of the independent network's scores."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CONTROLS", "FIGURES", "REAL"]

FIGURES: Mapping[str, tuple[str, str]] = {
    "retention": (
        "Nearest to their own facet",
        "synthesized images whose nearest center of real images is their own facet's",
    ),
    "centered": ("Nearest, after centering", "the same, after the mean code of all images is subtracted"),
    "predicts": ("Classify real images", "real images whose nearest synthesized image is their own facet's"),
    "top1": ("Top-1 of the class", "images that the independent network classifies as the unit's class"),
    "probability": ("Probability of the class", "mean probability of the unit's class"),
    "distance": ("Distance to real images", "relative to the distance of real images from each other, which is 1"),
    "precision": ("Precision", "images in the neighborhood of a real image, its 3 nearest real images"),
    "covered": ("Covered real images", "real images with a synthesized image in their neighborhood"),
    "diversity": ("Diversity", "how much the images differ from each other: 1 \u2212 cosine"),
}
"""Title and meaning of each of `metrics.EvaluationScores`."""

CONTROLS: Mapping[str, str] = {"real image": "one real image per facet", "start": "start images"}
"""Controls that every evaluation has; rendered controls have their own names."""

REAL: Mapping[str, str] = {"predicts": "real_predicts", "top1": "real_top1", "probability": "real_probability"}
"""Scores of all real images, by the score of synthesized images that they are compared with."""
