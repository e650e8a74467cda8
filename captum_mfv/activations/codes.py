"""Collect a unit's activation and a code for every image of a dataset in one pass."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.resolve import resolve
from captum_mfv.activations.scan import Outputs, Scan
from captum_mfv.images import Images, InputSpec, check_batch_size
from captum_mfv.storage.identity import code_fingerprint
from captum_mfv.units import Code, Unit

__all__ = ["Collection", "View", "collect"]


View: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Collection:
    """What a unit and a code layer say of each image of a dataset; NaN where it can't be read.

    Args:
        unit: the unit, its layer by name.
        code: the code, its layer by name.
        indices: (n,) where the images that could be read stand in the dataset.
        activations: (n_images,) float32, the unit's activation.
        codes: (n_images, D) float32.
        views: (n_images, D') float32, what a function of the caller's says of each image, or None.
    """

    unit: Unit
    code: Code
    indices: NDArray[np.int64]
    activations: NDArray[np.float32]
    codes: NDArray[np.float32]
    views: NDArray[np.float32] | None


def collect(
    model: nn.Module,
    unit: Unit | str,
    images: Images,
    *,
    code: Code | str | nn.Module | None = None,
    view: View | None = None,
    input_spec: InputSpec | None = None,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    key: str | None = None,
    progress: bool = False,
) -> Collection:
    """A unit's activation and a code for every image of a dataset, in one pass.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: the unit, or ``"layer:index"``.
        images: a map-style dataset of images in [0, 1].
        code: which numbers describe an image: a `Code`, ``"layer"`` (averaged over positions) or ``"layer:reduce"``,
            or a module of the model. By default the last layer with positions before the unit, averaged.
        view: another description of images: a function from (N, C, H, W) in [0, 1] to (N, D').
        input_spec: what turns images into the model's input.
        batch_size: images that are read ahead together, and in one forward pass at most: a CPU takes fewer at once.
        store: a folder for the rows, memory-mapped: memory stays bounded, and the same call resumes a pass that was
            stopped. By default rows are held in memory. Weights, unit, code, preprocessing and dataset must be the
            same; batch size and device may differ, which changes rows by rounding.
        key: a name for dataset and code function, changed whenever what they return changes. Needed with ``store`` if
            one of the two has no fingerprint: datasets other than `ImageFolder`, `TopImages`, tensors and arrays that
            don't declare a ``fingerprint``, and functions.
        progress: show a progress bar.

    Raises:
        UnitError: if the unit or the code isn't in the model, or is ambiguous.
        ImageError: if no image can be read.
        RunError: if the store holds rows of another model, unit, code or dataset, or ``key`` is needed.
    """
    check_batch_size(batch_size)
    spec = input_spec or InputSpec()
    unit, code = resolve(model, unit, code, spec)

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        rows = {"activations": unit.read(outputs[unit.layer_name]), "codes": code.read(outputs[code.layer])}
        return rows if view is None else {**rows, "views": _view(view, batch.to(rows["codes"].device))}

    stored_code = None if view is None or store is None else code_fingerprint(view, key)
    scan = Scan(model, images, spec, batch_size, store, key, progress)
    parts = {"unit": unit, "code": code, "code function": stored_code}
    rows = scan.rows([unit.layer_name, code.layer], read, parts)
    indices = np.flatnonzero(rows["read"] == 1)
    views = rows["views"] if view is not None else None
    return Collection(unit, code, indices, rows["activations"], rows["codes"], views)


def _view(view: View, batch: Tensor) -> Tensor:
    codes = view(batch)
    if not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) != len(batch):
        found = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"a function that describes {len(batch)} images must return ({len(batch)}, D), not {found}")
    return codes
