"""A unit's activation and a code for every image of a dataset, collected in one pass."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.resolve import resolve
from captum_mfv.activations.scan import Outputs, Scan
from captum_mfv.activations.store import Store
from captum_mfv.errors import ImageError
from captum_mfv.images import Images, InputSpec, check_batch_size
from captum_mfv.storage.identity import code_fingerprint
from captum_mfv.units import Code, Unit

__all__ = ["CodeFn", "Collection", "collect"]


CodeFn: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Collection:
    """A unit's activation and a code for each image of a dataset; NaN for images that can't be read.

    Args:
        unit: the unit, its layer by name.
        code: the code, its layer by name.
        indices: (n,) indices of the images that could be read.
        activations: (n_images,) float32, the unit's activation.
        codes: (n_images, D) float32.
        fn_codes: (n_images, D') float32, outputs of ``code_fn``, or None.
    """

    unit: Unit
    code: Code
    indices: NDArray[np.int64]
    activations: NDArray[np.float32]
    codes: NDArray[np.float32]
    fn_codes: NDArray[np.float32] | None


def collect(
    model: nn.Module,
    unit: Unit | str,
    images: Images,
    *,
    code: Code | str | nn.Module | None = None,
    code_fn: CodeFn | None = None,
    input_spec: InputSpec | None = None,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    key: str | None = None,
    progress: bool = False,
) -> Collection:
    """Collect a unit's activation and a code for every image of a dataset in one pass.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: the unit, or ``"layer:index"``.
        images: a map-style dataset of images in [0, 1].
        code: which numbers describe an image: a `Code`, ``"layer"`` (averaged over positions) or ``"layer:reduce"``,
            or a module of the model. By default the last layer with positions before the unit, averaged.
        code_fn: another code: a function from images in [0, 1], (N, C, H, W), to (N, D').
        input_spec: preprocessing of the model's input.
        batch_size: images per batch; on a CPU, forward passes may take fewer.
        store: a folder for the rows, memory-mapped: memory stays bounded, and the same call resumes a pass that was
            stopped. By default rows are held in memory. Weights, unit, code, preprocessing and dataset must be the
            same; batch size and device may differ, which changes rows by rounding.
        key: a name for dataset and code function, changed whenever what they return changes. Needed with ``store`` if
            one of the two has no fingerprint: datasets other than `ImageFolder`, `TopImages`, tensors and arrays that
            don't declare a ``fingerprint``, and functions.
        progress: show a progress bar.

    Raises:
        TypeError: if the unit, the code or the batch size is of another type.
        ValueError: if the batch size is below 1.
        UnitError: if the unit or the code isn't in the model, or is ambiguous.
        ImageError: if no image can be read.
        RunError: if the store holds rows of another model, unit, code or dataset, or ``key`` is needed.
    """
    batch_size = check_batch_size(batch_size)
    spec = input_spec or InputSpec()
    unit, code = resolve(model, unit, code, spec)

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        rows = {"activations": unit.read(outputs[unit.layer_name]), "codes": code.read(outputs[code.layer])}
        return rows if code_fn is None else {**rows, "fn_codes": _codes(code_fn, batch.to(rows["codes"].device))}

    scan = Scan(model, images, spec, [unit.layer_name, code.layer], read, batch_size, key, progress)
    if store is None:  # hashing weights and datasets takes a while
        rows = Store(len(images), {})
    else:
        stored_fn = None if code_fn is None else code_fingerprint(code_fn, key)
        rows = Store(len(images), scan.identity(unit=unit, code=code, code_fn=stored_fn), store)
    _fill(rows, scan)
    fn_codes = rows["fn_codes"] if code_fn is not None else None
    indices = np.flatnonzero(rows["read"] == 1)
    return Collection(unit, code, indices, rows["activations"], rows["codes"], fn_codes)


def _fill(rows: Store, scan: Scan) -> None:
    """Write the rows that an earlier pass has not written."""
    if rows.n_done:
        rows.check(_arrays(scan.try_out()))
    done = rows.n_done
    # From the start of a batch, as floating-point sums depend on the batch composition
    start = done if done == len(scan.images) else done - done % scan.batch_size
    scan.run(lambda indices, found: rows.write(indices, _arrays(found)), start)
    if "read" not in rows:
        raise ImageError("no image can be read")
    rows.finish()


def _arrays(outputs: Outputs) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays, and as ``read`` a 1 for each image."""
    values = {name: _array(value) for name, value in outputs.items()}
    return {"read": np.ones(len(next(iter(values.values()))), np.int8), **values}


def _array(values: Tensor) -> NDArray[Any]:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def _codes(code_fn: CodeFn, batch: Tensor) -> Tensor:
    codes = code_fn(batch)
    if not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) != len(batch):
        found = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"a code function of {len(batch)} images must return ({len(batch)}, D), not {found}")
    return codes
