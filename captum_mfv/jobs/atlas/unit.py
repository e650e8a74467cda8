"""The work on a group of units: codes of their images, facets, synthesized images and scores."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch.utils.data import ConcatDataset

from captum_mfv.activations.codes import Collection
from captum_mfv.activations.shared import collect_tops, collect_units
from captum_mfv.activations.top_k import TopImages, check_finite, crop_top_images
from captum_mfv.activations.top_values import TopValues
from captum_mfv.errors import MFVWarning
from captum_mfv.facets.finder import FacetFinder, cluster
from captum_mfv.images import Images
from captum_mfv.jobs.atlas.plan import Plan
from captum_mfv.jobs.atlas.results import FoundUnit, UnitResult, dead_unit, done_unit, failed_unit
from captum_mfv.jobs.atlas.scan import select_units
from captum_mfv.optvis.initializer import measures_colors
from captum_mfv.optvis.render import render_facets

__all__ = ["process"]


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
            return [failed_unit(plan, positions[0], error)]
    alone = [None if top is None else select_units(top, [place]) for place in range(len(positions))]
    return [one for place, rows in zip(positions, alone, strict=True) for one in process(plan, [place], rows)]


def _process(plan: Plan, positions: Sequence[int], top: Mapping[str, NDArray[Any]] | None) -> list[UnitResult]:
    clock = _Clock()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tops = None if top is None else _tops(plan, positions, top)
        dead = [] if tops is None else [place for place, its in zip(positions, tops, strict=True) if not len(its)]
        live = [place for place in positions if place not in dead]
        found = _find(plan, live, None if tops is None else [its for its in tops if len(its)], clock) if live else []
        # Measured colors are those of the unit's own images
        batches = [[one] for one in found] if measures_colors(plan.recipe, plan.spec) else [found] if found else []
        results = [result for batch in batches for result in _render(plan, batch, clock)]
    results += [dead_unit(plan, place) for place in dead]
    told = tuple(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, MFVWarning)))
    timings = {part: seconds / len(positions) for part, seconds in clock.seconds.items()}
    return [replace(one, timings=timings, warnings=told) for one in results]


def _tops(plan: Plan, positions: Sequence[int], top: Mapping[str, NDArray[Any]]) -> list[TopImages]:
    """Return the top images of some units."""
    assert plan.images is not None
    values = TopValues(len(positions), top["values"].shape[1])
    values.load({name: torch.tensor(array) for name, array in top.items()})  # a copy: Ray's can't be written to
    units = [plan.units[place] for place in positions]
    check_finite(units, values)
    return crop_top_images(plan.model, units, plan.images, values, plan.spec)


def _find(plan: Plan, positions: Sequence[int], tops: Sequence[TopImages] | None, clock: _Clock) -> list[FoundUnit]:
    """Return the facets of units whose images are known."""
    job, code = plan.job, plan.codes[plan.units[positions[0]].layer_name]
    datasets: Sequence[Images]
    collected: list[tuple[Collection, Images]] = []
    if tops is None:
        datasets, specs = [plan.folders[place] for place in positions], [plan.spec] * len(positions)
        for place, images in zip(positions, datasets, strict=True):
            read, activations, codes = collect_units(plan.model, [plan.units[place]], code, images, plan.spec)
            collected.append((Collection(plan.units[place], code, read, activations[:, 0], codes, None), images))
    else:
        datasets, specs = tops, [its.input_spec for its in tops]
        collected = collect_tops(plan.model, tops, code)
    clock("codes")
    found = []
    for place, images, spec, (collection, items) in zip(positions, datasets, specs, collected, strict=True):
        n_facets = job.facets if job.facets == "auto" else min(job.facets, len(np.unique(collection.codes, axis=0)))
        # With "auto", clusters are those of the codes: an embedding by t-SNE would only cost time
        embedding = PCA(min(2, *collection.codes.shape)) if n_facets == "auto" else "tsne"
        finder = FacetFinder(n_facets, embedding=embedding, max_facets=job.max_facets, random_state=job.seed)
        facets = cluster(collection, finder)
        found.append(FoundUnit(place, images, items, spec, facets, finder.excess_))
    clock("facets")
    return found


def _render(plan: Plan, found: Sequence[FoundUnit], clock: _Clock) -> list[UnitResult]:
    """Synthesize the images of all facets in one batch; return results."""
    job = plan.job
    offsets = np.cumsum([0, *(len(one.items) for one in found)]).tolist()
    every = [facet.shifted(first) for one, first in zip(found, offsets, strict=False) for facet in one.facets]
    renderings = render_facets(
        plan.model,
        every,
        ConcatDataset([cast(Any, one.items) for one in found]),
        recipe=plan.recipe,
        size=job.size,
        input_spec=found[0].spec,
        seed=job.seed,
        dtype=plan.dtype,
    )
    if not all(rendering.complete for rendering in renderings):
        raise KeyboardInterrupt
    clock("images")
    units, code = [plan.units[one.position] for one in found], found[0].facets.code
    _, activations, codes = collect_units(plan.model, units, code, [one.image for one in renderings], found[0].spec)
    results, first = [], 0
    for column, one in enumerate(found):
        its = slice(first, first := first + len(one.facets))
        results.append(done_unit(plan, one, renderings[its], activations[its, column], codes[its]))
    clock("scores")
    return results
