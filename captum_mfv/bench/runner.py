"""Compute the results of methods on the cells of a suite that are missing."""

from __future__ import annotations

import logging
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from captum_mfv.bench.methods import REAL, Method
from captum_mfv.bench.results import Result, ResultFolder
from captum_mfv.bench.scene import Scene, Scenes
from captum_mfv.bench.scores import CellScores, image_scores, real_scores
from captum_mfv.bench.suite import Cell, Suite, safe_name
from captum_mfv.errors import MFVError, RunError
from captum_mfv.images import to_pil
from captum_mfv.jobs.inputs import find_device
from captum_mfv.runs.records import installed_versions
from captum_mfv.storage.files import remove

__all__ = ["run"]

_log = logging.getLogger(__name__)


def run(
    suite: Suite,
    methods: Sequence[Method],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    cells: Sequence[Cell] | None = None,
    seeds: Sequence[int] = (0,),
    update: bool = False,
    device: str | None = None,
) -> list[Result]:
    """Render the cells' facets by each method, evaluate the images, and write a result for each.

    Results that the folder has are not computed again; failed ones are. Two processes may work in one folder, on
    other cells, methods or seeds: files are written atomically.

    Args:
        suite: the suite.
        methods: the methods; the real images are evaluated too.
        out: the folder of the results.
        data: the folder of the suite's images, weights and models, if the suite needs one.
        cells: the cells; by default all that are not for tuning.
        seeds: seeds of the images.
        update: replace results of another method of the same name; without it they are an error.
        device: where networks run; by default a GPU if there is one, else the CPU.

    Returns:
        The results of all methods on these cells and seeds; a method that raised has a failed one.

    Raises:
        RunError: if two methods have one name, the folder has results of another method of a name, of another suite,
            or of a cell with other weights, images or facets, or if data are missing.
        MFVError: if a network or images can't be loaded.
    """
    chosen = suite.cells() if cells is None else list(cells)
    names = [safe_name(method.name).casefold() for method in methods]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RunError(f"two methods are named {twice!r}; give one another name")
    folder = Path(out).absolute()  # a method may change the working folder
    scenes = Scenes(suite, None if data is None else Path(data).absolute(), folder / "cells", find_device(device))
    work = _Work(suite, ResultFolder(folder), scenes, update)
    for cell in chosen:
        for method in methods:
            for seed in seeds:
                work.missing(method, cell, seed)  # raises before anything is computed
    scenes.check(chosen)
    return [result for cell in chosen for result in work.run(cell, methods, seeds)]


@dataclass(frozen=True, eq=False)
class _Work:
    """A benchmark in progress."""

    suite: Suite
    folder: ResultFolder
    scenes: Scenes
    update: bool

    def missing(self, method: Method, cell: Cell, seed: int) -> bool:
        """Return whether a result must be computed; RunError if there is one of another method or suite."""
        known = self.folder.find(method.name, cell.name, seed)
        if known is None:
            return True
        if known.suite != self.suite.name:
            raise RunError(f"{self.folder.path} has results of suite {known.suite}; choose another --out")
        changed = known.identity != method.identity
        if known.status == "done" and changed and not self.update:
            raise RunError(
                f"{self.folder.path} has results of another method {method.name!r}: its file, recipe or package was "
                f"changed since; give the new one another name, or replace the results with --update"
            )
        return known.status == "failed" or changed

    def run(self, cell: Cell, methods: Sequence[Method], seeds: Sequence[int]) -> list[Result]:
        """Add the results of a cell that are missing, and return all of the methods and seeds."""
        pairs = [(method, seed) for method in methods for seed in seeds]
        todo = [(method, seed) for method, seed in pairs if self.missing(method, cell, seed)]
        if todo or self.folder.find(REAL, cell.name, 0) is None:
            scene = self.scenes.scene(cell)
            self._check_cell(scene, [(REAL, 0), *((method.name, seed) for method, seed in pairs)])
            if self.folder.find(REAL, cell.name, 0) is None:
                self._write(scene, {"method": REAL, "identity": ""}, real_scores(scene))
            for method, seed in todo:
                if self.missing(method, cell, seed):  # another process may have computed it meanwhile
                    self._add(scene, method, seed)
        return [
            found for method, seed in pairs if (found := self.folder.find(method.name, cell.name, seed)) is not None
        ]

    def _check_cell(self, scene: Scene, keys: Sequence[tuple[str, int]]) -> None:
        """Raise RunError if results were computed with another cell of the name."""
        for method, seed in keys:
            known = self.folder.find(method, scene.cell.name, seed)
            if known is not None and known.fingerprint != scene.fingerprint:
                raise RunError(
                    f"{self.folder.path} has results on {scene.cell.name} with other weights, images, facets or judges;"
                    f" choose another --out"
                )

    def _add(self, scene: Scene, method: Method, seed: int) -> None:
        """Render and evaluate a cell by a method; an error of the method is its result."""
        about: dict[str, Any] = {
            "method": method.name,
            "identity": method.identity,
            "seed": seed,
            "steps": method.steps,
            "n_facets": len(scene.facets),
        }
        if method.package is not None:
            about["versions"] = {method.package: version(method.package)}
        try:
            with _logged_warnings(f"{method.name} on {scene.cell.name}"):
                made = method.render(scene, seed)
        except Exception as error:  # of any type: the method may be anybody's
            reason = str(error) if isinstance(error, MFVError) else f"{type(error).__name__}: {error}"
            _log.warning("%s failed on %s: %s", method.name, scene.cell.name, reason)
            _log.debug("traceback of %s", method.name, exc_info=True)
            self._write(scene, {**about, "status": "failed", "error": " ".join(reason.split())}, CellScores({}, {}))
            return
        pictures = self.folder.images(method.name, scene.cell.name, seed)
        remove(pictures)
        pictures.mkdir(parents=True)
        for k, image in enumerate(made.images):
            to_pil(scene.spec.display(image)).save(pictures / f"facet_{k:02}.png")
        labels = method.labels(scene.facets, seed)
        found = image_scores(scene, made.images, labels, has_facets=method.has_facets)
        self._write(scene, about, CellScores({**found.means, "seconds": made.seconds}, found.judges))

    def _write(self, scene: Scene, about: dict[str, Any], found: CellScores) -> None:
        cell = scene.cell
        versions = {**installed_versions(), "platform": platform.platform(), **about.pop("versions", {})}
        result = Result(
            suite=self.suite.name,
            cell=cell.name,
            network=cell.network,
            cluster=cell.cluster,
            class_name=cell.class_name,
            tuning=cell.tuning,
            fingerprint=scene.fingerprint,
            versions=versions,
            scores=found.means,
            judges=found.judges,
            **about,
        )
        self.folder.write(result)
        if result.status == "done":
            shown = " ".join(f"{name} {value:.3g}" for name, value in found.means.items())
            _log.info("%s %s, seed %d: %s", cell.name, result.method, result.seed, shown)


@contextmanager
def _logged_warnings(name: str) -> Iterator[None]:
    """Log the warnings that are raised inside, each once, with the name of what raised them."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        finally:
            for message in dict.fromkeys(str(one.message) for one in caught):
                _log.warning("%s: %s", name, message)
