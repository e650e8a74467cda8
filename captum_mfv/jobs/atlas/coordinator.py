"""The coordinator of an atlas: it hands out parts of the scan and groups of units, and alone stores what comes back."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch

from captum_mfv.display.progress import Progress
from captum_mfv.errors import MFVWarning, RunError
from captum_mfv.jobs.atlas.engines import Run, WorkerDied, connect, in_process, threads_of, worker_device
from captum_mfv.jobs.atlas.plan import Plan, load_plan, load_plan_once
from captum_mfv.jobs.atlas.results import UnitResult
from captum_mfv.jobs.atlas.scan import ScanState, scan_part
from captum_mfv.jobs.atlas.unit import process
from captum_mfv.jobs.inputs import parse_shard
from captum_mfv.report import atlas as page
from captum_mfv.runs.atlas_writer import SCAN, AtlasWriter
from captum_mfv.runs.records import check_place
from captum_mfv.runs.settings import AtlasOptions, AtlasSettings
from captum_mfv.storage.files import hold
from captum_mfv.storage.untrusted import within

__all__ = ["LISTING", "run", "work"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

LISTING = ".images.json"
"""File of the dataset's list of files."""

_SHARD = re.compile(r"(\d{1,6})-of-(\d{1,6})")
_DEATHS = 3  # deaths of workers in a row, without a result between them


def run(job: AtlasSettings, out: str | os.PathLike[str], *, progress: bool = False, **options: Any) -> AtlasWriter:
    """Make or resume the atlas with these settings, and write it to a folder.

    All input is checked before anything is written. Units that the folder already has are skipped; an interruption
    loses the work since the last stored group of units. A unit that fails is recorded with its error.

    Args:
        job: the settings.
        out: the atlas's folder; one process at a time coordinates the work.
        progress: show progress bars.
        options: fields of `AtlasOptions`: ``jobs``, ``engine``, ``address``, ``threads``, ``workers``, ``shard``,
            ``merge``, ``retry_failed`` and ``update``.

    Raises:
        MFVError: if the input can't be used, naming what and why.
    """
    chosen = AtlasOptions(out=os.fspath(out), **options)
    shard = parse_shard(chosen.shard)
    if shard is not None and chosen.merge:
        raise RunError("--shard and --merge are mutually exclusive: first all shards, then one --merge")
    check_place(Path(out), "atlas")
    plan = load_plan(job, Path(out, LISTING), progress)
    with ExitStack() as locks:
        for place in _places(Path(out), shard):
            locks.enter_context(hold(place))
        folder = AtlasWriter.open(Path(out), plan.identity, plan.sizes, update=chosen.update)
        plan.save_listing(folder.path / LISTING)
        work = Work(plan, folder, chosen, shard, progress)
        work.run()
    return folder


def _lock(out: Path, shard: tuple[int, int] | None) -> Path:
    """Return the folder that a coordinator locks: the atlas's folder, or the shard's folder in it."""
    try:
        return out if shard is None else within(out, f".shards/{shard[0]}-of-{shard[1]}")
    except ValueError as error:
        raise RunError(f"{out}: {error}") from error


def _places(out: Path, shard: tuple[int, int] | None) -> list[Path]:
    """Return the folders that a coordinator locks; the whole atlas's coordinator also locks the shards' folders."""
    found = [_SHARD.fullmatch(path.name) for path in out.glob(".shards/*")] if shard is None else []
    shards = sorted((int(own[1]), int(own[2])) for own in found if own)
    return [_lock(out, shard), *(_lock(out, one) for one in shards)]


