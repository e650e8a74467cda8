"""Self-contained pages of one run, or of several runs compared; `report.atlas` writes the page of an atlas."""

from captum_mfv.report.compare import compare
from captum_mfv.report.page import Parts, build, read_parts

__all__ = ["Parts", "build", "compare", "read_parts"]
