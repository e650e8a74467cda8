"""One self-contained page from a run's folder."""

from captum_mfv.report.page import build

__all__ = ["build"]
