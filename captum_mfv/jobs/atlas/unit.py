"""The work on a group of units: codes of their images, facets, synthesized images and scores, as values to store."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from torch.utils.data import ConcatDataset

from captum_mfv.activations.codes import Collection
from captum_mfv.activations.shared import collect_tops, collect_units
from captum_mfv.activations.top_k import TopImages, check_finite, crop_top_images
from captum_mfv.activations.top_values import TopValues
from captum_mfv.errors import MFVError, MFVWarning
from captum_mfv.facets.facet_set import Facet, FacetSet, nearest
from captum_mfv.facets.finder import FacetFinder, cluster
from captum_mfv.images import Images, InputSpec, image_at, to_pil
from captum_mfv.jobs.atlas.plan import Plan
from captum_mfv.metrics import multifacetedness, percentile
from captum_mfv.optvis.render import Rendering, render_facets
from captum_mfv.runs.atlas import MEMBERS, SHEET, array_file, image_file, members_file, tensors_file, unit_name
from captum_mfv.storage.files import tensor_file

__all__ = ["UnitResult", "process"]


@dataclass(frozen=True)
class UnitResult:
    """What is stored of one unit.

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
class _Found:
    """A unit, its images and its facets."""

    position: int
    images: Images
    spec: InputSpec
    facets: FacetSet


class _Clock:
    """Seconds of each part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def __call__(self, part: str) -> None:
        """Add the time since the last call to a part."""
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


def process(plan: Plan, positions: Sequence[int], top: Mapping[str, NDArray[Any]] | None) -> list[UnitResult]:
    """Return the results of units of one layer; if the work on all together fails, of each unit alone.

    Args:
        plan: the atlas's plan.
        positions: places of the units among the atlas's units.
        top: state of the units' `TopValues`, in the order of ``positions``; None with images by class.
    """
    try:
        return _process(plan, positions, top)
    except Exception as error:  # of the user's model or dataset too; the other units go on
        if len(positions) == 1:
            return [_failed(plan, positions[0], error)]
    alone = [None if top is None else _rows(top, [place]) for place in range(len(positions))]
    return [one for place, rows in zip(positions, alone, strict=True) for one in process(plan, [place], rows)]


def _process(plan: Plan, positions: Sequence[int], top: Mapping[str, NDArray[Any]] | None) -> list[UnitResult]:
    clock = _Clock()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tops = None if top is None else _tops(plan, positions, top)
        dead = [] if tops is None else [place for place, its in zip(positions, tops, strict=True) if not len(its)]
        live = [place for place in positions if place not in dead]
        found = _find(plan, live, None if tops is None else [its for its in tops if len(its)], clock) if live else []
        results = _render(plan, found, clock) if found else []
    results += [UnitResult(place, {**_head(plan, place), "status": "dead"}) for place in dead]
    told = tuple(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, MFVWarning)))
    timings = {part: seconds / len(positions) for part, seconds in clock.seconds.items()}
    return [replace(one, timings=timings, warnings=told) for one in results]


def _failed(plan: Plan, position: int, error: Exception) -> UnitResult:
    reason = str(error) if isinstance(error, MFVError) else f"{type(error).__name__}: {error}"
    return UnitResult(position, {**_head(plan, position), "status": "failed", "error": reason})


def _head(plan: Plan, position: int) -> dict[str, Any]:
    """Return the first entries of a unit's row."""
    unit = plan.units[position]
    index = unit.index if isinstance(unit.index, int) else unit_name(unit).rpartition(":")[2]
    return {"unit": unit_name(unit), "layer": unit.layer_name, "index": index}


def _rows(top: Mapping[str, NDArray[Any]], places: Sequence[int]) -> dict[str, NDArray[Any]]:
    return {name: values[list(places)] if values.ndim else values for name, values in top.items()}


def _tops(plan: Plan, positions: Sequence[int], top: Mapping[str, NDArray[Any]]) -> list[TopImages]:
    """Return the top images of some units."""
    assert plan.images is not None
    values = TopValues(len(positions), top["values"].shape[1])
    values.load({name: torch.tensor(array) for name, array in top.items()})  # a copy: Ray's can't be written to
    units = [plan.units[place] for place in positions]
    check_finite(units, values)
    return crop_top_images(plan.model, units, plan.images, values, plan.spec)


