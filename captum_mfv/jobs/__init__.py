"""The work on one unit: `run` and `evaluate`, from Python and for the command.

``inputs`` loads and checks what a `Job` names, ``stages`` is the table of a run's stages, and ``steps`` their work.
"""

from captum_mfv.jobs.evaluation import evaluate
from captum_mfv.jobs.job import Job
from captum_mfv.jobs.runner import run

__all__ = ["Job", "evaluate", "run"]
