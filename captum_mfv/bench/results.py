"""Results of methods on cells: one JSON file for each method, cell and seed, which several folders can be joined of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from captum_mfv.bench.suite import safe_name
from captum_mfv.errors import RunError
from captum_mfv.storage.files import write_whole
from captum_mfv.storage.schema import Flag, NotNegative, Number, Positive, Record, Seed, validate
from captum_mfv.storage.untrusted import inside, is_folder, read_json

__all__ = ["Result", "ResultFolder", "join"]

_TOLERANCE = 1e-6  # of scores that are the same

Name = Annotated[str, Field(min_length=1, max_length=200)]
Scores = Mapping[str, Number]


class Result(Record):
    """Scores of a method on a cell with a seed, and what they depend on."""

    format: Literal[1] = 1
    """Version of this format."""

    suite: Name
    """Name of the suite."""

    cell: Name
    """Name of the cell."""

    network: Name
    """Name of the network that has the unit."""

    cluster: Name
    """Name of the cluster of cells: the class, or the hidden unit."""

    class_name: Name | None = None
    """Name of the class; None for a hidden unit."""

    tuning: Flag = False
    """Whether methods may be tuned on the cell."""

    method: Name
    """Name of the method."""

    identity: str
    """Fingerprint of the method."""

    seed: Seed = 0
    """Seed of the images."""

    steps: Positive | None = None
    """Number of steps; None for real images, and where nothing is synthesized."""

    n_facets: NotNegative = 0
    """Number of images."""

    fingerprint: str
    """Fingerprint of the cell: of weights, images, facets and judges."""

    versions: Mapping[str, str] = Field(default_factory=dict)
    """Versions of packages, and the platform."""

    status: Literal["done", "failed"] = "done"
    """Whether the method returned images."""

    error: str | None = None
    """Why the method failed."""

    scores: Scores = Field(default_factory=dict)
    """Means over facets, and over judges."""

    judges: Mapping[str, Scores] = Field(default_factory=dict)
    """Scores by each judge."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Method, cell and seed."""
        return self.method, self.cell, self.seed


@dataclass(frozen=True)
class ResultFolder:
    """The results in ``results/METHOD/CELL-SEED.json`` of a folder, and the images in ``images/METHOD/CELL-SEED/``."""

    path: Path

    def read(self) -> list[Result]:
        """Return all results, by their files' names.

        Raises:
            RunError: if a file can't be read as a result.
        """
        return [self._read(path) for path in sorted((self.path / "results").glob("*/*.json"))]

    def find(self, method: str, cell: str, seed: int) -> Result | None:
        """Return one result, or None if there is none; errors are those of `read`."""
        path = self._file(method, cell, seed)
        return self._read(path) if path.exists() else None

    def write(self, result: Result) -> None:
        """Write a result, and replace a former one."""
        write_whole(self._file(*result.key), result.model_dump_json(indent=2).encode())

    def images(self, method: str, cell: str, seed: int) -> Path:
        """Return the folder of a result's images, which need not exist."""
        return self.path / "images" / safe_name(method) / f"{safe_name(cell)}-{seed}"

    def _file(self, method: str, cell: str, seed: int) -> Path:
        return self.path / "results" / safe_name(method) / f"{safe_name(cell)}-{seed}.json"

    def _read(self, path: Path) -> Result:
        try:
            return validate(Result, read_json(inside(self.path, str(path.relative_to(self.path)))))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} isn't a result: {error}; remove it, and the result is computed again") from error


def join(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> list[Result]:
    """Write the results of several folders to a folder, which may be one of them; images stay where they are.

    A result that several folders have is written once, and one that is done replaces one that failed.

    Returns:
        All results.

    Raises:
        RunError: if a folder has no results, they are of several suites, a cell has different weights, images, facets
            or judges in two of them, a method is not the same in two of them, or two have different scores of the same
            method, cell and seed.
    """
    found: dict[tuple[str, str, int], Result] = {}
    seen: dict[str, tuple[str, str]] = {}
    for folder in folders:
        where, results = os.fspath(folder), ResultFolder(Path(folder)).read() if is_folder(folder) else []
        if not results:
            raise RunError(f"{where} holds no results of a benchmark")
        for result in results:
            for what, value, remedy in _identities(result):
                known, other = seen.setdefault(what, (value, where))
                if known != value:
                    raise RunError(f"{what} isn't the same in {other} and {where}; {remedy}")
            former = found.get(result.key)
            if former is None or former.status == "failed":
                found[result.key] = result
            elif result.status == "done":
                _check_scores(former, result, where)
    target = ResultFolder(Path(out))
    for result in found.values():
        target.write(result)
    return list(found.values())


def _identities(result: Result) -> list[tuple[str, str, str]]:
    """Return what must be the same in all folders: its name, its value, and what to do if it isn't."""
    return [
        ("the suite", result.suite, "join folders of one suite"),
        (
            f"cell {result.cell} (weights, images, facets, judges)",
            result.fingerprint,
            "copy cells/ of one folder to a new folder, and compute the other's results there",
        ),
        (f"method {result.method!r}", result.identity, "give one of the two another name, and compute it again"),
    ]


def _check_scores(one: Result, other: Result, where: str) -> None:
    """Raise RunError if two results of the same method, cell and seed differ in more than seconds and rounding."""
    for name in sorted((one.scores.keys() | other.scores.keys()) - {"seconds"}):
        first, second = one.scores.get(name), other.scores.get(name)
        if first is None or second is None or abs(first - second) > _TOLERANCE:
            raise RunError(
                f"{where} has another {name} of method {one.method!r} on {one.cell} with seed {one.seed} than a folder "
                f"before it ({second} and {first}); remove one of the two files"
            )
