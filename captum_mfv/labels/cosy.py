"""Scores of a label by the unit's activations on images of the label: CoSy's AUC and mean activation difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_mfv.errors import LabelError
from captum_mfv.metrics.intervals import Estimate, estimate_auroc

__all__ = ["ConceptScores", "concept_scores"]


@dataclass(frozen=True)
class ConceptScores:
    """How much more a unit is active on images of a label than on other images.

    Args:
        auc: share of pairs, one image of the label and one control image, in which the image of the label has the
            larger activation, with an interval; .5: the label has no effect.
        difference: mean activation on images of the label minus that on control images, in standard deviations of the
            activation on control images; None if these are all equal.
    """

    auc: Estimate
    difference: float | None


def concept_scores(activations: NDArray[Any], control: NDArray[Any]) -> ConceptScores:
    """Return the scores of a label from a unit's activations on images of the label, (m,), and control images, (n,).

    Images of the label may be synthesized from the label, as CoSy does, or real ones; say which. They must not be
    images from which the label was derived.

    Raises:
        LabelError: if there is no activation on either side, or one is not finite.

    Source: Kopf et al. 2024, "CoSy: Evaluating textual explanations of neurons", arXiv 2405.20331.
    """
    shown, other = np.asarray(activations, np.float64), np.asarray(control, np.float64)
    if not (shown.size and other.size and np.isfinite(shown).all() and np.isfinite(other).all()):
        raise LabelError("concept scores need finite activations, at least one of the label and one control")
    spread = float(other.std())
    difference = float((shown.mean() - other.mean()) / spread) if spread > 0 else None
    return ConceptScores(estimate_auroc(shown, other), difference)
