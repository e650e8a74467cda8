"""Activations and codes of several units in one pass over the images that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from captum_mfv.activations.batching import Scan
from captum_mfv.activations.capture import Outputs
from captum_mfv.activations.codes import Collection
from captum_mfv.activations.top_k import TopImages
from captum_mfv.activations.top_values import read_units
from captum_mfv.images import Images, InputSpec, image_at
from captum_mfv.images.loading import KeptImages
from captum_mfv.units import Code, Unit

__all__ = ["collect_tops", "collect_units"]


def collect_units(
    model: nn.Module, units: Sequence[Unit], code: Code, images: Images, spec: InputSpec, batch_size: int = 32
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return the activations of units and the codes of images, in one pass.

    Returns:
        (n,) indices of the images that could be read; (N, n_units) activations and (N, D) codes, NaN for others.
    """
    activations, codes = np.full((len(images), len(units)), np.nan, np.float32), np.zeros((0, 0), np.float32)
    readable: list[int] = []

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        return {"activations": read_units(units, outputs, {})["activations"], "codes": code.read(outputs[code.layer])}

    def take(indices: list[int], rows: Outputs) -> None:
        nonlocal codes
        found = rows["codes"].float().cpu().numpy()
        if not codes.size:
            codes = np.full((len(images), found.shape[1]), np.nan, np.float32)
        readable.extend(indices)
        codes[indices] = found
        activations[indices] = rows["activations"].float().cpu().numpy()

    layers = list(dict.fromkeys([*(unit.layer_name for unit in units), code.layer]))
    Scan(model, images, spec, layers, read, batch_size, None, progress=False).run(take)
    return np.array(readable, np.int64), activations, codes


def collect_tops(
    model: nn.Module, tops: Sequence[TopImages], code: Code, batch_size: int = 32
) -> list[tuple[Collection, Images]]:
    """Return what `codes.collect` returns for each unit's top images, in one pass over their distinct crops.

    Beside each collection, the top images are returned as a dataset that does not decode their files again.

    Args:
        model: the model; unchanged afterwards.
        tops: top images of units of one layer in one dataset, with crops of one size.
        code: the code that describes a crop.
        batch_size: images in a forward pass at most.
    """
    places = np.concatenate([np.column_stack([top.indices, top.corners]) for top in tops])
    distinct, rows = np.unique(places, axis=0, return_inverse=True)  # in the order of the images
    images = KeptImages(_Crops(tops[0], distinct))
    units, spec = [top.unit for top in tops], tops[0].input_spec
    read, activations, codes = collect_units(model, units, code, images, spec, batch_size)
    found, first = [], 0
    for column, top in enumerate(tops):
        own = rows.ravel()[first : first + len(top)]
        first += len(top)
        readable = np.flatnonzero(np.isin(own, read))
        kept: Images = Subset(images, own.tolist())  # type: ignore[arg-type]
        found.append((Collection(top.unit, code, readable, activations[own, column], codes[own], None), kept))
    return found


@dataclass(frozen=True, eq=False)
class _Crops:
    """Dataset of crops, (n, 3) index, top and left, of a dataset; each image is read once for its successive crops."""

    top: TopImages
    places: NDArray[np.int64]
    _last: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Tensor:
        index, top, left = map(int, self.places[number])
        if index not in self._last:
            self._last.clear()
            image = image_at(self.top.images, index)[None]
            self._last[index] = self.top.image_spec.resize(image)[0]
        side = self.top.crop_size
        return self._last[index][:, top : top + side, left : left + side]
