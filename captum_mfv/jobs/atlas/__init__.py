"""The atlas: the facets of many units, in one process, in several, or on a cluster.

``plan`` loads what the settings name, ``scan`` finds the strongest images, ``unit`` does the work on a group of units
and returns ``results``, ``engines`` runs both elsewhere, ``coordinator`` stores the results, and ``estimate`` measures
what all will take.
"""

from captum_mfv.jobs.atlas.coordinator import run
from captum_mfv.jobs.atlas.estimate import Estimate, estimate
from captum_mfv.runs.settings import AtlasSettings

__all__ = ["AtlasSettings", "Estimate", "estimate", "run"]
