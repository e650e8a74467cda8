"""One self-contained page from a run's folder, or from several side by side."""

from captum_mfv.report.compare import compare
from captum_mfv.report.page import build

__all__ = ["build", "compare"]
