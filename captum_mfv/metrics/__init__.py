"""Is each facet real, does its image show it, and do its attributions say what drives it?"""

from captum_mfv.metrics.faithfulness import Curve, Faithfulness, deletion_curve, faithfulness, insertion_curve
from captum_mfv.metrics.images import ImageScores, percentile, retention, score_images
from captum_mfv.metrics.units import Multifacetedness, coverage, multifacetedness

__all__ = [
    "Curve",
    "Faithfulness",
    "ImageScores",
    "Multifacetedness",
    "coverage",
    "deletion_curve",
    "faithfulness",
    "insertion_curve",
    "multifacetedness",
    "percentile",
    "retention",
    "score_images",
]
