"""The work on one unit: run the stages, evaluate the images."""

from captum_mfv.jobs.evaluation import evaluate
from captum_mfv.jobs.runner import Job, run

__all__ = ["Job", "evaluate", "run"]
