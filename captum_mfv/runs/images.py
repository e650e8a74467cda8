"""The images that a run used: those of its facets, and the ones that activate a hidden unit most."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captum_mfv.activations.top_k import TopImages
from captum_mfv.errors import ImageError, RunError
from captum_mfv.images import ImageFolder, Images, InputSpec, read_image
from captum_mfv.storage.files import tensor_file
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import inside, is_file, is_folder, parse_json
from captum_mfv.units import Unit

__all__ = ["TOP_IMAGES", "MemberImages", "dump_top_images", "read_top_images", "why_not_read"]

TOP_IMAGES = ".top_images.safetensors"
"""File of the top images' numbers, kept so that updates don't scan the image folder again."""

_ARRAYS = ("indices", "activations", "corners")
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
        return self.read(self.members[index])

    @property
    def item_spec(self) -> InputSpec:
        """Preprocessing of the items; of crops, at the size of a crop."""
        left, _, right, _ = self.members[0].get("crop", (0, 0, self.input_spec.size, 0))
        return replace(self.input_spec, size=right - left)

    def read(self, member: Mapping[str, Any]) -> Tensor:
        """Return a member's preprocessed image, (C, H, W) in [0, 1], before normalization.

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
        return read_image(self.root / path, self.input_spec)[:, top:bottom, left:right].contiguous()


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


def dump_top_images(top: TopImages) -> bytes:
    """Return indices, activations, crop corners and the crops' preprocessing as a safetensors file."""
    arrays = {name: getattr(top, name) for name in _ARRAYS}
    return tensor_file(arrays, {"input_spec": json.dumps(asdict(top.input_spec))})


def read_top_images(folder: Path, unit: Unit, images: Images, spec: InputSpec) -> TopImages:
    """Read the top images of a run from the dataset that was scanned.

    Raises:
        RunError: if the file can't be read, or its numbers aren't of these images.
    """
    try:
        with safe_open(inside(folder, TOP_IMAGES), framework="numpy") as file:
            indices, activations, corners = (file.get_tensor(name) for name in _ARRAYS)
            crop = validate(InputSpec, parse_json((file.metadata() or {})["input_spec"]), "input_spec")
        _check(indices, activations, corners, len(images), crop.size, spec.size)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, ImageError) as error:
        raise RunError(f"{folder}: {TOP_IMAGES} can't be read: {error}") from error
    return TopImages(unit, images, indices, activations, corners, spec, crop, crop.size)


def _check(
    indices: NDArray[Any], activations: NDArray[Any], corners: NDArray[Any], n_images: int, crop: int, size: int
) -> None:
    n = len(indices) if indices.ndim else 0
    found = [f"{array.dtype} {array.shape}" for array in (indices, activations, corners)]
    if found != [f"int64 {(n,)}", f"float32 {(n,)}", f"int64 {(n, 2)}"]:
        raise ValueError("its arrays have other types or shapes")
    if ((indices < 0) | (indices >= n_images)).any() or not np.isfinite(activations).all():
        raise ValueError(f"its indices or activations aren't of {n_images} images")
    if not 1 <= crop <= size or ((corners < 0) | (corners > size - crop)).any():
        raise ValueError(f"its crops leave images of {size} pixels")
