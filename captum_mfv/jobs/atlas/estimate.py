"""Estimate of an atlas's time, disk and memory, from a few batches in as many processes as the atlas uses."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from captum_mfv.jobs.atlas.coordinator import LISTING, work
from captum_mfv.jobs.atlas.engines import connect, in_process, threads_of
from captum_mfv.jobs.atlas.plan import BATCH, Plan, load_plan
from captum_mfv.jobs.atlas.results import UnitResult
from captum_mfv.jobs.atlas.scan import scan_part, select_units
from captum_mfv.jobs.atlas.unit import process
from captum_mfv.runs.settings import AtlasOptions, AtlasSettings

__all__ = ["Estimate", "estimate"]

_FEW, _MORE = 2, 6  # steps at least, and how many more for the time of a step
_PARTS = ("codes", "facets", "images", "scores")
_UNITS_ON_CPU = 4  # units that are measured; on a GPU, a full group


@dataclass(frozen=True)
class Estimate:
    """Estimate of the time, disk and memory of an atlas.

    Args:
        n_images, n_units: images that are scanned, and units.
        n_facets: expected number of facets, from the units that were measured.
        seconds: time of each part with the atlas's number of processes.
        disk, memory: bytes of the folder, and of all processes together.
        jobs: number of processes.
    """

    n_images: int
    n_units: int
    n_facets: int
    seconds: Mapping[str, float]
    disk: int
    memory: int
    jobs: int

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    def text(self) -> str:
        """Return the estimate as lines."""
        parts = [f"  {name:8}{_duration(seconds)}" for name, seconds in self.seconds.items()]
        head = f"{self.n_images} images, {self.n_units} units, about {self.n_facets} facets, --jobs {self.jobs}"
        sizes = f"disk {self.disk / 1e6:.0f} MB, memory {self.memory / 1e9:.1f} GB"
        return "\n".join([head, f"about {_duration(self.total)}", *parts, sizes])


@dataclass(frozen=True)
class _Rates:
    """Seconds of one process."""

    image: float  # of the scan
    crop: float  # of the codes
    facets: float  # of a unit
    step: float  # of a facet
    start: float  # of a facet, before the first step
    scores: float  # of a unit
    n_facets: float  # of a unit
    disk: float  # bytes of a unit
    memory: int


def estimate(job: AtlasSettings, out: str, *, progress: bool = False, **options: Any) -> Estimate:
    """Measure a few batches of an atlas, and return what the whole will take; nothing is written.

    Arguments are those of `run`. The expected number of facets is that of the first units on the first images; units of
    later layers, or of more images, may have more.
    """
    chosen, plan = AtlasOptions(out=out, **options), load_plan(job, Path(out, LISTING), progress)
    threads = threads_of(chosen)
    given = plan if in_process(chosen) else (job, Path(out, LISTING).resolve())
    task = (chosen.workers,)
    calls = [(given, threads, measure, nth, task) for nth in range(chosen.jobs)]
    with connect(chosen) as engine:
        rates = [found for _, found, _ in engine(work, calls)]
    return _total(plan, chosen.jobs, rates)


def measure(plan: Plan, workers: int = 0) -> _Rates:
    """Measure the work on a few images and units in this process."""
    units = list(plan.groups(range(len(plan.units)))[0])
    if plan.batch <= 8:
        units = units[:_UNITS_ON_CPU]
    image, rows = 0.0, None
    if plan.images is not None:
        n_images = len(plan.images)
        scan_part(plan, range(min(BATCH, n_images)))  # the first batch is slower
        part = range(min(-(-max(plan.job.top_k, 3 * BATCH) // BATCH) * BATCH, n_images))
        began = perf_counter()
        state = scan_part(plan, part, workers)
        image = (perf_counter() - began) / len(part)
        rows = select_units(state, units)
    recipe, timings, results = plan.recipe, [], list[UnitResult]()
    n_few = max(_FEW, len(recipe.phases))
    for steps in (n_few, n_few + _MORE):
        shorter = replace(plan, recipe=recipe.with_steps(steps))
        results = process(shorter, units, rows)
        timings.append({part: sum(one.timings.get(part, 0.0) for one in results) for part in _PARTS})
    few, more = timings
    n_facets = max(1, sum(len(one.facets) for one in results))
    step = max(0.0, more["images"] - few["images"]) / _MORE / n_facets
    crops = sum(one.row.get("n_images", 0) for one in results)
    return _Rates(
        image=image,
        crop=more["codes"] / max(1, crops),
        facets=more["facets"] / len(units),
        step=step,
        start=max(0.0, few["images"] / n_facets - n_few * step),
        scores=more["scores"] / len(units),
        n_facets=n_facets / len(units),
        disk=sum(len(content) for one in results for content in one.files.values()) / len(units),
        memory=_peak_memory(),
    )


def _total(plan: Plan, jobs: int, rates: Sequence[_Rates]) -> Estimate:
    """Return the estimate for all units, from the rates of processes that ran at the same time."""
    mean = {name: fmean(getattr(one, name) for one in rates) for name in _Rates.__annotations__}
    n_images = 0 if plan.images is None else len(plan.images)
    n_units, n_steps = len(plan.units), plan.recipe.n_steps
    n_facets = n_units * mean["n_facets"]
    n_crops = sum(map(len, plan.folders)) or n_units * plan.job.top_k
    seconds = {
        "scan": n_images * mean["image"],
        "codes": n_crops * mean["crop"],
        "facets": n_units * mean["facets"],
        "images": n_facets * (mean["start"] + n_steps * mean["step"]),
        "scores": n_units * mean["scores"],
    }
    return Estimate(
        n_images,
        n_units,
        round(n_facets),
        {name: value / jobs for name, value in seconds.items()},
        round(n_units * mean["disk"]),
        sum(one.memory for one in rates),
        jobs,
    )


def _duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _peak_memory() -> int:
    """Return the largest memory of this process so far in bytes; 0 on systems without ``getrusage``."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
