"""A judge's figures in words."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CONTROLS", "FIGURES", "REAL"]

FIGURES: Mapping[str, tuple[str, str]] = {
    "retention": ("Nearest to their own facet", "images whose nearest center of real images is their own facet's"),
    "centered": ("The same, without what they share", "what all images have in common taken away first"),
    "predicts": ("Sort the real images", "real images whose nearest synthesised image is their own facet's"),
    "top1": ("Called the class", "images of which the judge says that they are the unit's class"),
    "probability": ("Probability of the class", "what the judge gives it, on average"),
    "distance": ("Distance to real images", "1 is as near as real images are to each other"),
    "precision": ("Precision", "images in the neighborhood of a real image, its 3 nearest real images"),
    "covered": ("Covered real images", "real images with a synthesized image in their neighborhood"),
    "diversity": ("Diversity", "how much the images differ from each other: 1 \u2212 cosine"),
}
"""Title and meaning of each of `metrics.EvaluationScores`."""

CONTROLS: Mapping[str, str] = {"real image": "a real image", "start": "their start images"}
"""What the controls are that every judgement has; those that are drawn go by their own names."""

REAL: Mapping[str, str] = {"predicts": "real_predicts", "top1": "real_top1", "probability": "real_probability"}
"""Scores of all real images, by the score of synthesized images that they are compared with."""
