"""The work on one unit: `run`, `evaluate` and `label`, from Python and for the command; `label` takes an atlas too.

``inputs`` loads and checks the input that settings name, ``runner`` has the table of stages, and ``steps`` their work.
"""

from captum_mfv.jobs.evaluation import evaluate
from captum_mfv.jobs.labeling import label
from captum_mfv.jobs.runner import run
from captum_mfv.runs.settings import RunSettings

__all__ = ["RunSettings", "evaluate", "label", "run"]
