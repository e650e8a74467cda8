"""Is each facet real, does its image show it, and do its attributions say what drives it?"""

from captum_mfv.metrics.controls import CONTROLS, Control, draw_control, halved, shuffled
from captum_mfv.metrics.estimate import Estimate, estimate, estimate_ratio
from captum_mfv.metrics.faithfulness import Curve, Faithfulness, deletion_curve, faithfulness, insertion_curve
from captum_mfv.metrics.images import ImageScores, percentile, retention, score_images
from captum_mfv.metrics.judge import Judge, Judgement
from captum_mfv.metrics.judged import (
    Naturalness,
    confusion,
    diversity,
    naturalness,
    off_facet,
    predicts,
    real_off_facet,
    real_predicts,
    retained,
    same_over_seeds,
    spread,
)
from captum_mfv.metrics.units import Multifacetedness, coverage, multifacetedness
from captum_mfv.metrics.verdict import Judged, Scores, Verdict, judge_scores, verdict

__all__ = [
    "CONTROLS",
    "Control",
    "Curve",
    "Estimate",
    "Faithfulness",
    "ImageScores",
    "Judge",
    "Judged",
    "Judgement",
    "Multifacetedness",
    "Naturalness",
    "Scores",
    "Verdict",
    "confusion",
    "coverage",
    "deletion_curve",
    "diversity",
    "draw_control",
    "estimate",
    "estimate_ratio",
    "faithfulness",
    "halved",
    "insertion_curve",
    "judge_scores",
    "multifacetedness",
    "naturalness",
    "off_facet",
    "percentile",
    "predicts",
    "real_off_facet",
    "real_predicts",
    "retained",
    "retention",
    "same_over_seeds",
    "score_images",
    "shuffled",
    "spread",
    "verdict",
]
