"""Results of a unit as they are stored: rows of the tables, and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captum_mfv.activations.top_k import TopImages
from captum_mfv.errors import MFVError
from captum_mfv.facets.excess import Excess
from captum_mfv.facets.facet_set import Facet, FacetSet, nearest
from captum_mfv.images import Images, InputSpec, image_at, to_pil
from captum_mfv.jobs.atlas.plan import Plan
from captum_mfv.metrics import Multifacetedness, multifacetedness, percentile
from captum_mfv.optvis.render import Rendering
from captum_mfv.runs.atlas import MEMBERS, SHEET, array_file, image_file, members_file, tensors_file, unit_name
from captum_mfv.storage.files import tensor_file

__all__ = ["FoundUnit", "UnitResult", "dead_unit", "done_unit", "failed_unit"]


@dataclass(frozen=True)
class UnitResult:
    """Results of one unit as they are stored.

    Args:
        position: the unit's place among the atlas's units.
        row: the unit's row of ``units.json``.
        facets: its rows of ``facets.json``.
        files: content by path in the atlas's folder.
        timings: seconds of each part of the work, the unit's share.
        warnings: problems that did not stop the work.
    """

    position: int
    row: dict[str, Any]
    facets: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FoundUnit:
    """A unit, its images and where they are read, their preprocessing, its facets, and its codes' excess if known."""

    position: int
    images: Images
    items: Images  # those of images, some from memory
    spec: InputSpec
    facets: FacetSet
    excess: Excess | None = None


def failed_unit(plan: Plan, position: int, error: Exception) -> UnitResult:
    """Return the result of a unit whose work raised an error."""
    reason = str(error) if isinstance(error, MFVError) else f"{type(error).__name__}: {error}"
    return UnitResult(position, {**_head(plan, position), "status": "failed", "error": reason})


def dead_unit(plan: Plan, position: int) -> UnitResult:
    """Return the result of a unit that no image activates above zero."""
    return UnitResult(position, {**_head(plan, position), "status": "dead"})


def done_unit(
    plan: Plan,
    found: FoundUnit,
    renderings: Sequence[Rendering],
    activations: NDArray[np.float32],
    codes: NDArray[np.float32],
) -> UnitResult:
    """Return the result of a unit with facets.

    Args:
        plan: the atlas's plan.
        found: the unit.
        renderings: the synthesized image of each facet.
        activations, codes: (n_facets,) and (n_facets, D), the unit's activations and the codes of these images.
    """
    facets, head = found.facets, _head(plan, found.position)
    measured = multifacetedness(facets) if found.excess is None else Multifacetedness.of(facets, found.excess)
    retained = nearest(codes, facets.centers) == np.arange(len(facets))
    files = {tensors_file(head["unit"]): _tensors(found, renderings)}
    for facet, rendering in zip(facets, renderings, strict=True):
        files |= _facet_files(head["unit"], found, facet, rendering)
    row = {
        **head,
        "status": "done",
        "n_images": int(np.isfinite(facets.activations).sum()),
        "peak": facets[0].peak,
        "multifacetedness": measured.score,
        "p_value": measured.p_value,
        "n_facets": len(facets),
        "coverage": measured.coverage,
        "retention": float(retained.mean()),
        "label": None,
    }
    scores = zip(facets, activations.tolist(), retained.tolist(), strict=True)
    return UnitResult(found.position, row, [_facet_row(plan, found, *one) for one in scores], files)


def _head(plan: Plan, position: int) -> dict[str, Any]:
    """Return the first entries of a unit's row."""
    unit = plan.units[position]
    index = unit.index if isinstance(unit.index, int) else unit_name(unit).rpartition(":")[2]
    return {"unit": unit_name(unit), "layer": unit.layer_name, "index": index}


def _facet_row(plan: Plan, found: FoundUnit, facet: Facet, activation: float, retained: bool) -> dict[str, Any]:
    """Return a facet's row, with the unit's activation on its image and whether the image is nearest to the facet."""
    name = unit_name(plan.units[found.position])
    return {
        "unit": name,
        "index": facet.index,
        "size": len(facet),
        "activation": float(facet.activations.mean()),
        "stability": facet.stability,
        "stability_interval": facet.stability_interval,
        "image_activation": activation,
        "activation_percentile": percentile(activation, found.facets.activations),
        "retention": retained,
        "label": None,
        "image": image_file(name, facet.index),
        "members": [_member(plan, found, facet, nth) for nth in range(min(len(facet), MEMBERS))],
    }


def _facet_files(unit: str, found: FoundUnit, facet: Facet, rendering: Rendering) -> dict[str, bytes]:
    """Return a facet's image and the sheet of its nearest members; with other than 1 or 3 channels, also these."""
    files = {
        image_file(unit, facet.index): _webp(to_pil(rendering.display(rendering.image)), lossless=True),
        members_file(unit, facet.index): _webp(_sheet(found, facet), quality=80),
    }
    if len(rendering.image) not in (1, 3):
        buffer = BytesIO()
        np.save(buffer, rendering.image.numpy())
        files[array_file(unit, facet.index)] = buffer.getvalue()
    return files


def _member(plan: Plan, found: FoundUnit, facet: Facet, nth: int) -> dict[str, Any]:
    """Return the nth nearest member of a facet: image, activation, distance to the center, and crop."""
    place, images = int(facet.members[nth]), found.images
    index = int(images.indices[place]) if isinstance(images, TopImages) else place
    row: dict[str, Any] = {
        "path": plan.image_name(found.position, index),
        "activation": float(facet.activations[nth]),
        "distance": float(facet.distances[nth]),
    }
    if isinstance(images, TopImages) and images.cropped:
        top, left = images.corners[place].tolist()
        row["crop"] = (left, top, left + images.crop_size, top + images.crop_size)
    return row


def _tensors(found: FoundUnit, renderings: Sequence[Rendering]) -> bytes:
    """Return the facet set, the losses of each step and, of top images, which images and crops they are."""
    facets, images = found.facets, found.images
    arrays = facets.arrays()
    arrays |= {f"history.{name}": np.stack([one.history[name] for one in renderings]) for name in renderings[0].history}
    if isinstance(images, TopImages):
        arrays |= {"indices": images.indices, "corners": images.corners}
    return tensor_file(arrays, facets.header())


def _sheet(found: FoundUnit, facet: Facet) -> Image.Image:
    """Return the nearest members in one row, at most 128 pixels high."""
    shown = [to_pil(found.spec.display(image_at(found.items, int(place)))) for place in facet.members[:SHEET]]
    side = min(128, shown[0].height)
    sheet = Image.new("RGB", (side * len(shown), side))
    for nth, image in enumerate(shown):
        sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS).convert("RGB"), (nth * side, 0))
    return sheet


def _webp(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "webp", method=2, **options)  # a third of the time of 4, files are 2 % larger
    return buffer.getvalue()
