"""The images of a run's facets, read from the run's image folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captum_mfv.errors import ImageError
from captum_mfv.images import ImageFolder, InputSpec, from_pil, read_image, to_pil
from captum_mfv.storage.untrusted import (
    is_file,
    is_folder,
)

__all__ = ["MemberImages", "why_not_read"]


_TRIED = 100  # members that must exist before the folder is listed


@dataclass(frozen=True, eq=False)
class MemberImages:
    """A run's images as a dataset, facet by facet: (C, H, W) in [0, 1], crops where the run worked on crops.

    Args:
        root: the run's image folder.
        members: the ``members`` rows of ``facets.json``; ``path`` and ``crop`` are used.
        labels: (n,) the facet of each member.
        input_spec: preprocessing of the model's input.
        refused: why no file of the image folder is read; None: the folder is the run's.
    """

    root: Path
    members: tuple[Mapping[str, Any], ...]
    labels: NDArray[np.int64]
    input_spec: InputSpec
    refused: str | None = None

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Tensor:
        return from_pil(self.picture(self.members[index]))

    @property
    def item_spec(self) -> InputSpec:
        """Preprocessing of the items; of crops, at the size of a crop."""
        left, _, right, _ = self.members[0].get("crop", (0, 0, self.input_spec.size, 0))
        return replace(self.input_spec, size=right - left)

    def picture(self, member: Mapping[str, Any]) -> Image.Image:
        """Return a member's preprocessed image before normalization.

        Raises:
            ImageError: if the file can't be read, the path leads out of the image folder, or the folder isn't the
                run's.
        """
        if self.refused is not None:
            raise ImageError(self.refused)
        path, size = PurePosixPath(member["path"]), self.input_spec.size
        left, top, right, bottom = member.get("crop", (0, 0, size, size))
        if _leads_out(path):
            raise ImageError(f"{member['path']!r} leads out of the run's image folder")
        if not (0 <= left < right <= size and 0 <= top < bottom <= size):
            raise ImageError(f"the crop of {member['path']!r} leaves the image")
        return to_pil(read_image(self.root / path, self.input_spec)).crop((left, top, right, bottom))


def _leads_out(path: PurePosixPath) -> bool:
    return path.is_absolute() or ".." in path.parts


def why_not_read(root: Path, members: Sequence[Mapping[str, Any]], images_hash: str | None) -> str | None:
    """Return why an image folder isn't the run's, or None; the folder is listed only if it has the first members."""
    if not is_folder(root):
        return f"the run's images are gone: {root} isn't a folder; put it back"
    paths = [PurePosixPath(member["path"]) for member in members[:_TRIED]]
    there = all(not _leads_out(path) and is_file(root / path) for path in paths)
    if not there or ImageFolder(root).files_fingerprint != images_hash:
        return f"{root} isn't the run's folder of images: names or sizes of its files differ; put the run's back"
    return None
