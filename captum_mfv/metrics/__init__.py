"""Metrics of units, of facets' images and of attributions, with confidence intervals and controls."""

from captum_mfv.metrics.attribution import Curve, Faithfulness, deletion_curve, faithfulness, insertion_curve
from captum_mfv.metrics.comparison import Comparison, compare, holm
from captum_mfv.metrics.controls import CONTROLS, Control, draw_control, halved, shuffled
from captum_mfv.metrics.evaluation import (
    Evaluation,
    EvaluationScores,
    Judge,
    JudgeOutput,
    LabeledOutput,
    evaluate_images,
    judge_scores,
)
from captum_mfv.metrics.examples import clarity, polysemanticity, redundancy
from captum_mfv.metrics.intervals import Estimate, NullDistribution, estimate, estimate_auroc, estimate_ratio
from captum_mfv.metrics.patches import PatchSwap, patch_swap
from captum_mfv.metrics.paths import PathCheck, path_check
from captum_mfv.metrics.scores import (
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
from captum_mfv.metrics.two_choice import TwoChoice, two_choice
from captum_mfv.metrics.unit_scores import ImageScores, Multifacetedness, multifacetedness, percentile, score_images

__all__ = [
    "CONTROLS",
    "Comparison",
    "Control",
    "Curve",
    "Estimate",
    "Evaluation",
    "EvaluationScores",
    "Faithfulness",
    "ImageScores",
    "Judge",
    "JudgeOutput",
    "LabeledOutput",
    "Multifacetedness",
    "Naturalness",
    "NullDistribution",
    "PatchSwap",
    "PathCheck",
    "TwoChoice",
    "clarity",
    "compare",
    "confusion",
    "deletion_curve",
    "diversity",
    "draw_control",
    "estimate",
    "estimate_auroc",
    "estimate_ratio",
    "evaluate_images",
    "faithfulness",
    "halved",
    "holm",
    "insertion_curve",
    "judge_scores",
    "multifacetedness",
    "naturalness",
    "off_facet",
    "patch_swap",
    "path_check",
    "percentile",
    "polysemanticity",
    "predicts",
    "real_off_facet",
    "real_predicts",
    "redundancy",
    "retained",
    "same_over_seeds",
    "score_images",
    "shuffled",
    "spread",
    "two_choice",
]
