"""The images that activate the units of an atlas most, read again from the atlas's dataset, each of them once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import ConcatDataset

from captum_mfv.errors import ImageError, RunError
from captum_mfv.images import ImageArchives, ImageFolder, Images, InputSpec, image_at
from captum_mfv.jobs.atlas.plan import names_function, open_dataset, unit_key
from captum_mfv.runs.atlas import AtlasFolder, tensors_file
from captum_mfv.storage.identity import dataset_fingerprint, fingerprint
from captum_mfv.storage.untrusted import inside, is_file

__all__ = ["Crops", "read_crops"]


@dataclass(frozen=True, eq=False)
class Crops:
    """Dataset of the images of some units, each once: (C, side, side) parts of the images of a dataset.

    Args:
        images: the dataset that the atlas was made of.
        spec: preprocessing of its images.
        side: side of the items in pixels.
        places: (n, 3) index in the dataset, top and left pixel of each item.
        rows: the items of each unit by the unit's name, in the order of the unit's facet set.
    """

    images: Images
    spec: InputSpec
    side: int
    places: NDArray[np.int64]
    rows: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        place, top, left = self.places[index].tolist()
        image = self.spec.resize(image_at(self.images, place)[None])[0]
        return image[:, top : top + self.side, left : left + self.side]


def read_crops(folder: AtlasFolder, images: Images | None = None) -> list[Crops]:
    """Return the images of all units of an atlas, those of one size together.

    Args:
        folder: the atlas.
        images: the dataset that the atlas was made of; by default the one that the manifest names.

    Raises:
        ImageError: if the dataset is missing or isn't the atlas's, or a function returns it, which the manifest names
            and which is never run.
        RunError: if the atlas's files can't be read.
    """
    dataset, firsts = _open(folder, images)
    found: dict[int, dict[str, NDArray[np.int64]]] = {}
    crops = {row["unit"]: member.get("crop") for row in folder.facets for member in row["members"][:1]}
    for row in folder.units:
        if row["status"] == "done":
            left, _, right, _ = crops.get(row["unit"]) or (0, 0, folder.input_spec.size, 0)
            places = _places(folder, row, right - left, firsts.get(row["unit"]), len(dataset))
            found.setdefault(right - left, {})[row["unit"]] = places
    return [_once(dataset, folder.input_spec, side, places) for side, places in found.items()]


def _once(images: Images, spec: InputSpec, side: int, places: Mapping[str, NDArray[np.int64]]) -> Crops:
    """Return the crops of some units, equal ones once."""
    different, rows = np.unique(np.concatenate(list(places.values())), axis=0, return_inverse=True)
    ends = np.cumsum([len(its) for its in places.values()])[:-1]
    of_units = np.split(rows.reshape(-1).astype(np.int64), ends)
    return Crops(images, spec, side, different, dict(zip(places, of_units, strict=True)))


def _places(
    folder: AtlasFolder, row: Mapping[str, Any], side: int, first: int | None, n_images: int
) -> NDArray[np.int64]:
    """Return index, top and left of each image of a unit, (n, 3); ``first`` is the first index of its class folder."""
    name, size = tensors_file(row["unit"]), folder.input_spec.size
    try:
        with safe_open(inside(folder.path, name), framework="numpy") as file:
            n = len(file.get_tensor("labels"))
            if first is None:
                indices, corners = file.get_tensor("indices"), file.get_tensor("corners")
            else:
                indices, corners = first + np.arange(n), np.zeros((n, 2), np.int64)
        if indices.shape != (n,) or corners.shape != (n, 2) or not indices.dtype.kind == corners.dtype.kind == "i":
            raise ValueError("its indices or corners aren't those of its labels")
        if not 1 <= side <= size or (corners < 0).any() or (corners > size - side).any():
            raise ValueError(f"its crops leave images of {size} pixels")
        if (indices < 0).any() or (indices >= n_images).any():
            raise ValueError(f"its indices aren't of {n_images} images")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder.path / name} can't be read: {error}") from error
    return np.column_stack([indices, corners]).astype(np.int64)


def _open(folder: AtlasFolder, images: Images | None) -> tuple[Images, dict[str, int]]:
    """Return the dataset of an atlas, and with images by class the index of each unit's first image."""
    settings = folder.manifest["settings"]
    if settings.get("images") is None:
        if images is not None:
            raise ImageError("images can't be given for an atlas of class folders; put the folders back")
        return _open_classes(folder)
    name = str(settings["images"] if images is None else getattr(images, "root", "the dataset"))
    if images is None:
        if names_function(name):
            raise ImageError(
                f"{name} returns the atlas's images, but code that a manifest names is never run; give images"
            )
        _check_members(folder, name)
        images = open_dataset(name)
    if isinstance(images, (ImageFolder, ImageArchives)):
        images = type(images)(images.root, folder.input_spec, images.listing)
    if dataset_fingerprint(images) != settings.get("images_hash"):
        raise ImageError(f"{name} isn't the dataset of {folder.path}: names or sizes of its files differ")
    return images, {}


def _open_classes(folder: AtlasFolder) -> tuple[Images, dict[str, int]]:
    """Return the images of all classes as one dataset, and the index of each unit's first image."""
    settings = {**folder.manifest["settings"], "images_hash": None}
    shared = fingerprint(
        **{name: value for name, value in settings.items() if name not in ("units", "units_hash", "batch")}
    )
    root = str(settings.get("class_folders"))
    _check_members(folder, root)
    first = {row["unit"]: member["path"] for row in folder.facets for member in row["members"][:1]}
    folders = dict[str, ImageFolder]()
    for unit, path in first.items():
        place = Path(root, path.partition("/")[0])
        folders[unit] = ImageFolder(place, folder.input_spec)
        if unit_key(shared, folder.read_facets(unit).unit, folders[unit].fingerprint) != folder.read_key(unit):
            raise ImageError(f"{place} isn't the folder of the images of {unit}: names or sizes of its files differ")
    firsts = np.cumsum([0, *map(len, folders.values())]).tolist()
    return ConcatDataset(list(folders.values())), dict(zip(folders, firsts, strict=False))  # type: ignore[arg-type]


def _check_members(folder: AtlasFolder, root: str) -> None:
    """Raise ImageError unless the facets' first members exist, before a folder that anyone may have named is listed."""
    names = {member["path"] for row in folder.facets for member in row["members"][:1]}
    paths = {PurePosixPath(re.sub(r"\.tar/.*", ".tar", name, count=1, flags=re.DOTALL)) for name in names}
    if any(path.is_absolute() or ".." in path.parts or not _is_there(Path(root), path) for path in paths):
        raise ImageError(f"{root} isn't the atlas's folder of images, or files are gone; put them back, or give images")


def _is_there(root: Path, path: PurePosixPath) -> bool:
    """Return whether a file is in a folder, or is the archive that is named instead of a folder."""
    return is_file(root / path) or (is_file(root) and root.name == str(path))
