"""The images that activate a run's unit most, kept in the run's folder so that updates don't scan again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from captum_mfv.activations.top_k import TopImages
from captum_mfv.errors import ImageError, RunError
from captum_mfv.images import Images, InputSpec
from captum_mfv.runs.records import Spec
from captum_mfv.storage.files import tensor_file
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import inside, parse_json
from captum_mfv.units import Unit

__all__ = ["TOP_IMAGES", "dump_top_images", "read_top_images"]

TOP_IMAGES = ".top_images.safetensors"
_ARRAYS = ("indices", "activations", "corners")


def dump_top_images(top: TopImages) -> bytes:
    """Return indices, activations, crop corners and the crops' preprocessing as a safetensors file."""
    arrays = {name: getattr(top, name) for name in _ARRAYS}
    return tensor_file(arrays, {"input_spec": json.dumps(asdict(top.input_spec))})


def read_top_images(folder: Path, unit: Unit, images: Images, spec: InputSpec) -> TopImages:
    """Read the top images of a run.

    Args:
        folder: the run's folder.
        unit: the unit.
        images: the dataset that was scanned.
        spec: preprocessing of the model's input.

    Raises:
        RunError: if the file can't be read, or its numbers aren't of these images.
    """
    try:
        with safe_open(inside(folder, TOP_IMAGES), framework="numpy") as file:
            indices, activations, corners = (file.get_tensor(name) for name in _ARRAYS)
            spec_data = validate(Spec, parse_json((file.metadata() or {})["input_spec"]), "input_spec")
        crop = InputSpec(**spec_data.model_dump())
        _check(indices, activations, corners, len(images), crop.size, spec.size)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, ImageError) as error:
        raise RunError(f"{folder}: {TOP_IMAGES} can't be read: {error}") from error
    return TopImages(unit, images, indices, activations, corners, spec, crop)


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
