"""The images of a dataset with the largest activations of a unit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Unpack

from captum_mfv.activations.batching import Scan
from captum_mfv.activations.capture import Outputs
from captum_mfv.activations.layers import PatchGrid, patch_grid, resolve_units
from captum_mfv.activations.receptive_fields import Axis, Field, receptive_field
from captum_mfv.activations.top_values import TopValues, read_units
from captum_mfv.errors import ImageError, MFVWarning, RunError, UnitError
from captum_mfv.images import Images, InputSpec, image_at
from captum_mfv.storage.files import Checkpoint
from captum_mfv.storage.identity import content_fingerprint, dataset_fingerprint, fingerprint
from captum_mfv.storage.schema import check_integer
from captum_mfv.units import Unit

__all__ = ["TopImages", "check_finite", "crop_top_images", "patch_grids", "top_images"]

_SECONDS = 5.0  # between two saves, the most that an interruption loses


@dataclass(frozen=True, eq=False)
class TopImages:
    """Dataset of the images with a unit's largest activations, in descending order.

    Items are (C, H, W) in [0, 1]: complete images, or if ``reduce="max"`` reads a channel of a map, crops that contain
    the maximum's receptive field, at the scale of the model's input; of tokens, crops around the patch if asked for.

    Args:
        unit: the unit, its layer by name.
        images: the dataset that was scanned.
        indices: (n,) indices in that dataset.
        activations: (n,) float32, the unit's activations.
        corners: (n, 2) top and left pixel of each crop in the model's input.
        image_spec: preprocessing of the dataset's images.
        input_spec: preprocessing of the items, for functions that use the items; crops of tokens are enlarged.
        crop_size: side of the items in pixels.
    """

    unit: Unit
    images: Images
    indices: NDArray[np.int64]
    activations: NDArray[np.float32]
    corners: NDArray[np.int64]
    image_spec: InputSpec
    input_spec: InputSpec
    crop_size: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        image = self.image_spec.resize(image_at(self.images, int(self.indices[index]))[None])[0]
        (top, left), side = self.corners[index], self.crop_size
        return image[:, top : top + side, left : left + side]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the items: dataset, unit, indices and crops; RunError if the dataset has none."""
        return fingerprint(
            images=dataset_fingerprint(self.images),
            unit=self.unit,
            places=content_fingerprint(self.indices, self.corners),
            specs=(self.image_spec, self.input_spec, self.crop_size),
        )

    @property
    def cropped(self) -> bool:
        """Whether items are crops."""
        return self.crop_size < self.image_spec.size

    @property
    def why_empty(self) -> str:
        """Error message if there are no images."""
        return f"no image activates {self.unit} above zero: the unit is dead, or the dataset lacks its features"


class _Options(TypedDict, total=False):
    margin: int | None
    input_spec: InputSpec | None
    batch_size: int
    store: str | os.PathLike[str] | None
    key: str | None
    progress: bool


@overload
def top_images(  # type: ignore[overload-overlap]
    model: nn.Module, unit: Unit | str, images: Images, k: int = ..., **options: Unpack[_Options]
) -> TopImages: ...


@overload
def top_images(
    model: nn.Module, unit: Sequence[Unit | str], images: Images, k: int = ..., **options: Unpack[_Options]
) -> list[TopImages]: ...


def top_images(
    model: nn.Module,
    unit: Unit | str | Sequence[Unit | str],
    images: Images,
    k: int = 200,
    *,
    margin: int | None = None,
    input_spec: InputSpec | None = None,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    key: str | None = None,
    progress: bool = False,
) -> TopImages | list[TopImages]:
    """Find the images of a dataset with the largest activations of one unit, or of many in one pass.

    For a channel of a map, ``Unit(layer, index, "max")`` reads the maximum over positions; the image is cropped to that
    position's receptive field. Only activations above zero count, so that a dead unit has no top images. The result
    depends on the batch size and on other units by rounding only. Memory is units x k numbers.

    Other arguments and errors are those of `collect`.

    Args:
        unit: a unit or a list of units, each a `Unit` or ``"layer:index"``.
        k: number of images per unit at most.
        margin: for tokens read by ``max``: crop each image to the most active patch and this many patches on each side;
            class and register tokens have no patch. The crops' ``input_spec`` enlarges them to the model's input
            size. By default images are complete.
        store: a folder for the k largest activations so far, from which the same call resumes a stopped scan.

    Returns:
        The top images of the unit; for a list, those of each unit.

    Raises:
        UnitError: if a unit isn't in the model, is ambiguous, or is finite on no image; with ``margin``, if no unit
            reads tokens by ``max``, or the positions of the patches are unknown.
        ImageError: if no image can be read, or ``k`` is below 1.

    Warns:
        MFVWarning: if a unit isn't finite on some images, which are left out.
    """
    k = check_integer(k, "k", 1, ImageError)
    batch_size, spec = check_integer(batch_size, "batch_size", 1), input_spec or InputSpec()
    units = resolve_units(model, unit if isinstance(unit, (list, tuple)) else [unit], spec)  # type: ignore[list-item]
    if not units:
        raise UnitError("unit must be a unit or a list of at least one, not an empty list")
    grids = {} if margin is None else patch_grids(model, units, spec)
    margin = 0 if margin is None else check_integer(margin, "margin", 0, UnitError)
    layers = list(dict.fromkeys(one.layer_name for one in units))
    scan = Scan(model, images, spec, layers, lambda out, _: read_units(units, out, grids), batch_size, key, progress)
    top = TopValues(len(units), min(k, len(images)))
    parts = {} if store is None else scan.identity(units=units, k=k, patches=bool(grids))
    _fill(top, scan, None if store is None else _checkpoint(store, parts))
    check_finite(units, top)
    found = crop_top_images(model, units, images, top, spec, grids, margin)
    return found if isinstance(unit, (list, tuple)) else found[0]


