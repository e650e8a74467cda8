"""A run on disk: its settings, manifest and folder, and the images of its facets.

`RunFolder` reads a run, `RunWriter` fills it; both use the names and formats in ``files`` and ``manifest``.
"""

from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.member_images import MemberImages

__all__ = ["MemberImages", "RunFolder"]