def _find(plan: Plan, positions: Sequence[int], tops: Sequence[TopImages] | None, clock: _Clock) -> list[_Found]:
    """Return the facets of units whose images are known."""
    job, code = plan.job, plan.codes[plan.units[positions[0]].layer_name]
    datasets: Sequence[Images]
    if tops is None:
        datasets, specs = [plan.folders[place] for place in positions], [plan.spec] * len(positions)
        collections = []
        for place, images in zip(positions, datasets, strict=True):
            read, activations, codes = collect_units(plan.model, [plan.units[place]], code, images, plan.spec)
            collections.append(Collection(plan.units[place], code, read, activations[:, 0], codes, None))
    else:
        datasets, specs = tops, [its.input_spec for its in tops]
        collections = collect_tops(plan.model, tops, code)
    clock("codes")
    found = []
    for place, images, spec, collection in zip(positions, datasets, specs, collections, strict=True):
        n_facets = job.facets if job.facets == "auto" else min(job.facets, len(np.unique(collection.codes, axis=0)))
        # With "auto", clusters are those of the codes: an embedding by t-SNE would only cost time
        embedding = PCA(min(2, *collection.codes.shape)) if n_facets == "auto" else "tsne"
        finder = FacetFinder(n_facets, embedding=embedding, max_facets=job.max_facets, random_state=job.seed)
        found.append(_Found(place, images, spec, cluster(collection, finder)))
    clock("facets")
    return found


def _render(plan: Plan, found: Sequence[_Found], clock: _Clock) -> list[UnitResult]:
    """Synthesize the images of all facets in one batch; return results."""
    job, network = plan.job, plan.network
    offsets = np.cumsum([0, *(len(one.images) for one in found)]).tolist()
    every = [facet.shifted(first) for one, first in zip(found, offsets, strict=False) for facet in one.facets]
    renderings = render_facets(
        network.model,
        every,
        ConcatDataset([cast(Any, one.images) for one in found]),
        recipe=network.recipe,
        size=job.size,
        input_spec=found[0].spec,
        seed=job.seed,
        dtype=network.dtype,
    )
    if not all(rendering.complete for rendering in renderings):
        raise KeyboardInterrupt
    clock("images")
    units, code = [plan.units[one.position] for one in found], found[0].facets.code
    _, activations, codes = collect_units(network.model, units, code, [one.image for one in renderings], found[0].spec)
    results, first = [], 0
    for column, one in enumerate(found):
        its = slice(first, first := first + len(one.facets))
        results.append(_result(plan, one, renderings[its], activations[its, column], codes[its]))
    clock("scores")
    return results


def _result(
    plan: Plan,
    found: _Found,
    renderings: Sequence[Rendering],
    activations: NDArray[np.float32],
    codes: NDArray[np.float32],
) -> UnitResult:
    """Return one unit's rows and files."""
    facets, head = found.facets, _head(plan, found.position)
    measured = multifacetedness(facets, seed=plan.job.seed)
    retained = nearest(codes, facets.centers) == np.arange(len(facets))
    rows, files = [], {tensors_file(head["unit"]): _tensors(found, renderings)}
    for facet, rendering, activation, kept in zip(facets, renderings, activations, retained, strict=True):
        rows.append(
            {
                "unit": head["unit"],
                "index": facet.index,
                "size": len(facet),
                "activation": float(facet.activations.mean()),
                "stability": facet.stability,
                "stability_interval": facet.stability_interval,
                "image_activation": float(activation),
                "activation_percentile": percentile(float(activation), facets.activations),
                "retention": bool(kept),
                "label": None,
                "image": image_file(head["unit"], facet.index),
                "members": [_member(plan, found, facet, nth) for nth in range(min(len(facet), MEMBERS))],
            }
        )
        files[image_file(head["unit"], facet.index)] = _webp(rendering.display(rendering.image), lossless=True)
        files[members_file(head["unit"], facet.index)] = _sheet(found, facet)
        if plan.spec.channels not in (1, 3):
            files[array_file(head["unit"], facet.index)] = _npy(rendering)
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
    return UnitResult(found.position, row, rows, files)


def _member(plan: Plan, found: _Found, facet: Facet, nth: int) -> dict[str, Any]:
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


def _tensors(found: _Found, renderings: Sequence[Rendering]) -> bytes:
    """Return the facet set, the losses of each step and, of top images, which images and crops they are."""
    facets, images = found.facets, found.images
    arrays = facets.arrays()
    arrays |= {f"history.{name}": np.stack([one.history[name] for one in renderings]) for name in renderings[0].history}
    if isinstance(images, TopImages):
        arrays |= {"indices": images.indices, "corners": images.corners}
    return tensor_file(arrays, facets.header())


def _sheet(found: _Found, facet: Facet) -> bytes:
    """Return the nearest members in one row, at most 128 pixels high."""
    shown = [to_pil(found.spec.display(image_at(found.images, int(place)))) for place in facet.members[:SHEET]]
    side = min(128, shown[0].height)
    sheet = Image.new("RGB", (side * len(shown), side))
    for nth, image in enumerate(shown):
        sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS).convert("RGB"), (nth * side, 0))
    return _encoded(sheet, quality=80)


def _webp(image: torch.Tensor, lossless: bool) -> bytes:
    return _encoded(to_pil(image), lossless=lossless)


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "webp", method=4, **options)
    return buffer.getvalue()


def _npy(rendering: Rendering) -> bytes:
    buffer = BytesIO()
    np.save(buffer, rendering.image.numpy())
    return buffer.getvalue()
