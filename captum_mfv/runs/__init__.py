"""What a run keeps on disk: its settings, its folder, and the images of its facets."""

from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.member_images import MemberImages

__all__ = ["MemberImages", "RunFolder"]