def crop_top_images(
    model: nn.Module,
    units: Sequence[Unit],
    images: Images,
    top: TopValues,
    spec: InputSpec,
    grids: Mapping[str, PatchGrid] | None = None,
    margin: int = 0,
) -> list[TopImages]:
    """Return the top images of units whose largest values a scan has found; of maps' maxima, as crops."""
    grids = grids or {}
    peaked = dict.fromkeys(one.layer_name for one in units if one.reduce == "max")
    fields = {name: receptive_field(model, name, spec) for name in peaked if name not in grids}
    fields |= {name: _patch_field(grid, margin, spec.size) for name, grid in grids.items()}
    values, indices, peaks = (found.cpu().numpy() for found in (top.values, top.indices, top.peaks))
    found = []
    for one, strength, places, rows in zip(units, values, peaks, indices, strict=True):
        n_active = np.isfinite(strength).sum()
        corners, crop_size = _crops(places[:n_active], fields.get(one.layer_name), spec.size)
        item_spec = spec if one.layer_name in grids else replace(spec, size=crop_size)
        found.append(TopImages(one, images, rows[:n_active], strength[:n_active], corners, spec, item_spec, crop_size))
    return found


def _checkpoint(store: str | os.PathLike[str], parts: dict[str, Any]) -> Checkpoint:
    if Path(store).exists() and not Path(store).is_dir():
        raise RunError(f"{os.fspath(store)} isn't a folder; choose another store")
    return Checkpoint(Path(store, "top.safetensors"), parts, what="pass", seconds=_SECONDS)


def _fill(top: TopValues, scan: Scan, checkpoint: Checkpoint | None) -> None:
    """Scan the images that an earlier call has not scanned."""
    n_images, state = len(scan.images), None if checkpoint is None else checkpoint.load()
    if checkpoint is not None and state is not None:
        with checkpoint.reading():
            top.load(state)
            if not 0 <= int(top.n_done) <= n_images or (top.indices >= n_images).any():
                raise ValueError(f"it is of another number of images than {n_images}")
    start = int(top.n_done)

    def take(indices: list[int], rows: Outputs) -> None:
        top.add(indices, **rows)
        n_batches = (indices[-1] - start) // scan.batch_size + 1
        top.n_done = torch.tensor(min(start + n_batches * scan.batch_size, n_images))
        if checkpoint is not None and checkpoint.due:
            checkpoint.save(top.state())

    scan.run(take, start)
    if not top.n_read:
        raise ImageError("no image can be read")
    if checkpoint is not None and start < n_images:
        top.n_done = torch.tensor(n_images)
        checkpoint.save(top.state())


def check_finite(units: Sequence[Unit], top: TopValues) -> None:
    """Raise UnitError for a unit that is finite on no image; warn of one that isn't finite on some."""
    n_images = int(top.n_read)
    for unit, n_wrong in zip(units, top.n_not_finite.tolist(), strict=True):
        if n_wrong == n_images:
            raise UnitError(f"{unit} isn't finite on any of {n_images} images; look for NaN in the weights")
        if n_wrong:
            message = f"{unit} isn't finite on {n_wrong} of {n_images} images; they are left out"
            warnings.warn(message, MFVWarning, stacklevel=3)


def _crops(peaks: NDArray[np.int64], field: Field | None, size: int) -> tuple[NDArray[np.int64], int]:
    """Return the corners, (n, 2), and the side of the crops that hold the peaks' fields, of images of a size."""
    if field is None or (peaks < 0).any():
        return np.zeros((len(peaks), 2), np.int64), size
    corners = np.array([field.corner(*map(int, peak)) for peak in peaks], np.int64).reshape(-1, 2)
    return corners, field.crop_size


def patch_grids(model: nn.Module, units: Sequence[Unit], spec: InputSpec) -> dict[str, PatchGrid]:
    """Return where the patches are in each layer whose tokens a unit reads by ``max``; UnitError if there is none."""
    layers = {unit.layer_name: unit for unit in units if unit.reduce == "max"}
    grids = {name: grid for name, unit in layers.items() if (grid := patch_grid(model, unit, spec))}
    if not grids:
        raise UnitError("margin is for units that read tokens by reduce='max'; maps are cropped without it")
    return grids


def _patch_field(grid: PatchGrid, margin: int, size: int) -> Field | None:
    """Return a patch and a margin of patches as a field; None if it isn't smaller than the image."""
    sides = [size // n for n in (grid.rows, grid.columns)]
    vertical, horizontal = (Axis((2 * margin + 1) * side, side, -margin * side) for side in sides)
    return Field(vertical, horizontal, size) if max(vertical.size, horizontal.size) < size else None