@dataclass(eq=False)
class Work:
    """An atlas in progress."""

    plan: Plan
    folder: AtlasWriter
    options: AtlasOptions
    shard: tuple[int, int] | None
    progress: bool
    timings: dict[str, float] = field(default_factory=dict)
    records: dict[int, dict[str, Any]] = field(default_factory=dict)  # of stored units, by position

    def run(self) -> None:
        """Do what is left, and write the tables."""
        if self.shard is None:
            self.folder.sweep(self.plan.units)
        groups = self.plan.groups(range(len(self.plan.units)))
        mine = groups if self.shard is None else groups[self.shard[0] :: self.shard[1]]
        for group in mine:
            for position in group:
                self._look_up(position)
        left = [group for group in mine if any(position not in self.records for position in group)]
        if left and not self.options.merge:
            with connect(self.options) as engine:
                state = None if self.plan.images is None else self._scan(engine)
                self._process(engine, left, state)
        self.folder.failed = sum(record["row"]["status"] == "failed" for record in self.records.values())
        if self.shard is None:
            self._finish()

    def _look_up(self, position: int) -> None:
        """Find a unit's stored rows."""
        unit = self.plan.units[position]
        record = self.folder.record(unit, self.plan.keys[position])
        if record is not None and not (self.options.retry_failed and record["row"]["status"] == "failed"):
            self.records[position] = record

    def _scan(self, engine: Run[Any]) -> ScanState:
        """Return the strongest images of all units; scan what no process has scanned, also of other shards' parts."""
        states = []
        for shard in self._shards():
            state = ScanState.open(self.plan, _lock(self.folder.path, shard) / SCAN)
            parts = [part for part in state.left() if shard is None or part % shard[1] == shard[0]]
            if parts:
                self._scan_parts(engine, state, parts)
                state.save()
            states.append(state)
        state = states[0]
        for other in states[1:]:
            state.join(other)
        state.check()
        return state

    def _shards(self) -> list[tuple[int, int] | None]:
        """Return all shards, the own one first; a single None without shards."""
        if self.shard is None:
            return [None]
        number, n_shards = self.shard
        return [((number + nth) % n_shards, n_shards) for nth in range(n_shards)]

    def _scan_parts(self, engine: Run[Any], state: ScanState, numbers: Sequence[int]) -> None:
        tasks = {number: (self.plan.parts[number], self.options.workers) for number in numbers}
        n_images = sum(len(self.plan.parts[number]) for number in numbers)
        with (
            self._timed("scan"),
            Progress(total=n_images, desc="scan", unit="image", disable=not self.progress or not numbers) as bar,
        ):
            for number, found in self._results(engine, scan_part, tasks):
                state.add(number, found)
                bar.update(len(self.plan.parts[number]))

    def _process(self, engine: Run[Any], groups: Sequence[Sequence[int]], state: ScanState | None) -> None:
        """Process groups of units, and store what isn't stored yet."""
        tasks = {group[0]: (group, None if state is None else state.rows(group)) for group in groups}
        left = {position for group in groups for position in group if position not in self.records}
        with Progress(total=len(left), desc="units", unit="unit", disable=not self.progress) as bar:
            for _, results in self._results(engine, process, tasks):
                for result in results:
                    if result.position in left:
                        self._store(result)
                        bar.update()
                    for part, seconds in result.timings.items():
                        self.timings[part] = self.timings.get(part, 0.0) + seconds
                failed = sum(record["row"]["status"] == "failed" for record in self.records.values())
                bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)

    def _store(self, result: UnitResult) -> None:
        for message in result.warnings:
            _log.debug("%s: %s", result.row["unit"], message)
        if result.row["status"] == "failed":
            _log.warning("%s failed: %s", result.row["unit"], result.row["error"])
        key = self.plan.keys[result.position]
        self.folder.store(key, result.row, result.facets, result.files)
        self.records[result.position] = {"key": key, "row": result.row, "facets": result.facets}

    def _results(
        self, engine: Run[Any], function: Callable[..., T], tasks: Mapping[int, tuple[Any, ...]]
    ) -> Iterator[tuple[int, T]]:
        """Yield the number and the result of each task, in any order; repeat tasks whose worker was killed."""
        left, deaths, threads = dict(tasks), 0, threads_of(self.options)
        here = in_process(self.options)
        source = self.plan if here else (self.plan.job, self.folder.path.resolve() / LISTING)
        while left:
            calls = [(source, threads, function, number, task) for number, task in left.items()]
            try:
                for number, result, messages in engine(work, calls):
                    for message in messages:
                        warnings.warn(message, MFVWarning, stacklevel=2)
                    del left[number]
                    deaths = 0
                    yield number, result
            except WorkerDied as error:
                deaths += 1
                if deaths >= _DEATHS:
                    raise RunError(f"workers died {deaths} times in a row; is memory full? use fewer --jobs") from error
                _log.warning("a worker was killed; its work is repeated")

    def _finish(self) -> None:
        """Write the tables of all stored units, and the page."""
        lacking = len(self.plan.units) - len(self.records)
        if lacking:
            raise RunError(f"{lacking} of {len(self.plan.units)} units aren't done; run the shards that are left")
        records = [self.records[position] for position in range(len(self.plan.units))]
        with self._timed("tables"):
            self.folder.finish(records, self.plan.job.seed)
        with self._timed("page"):
            page.build(self.folder)
        self.folder.add_timings(self.timings)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = perf_counter()
        yield
        self.timings[part] = self.timings.get(part, 0.0) + perf_counter() - began


def work(
    source: Plan | tuple[AtlasSettings, Path],
    threads: int | None,
    function: Callable[..., T],
    number: int,
    task: tuple[Any, ...],
) -> tuple[int, T, list[str]]:
    """Return the number and the result of a task; in a worker process, load what the settings name first.

    The last item has the warnings of a worker process, which the coordinator shows.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        if isinstance(source, Plan):
            return number, function(source, *task), []
        job, listing = source
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = function(load_plan_once(job, worker_device(job.device), listing), *task)
        return number, result, [str(one.message) for one in caught if issubclass(one.category, MFVWarning)]
    finally:
        torch.set_num_threads(before)
