"""The images of a dataset that activate units most."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.receptive_fields import Field, receptive_field
from captum_mfv.activations.resolve import resolve_units
from captum_mfv.activations.scan import Outputs, Scan
from captum_mfv.errors import ImageError, MFVWarning, UnitError
from captum_mfv.images import Images, InputSpec, check_batch_size, image_at
from captum_mfv.storage.identity import content_fingerprint, dataset_fingerprint, fingerprint
from captum_mfv.units import Unit, channels_second

__all__ = ["TopImages", "top_images"]


@dataclass(frozen=True, eq=False)
class TopImages:
    """The images that activate a unit most, strongest first; a dataset itself.

    Items are (C, H, W) in [0, 1]: of a channel that is read at its peak (``reduce="max"``), the crop that
    holds the peak's receptive field, at the scale of the model's input; else the whole image.

    Args:
        unit: the unit, its layer by name.
        images: the dataset that they are from.
        indices: (n,) where they stand in it.
        activations: (n,) float32, the unit's activation.
        corners: (n, 2) top and left pixel of the crop in the image as the model sees it.
        image_spec: what turns the dataset's images into the model's input.
        input_spec: the same for the crops; give it to what works on them.
    """

    unit: Unit
    images: Images
    indices: NDArray[np.int64]
    activations: NDArray[np.float32]
    corners: NDArray[np.int64]
    image_spec: InputSpec
    input_spec: InputSpec

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        image = self.image_spec.resize(image_at(self.images, int(self.indices[index]))[None])[0]
        (top, left), side = self.corners[index], self.input_spec.size
        return image[:, top : top + side, left : left + side]

    def fingerprint(self) -> str:
        """Return a fingerprint of the items: dataset, unit, indices and crops.

        Raises:
            RunError: if the dataset has no fingerprint.
        """
        return fingerprint(
            images=dataset_fingerprint(self.images),
            unit=self.unit,
            places=content_fingerprint(self.indices, self.corners),
            specs=(self.image_spec, self.input_spec),
        )

    @property
    def cropped(self) -> bool:
        """Whether items are crops."""
        return self.input_spec.size < self.image_spec.size

    @property
    def why_empty(self) -> str:
        """Error message for a dataset of no images."""
        return f"no image activates {self.unit} above zero: it is dead, or the dataset doesn't show what it looks for"


@overload
def top_images(  # type: ignore[overload-overlap]
    model: nn.Module,
    unit: Unit | str,
    images: Images,
    k: int = ...,
    *,
    input_spec: InputSpec | None = ...,
    batch_size: int = ...,
    store: str | os.PathLike[str] | None = ...,
    key: str | None = ...,
    progress: bool = ...,
) -> TopImages: ...


@overload
def top_images(
    model: nn.Module,
    unit: Sequence[Unit | str],
    images: Images,
    k: int = ...,
    *,
    input_spec: InputSpec | None = ...,
    batch_size: int = ...,
    store: str | os.PathLike[str] | None = ...,
    key: str | None = ...,
    progress: bool = ...,
) -> list[TopImages]: ...


def top_images(
    model: nn.Module,
    unit: Unit | str | Sequence[Unit | str],
    images: Images,
    k: int = 200,
    *,
    input_spec: InputSpec | None = None,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    key: str | None = None,
    progress: bool = False,
) -> TopImages | list[TopImages]:
    """The images of a dataset that activate a unit most, for one unit or many in one pass.

    Of a channel of a map, ``Unit(layer, index, "max")`` asks for its peaks: each image counts once, by its
    strongest position, and is cropped to what that position sees. Only images on which the activation is
    above zero count: a dead unit has none.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: a unit or a list of units, each a `Unit` or ``"layer:index"``.
        images: a map-style dataset of images in [0, 1].
        k: how many at most.
        input_spec: what turns images into the model's input.
        batch_size: images that are read ahead together, and in one forward pass at most: a CPU takes fewer at once.
        store: a folder for every image's activations, as in `collect`.
        key: a name for a dataset that has no fingerprint, as in `collect`.
        progress: show a progress bar.

    Returns:
        The top images of the unit; of several, a list in their order.

    Raises:
        UnitError: if a unit isn't in the model, or is ambiguous, or is finite on no image.
        ImageError: if no image can be read, or ``k`` is below 1.
        RunError: if the store holds rows of another model, units or dataset, or ``key`` is needed.

    Warns:
        MFVWarning: if a unit isn't finite on some images, which are left out.
    """
    if k < 1:
        raise ImageError(f"k must be at least 1 image, not {k}")
    spec = input_spec or InputSpec()
    check_batch_size(batch_size)
    units = resolve_units(model, unit if isinstance(unit, (list, tuple)) else [unit], spec)  # type: ignore[list-item]
    layers = list(dict.fromkeys(one.layer_name for one in units))

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        values, peaks = zip(*(_peak(one, outputs[one.layer_name]) for one in units), strict=True)
        return {"activations": torch.stack(values, 1), "peaks": torch.stack(peaks, 1)}

    rows = Scan(model, images, spec, batch_size, store, key, progress).rows(layers, read, {"units": units})
    _check_finite(units, rows["activations"][np.flatnonzero(rows["read"] == 1)])
    peaked = dict.fromkeys(one.layer_name for one in units if one.reduce == "max")
    fields = {name: receptive_field(model, name, spec) for name in peaked}
    found = [
        _top(one, images, rows["activations"][:, i], rows["peaks"][:, i], k, fields.get(one.layer_name), spec)
        for i, one in enumerate(units)
    ]
    return found if isinstance(unit, (list, tuple)) else found[0]


def _check_finite(units: Sequence[Unit], activations: NDArray[np.float32]) -> None:
    """Tell a unit that is broken from one that is dead."""
    n_images = len(activations)
    for unit, n_wrong in zip(units, (~np.isfinite(activations)).sum(0).tolist(), strict=True):
        if n_wrong == n_images:
            raise UnitError(f"{unit} isn't finite on any of {n_images} images; look for NaN in the weights")
        if n_wrong:
            message = f"{unit} isn't finite on {n_wrong} of {n_images} images; they are left out"
            warnings.warn(message, MFVWarning, stacklevel=3)


def _peak(unit: Unit, output: Tensor) -> tuple[Tensor, Tensor]:
    """A unit's activation, (N,), and row and column of its peak, (N, 2); -1 where it isn't read at a peak."""
    activations = unit.read(output)
    maps = channels_second(output, unit.channels)
    if unit.reduce != "max" or maps.ndim != 4:
        return activations, torch.full((len(output), 2), -1, device=output.device)
    peaks = unit.pick(maps).flatten(1).argmax(1)
    return activations, torch.stack([peaks // maps.shape[3], peaks % maps.shape[3]], 1)


def _top(
    unit: Unit,
    images: Images,
    activations: NDArray[np.float32],
    peaks: NDArray[np.int64],
    k: int,
    field: Field | None,
    spec: InputSpec,
) -> TopImages:
    strength = np.where(np.isfinite(activations), activations, -np.inf)
    order = np.argsort(-strength, kind="stable")[:k]
    order = order[strength[order] > 0]
    if field is None or (peaks[order] < 0).any():
        corners, crop = np.zeros((len(order), 2), np.int64), spec
    else:
        corners = np.array([field.corner(*map(int, peaks[i])) for i in order], np.int64).reshape(-1, 2)
        crop = replace(spec, size=field.crop_size)
    return TopImages(unit, images, order, np.asarray(activations[order]), corners, spec, crop)
