"""Names and formats of the files in a run's folder, and checked reads of them.

The output of a stage is a relative path, with ``*`` in the file's name; a folder, whose name has no dot; or a section
of ``metrics.json``: ``metrics.json#run`` is what `jobs.run` measures, ``metrics.json#judge`` what `jobs.evaluate` adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captum_mfv.errors import RunError
from captum_mfv.images import from_pil, open_image, to_pil
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import inside, read_json, within

__all__ = [
    "BASELINE",
    "control_path",
    "find_outputs",
    "image_path",
    "overlay_path",
    "own",
    "read_png",
    "read_record",
    "read_tensors",
    "to_png",
]

BASELINE = "images/plain.png"
"""The image of the whole unit, synthesized without facets."""


def image_path(index: int, suffix: str = "") -> str:
    """Return the relative path of a facet's image; with suffix ``_start``, of the image it started from."""
    return f"images/facet_{index:02d}{suffix}.png"


def overlay_path(index: int, member: int | None = None) -> str:
    """Return the relative path of the overlay of a facet's image, or of its member-th nearest member."""
    return f"attributions/facet_{index:02d}{'' if member is None else f'_member_{member}'}.png"


def control_path(name: str, file: str = "") -> str:
    """Return the relative path of a control's folder, or of one of its files."""
    return f"controls/{'-'.join(re.findall('[a-z]+', name))}/{file}"


def own(folder: Path, name: str, place: Callable[[Path, str], Path] = inside) -> Path:
    """Return the path of something in a run's folder; ``place`` is `inside` for files, `within` for folders too.

    Raises:
        RunError: if a link leads out of the folder, or ``name`` isn't what ``place`` allows.
    """
    try:
        return place(folder, name)
    except ValueError as error:
        raise RunError(f"{folder}: {error}") from error


def read_record(folder: Path, name: str, kind: Any) -> Any:
    """Read a JSON file of the folder, validated against a type; keys that the type lacks are left out.

    Raises:
        RunError: if the file can't be read or doesn't fit.
    """
    try:
        valid = validate(kind, read_json(inside(folder, name)))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: {name} can't be read: {error}") from error
    return TypeAdapter(kind).dump_python(valid, exclude_unset=True)


def read_tensors(folder: Path, prefix: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of ``tensors.safetensors`` whose names begin with a prefix, keyed by the rest of the name.

    Raises:
        RunError: if the file can't be read or has no such array.
    """
    try:
        with safe_open(inside(folder, "tensors.safetensors"), framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            found = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder}: tensors.safetensors can't be read: {error}") from error
    if not found:
        raise RunError(f"{folder}: tensors.safetensors holds no {prefix.rstrip('.')}; is the run finished?")
    return found


def read_png(folder: Path, name: str) -> Tensor:
    """Read a square PNG file of the folder as (C, H, W) in [0, 1].

    Raises:
        RunError: if the file can't be read or isn't square.
    """
    try:
        image = open_image(inside(folder, name), ("PNG",), gray=True)
    except ValueError as error:
        raise RunError(f"{folder / name} can't be read: {error}") from error
    if image.width != image.height:
        raise RunError(f"{folder / name} can't be read: it isn't square")
    return from_pil(image)


def to_png(image: Tensor) -> bytes:
    """Encode an image (C, H, W) in [0, 1] as PNG."""
    buffer = BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def find_outputs(folder: Path, outputs: Iterable[str]) -> list[Path]:
    """Return the existing files and folders of some outputs; sections of a file are checked and left out.

    Raises:
        RunError: if a link leads out of the folder. An output folder that is a link is returned itself.
    """
    found: list[Path] = []
    for output in outputs:
        name, _, section = output.partition("#")
        parent, _, pattern = name.rpartition("/")
        place = own(folder, parent or ".", within)
        if "." not in pattern:
            found.append(place / pattern)
            continue
        paths = [own(folder, path.relative_to(folder).as_posix()) for path in sorted(place.glob(pattern))]
        found += [] if section else paths
    return found
