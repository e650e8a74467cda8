"""Is each facet real, does its image show it, and do its attributions say what drives it?"""

from captum_mfv.metrics.controls import halved, shuffled
from captum_mfv.metrics.estimate import Estimate, estimate
from captum_mfv.metrics.faithfulness import Curve, Faithfulness, deletion_curve, faithfulness, insertion_curve
from captum_mfv.metrics.images import ImageScores, percentile, retention, score_images
from captum_mfv.metrics.judge import Judge, Judgement, Verdict, verdict
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
from captum_mfv.metrics.units import Multifacetedness, coverage, multifacetedness

__all__ = [
    "Curve",
    "Estimate",
    "Faithfulness",
    "ImageScores",
    "Judge",
    "Judgement",
    "Multifacetedness",
    "Naturalness",
    "Verdict",
    "confusion",
    "coverage",
    "deletion_curve",
    "diversity",
    "estimate",
    "faithfulness",
    "halved",
    "insertion_curve",
    "multifacetedness",
    "naturalness",
    "percentile",
    "predicts",
    "real_predicts",
    "retained",
    "retention",
    "score_images",
    "separation_ratio",
    "shuffled",
    "verdict",
]
