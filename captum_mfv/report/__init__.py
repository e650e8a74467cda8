"""One self-contained page from a run's folder, or from several side by side."""

from captum_mfv.report.compare import compare
from captum_mfv.report.page import build
from captum_mfv.report.parts import Parts, read_parts

__all__ = ["Parts", "build", "compare", "read_parts"]
