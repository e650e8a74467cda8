"""The table of a benchmark: means of each method, and paired comparisons with one of the methods."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from captum_mfv.bench.methods import REAL
from captum_mfv.bench.results import Result
from captum_mfv.bench.scores import SCORES
from captum_mfv.errors import RunError
from captum_mfv.metrics.comparison import Comparison, cluster_means, compare, holm
from captum_mfv.metrics.intervals import Estimate, estimate
from captum_mfv.storage.files import write_whole
from captum_mfv.storage.schema import suggest
from captum_mfv.storage.untrusted import visible

__all__ = ["Compared", "Row", "Table", "figure", "make_table"]

_DIGITS = {"high": 3, "seconds": 3}  # of scores that are small; others have 2
_FORMAT = 1

Cells = Mapping[str, Result]  # by name, with scores that are means over seeds


@dataclass(frozen=True)
class Row:
    """Means of a method over a group of cells.

    Args:
        group: the cells: ``classes`` or ``hidden units``.
        network: their network; None: all.
        method: the method.
        n_cells, n_clusters: numbers of cells, and of clusters of cells.
        scores: means over clusters of a cluster's mean, with 95 % intervals, by score.
    """

    group: str
    network: str | None
    method: str
    n_cells: int
    n_clusters: int
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class Compared:
    """A method's scores minus those of the method it is compared with, on the cells that both have.

    Args:
        group, network, method, n_cells, n_clusters: as in `Row`.
        scores: difference, effect size and p-value by score.
        adjusted: p-values by score, adjusted by Holm's method for the number of methods in the group.
    """

    group: str
    network: str | None
    method: str
    n_cells: int
    n_clusters: int
    scores: Mapping[str, Comparison]
    adjusted: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """The table of a benchmark.

    Args:
        suite: name of the suite.
        against: the method with which the others are compared, or None.
        rows: means over the cells that all methods have: of classes, and of hidden units if a method has these.
        comparisons: comparisons with ``against``.
        n_cells: number of cells of each method, of which rows use those that all have.
        n_steps: number of steps of each method; None where nothing is synthesized.
        failed: method, cell, seed and error of each failed result.
    """

    suite: str
    against: str | None
    rows: tuple[Row, ...]
    comparisons: tuple[Compared, ...]
    n_cells: Mapping[str, int]
    n_steps: Mapping[str, int | None]
    failed: tuple[tuple[str, str, int, str], ...]

    def write(self, folder: Path) -> None:
        """Write ``table.json`` and ``table.md``."""
        content = {"format": _FORMAT, **asdict(self)}
        write_whole(folder / "table.json", json.dumps(content, indent=2).encode())
        write_whole(folder / "table.md", self.markdown().encode())

    def markdown(self) -> str:
        """Return the tables as Markdown, the comparisons of all networks together."""
        scores = [name for name in SCORES if any(name in row.scores for row in self.rows)]
        lines = [self._heading(), "", f"| units | method | cells | clusters | {' | '.join(scores)} |"]
        lines.append("|---" * (len(scores) + 4) + "|")
        for row in self.rows:
            cells = [figure(row.scores.get(name), _DIGITS.get(name, 2)) for name in scores]
            lines.append(
                f"| {_title(row)} | {_shown(row.method)} | {row.n_cells} | {row.n_clusters} | {' | '.join(cells)} |"
            )
        if self.comparisons:
            lines += ["", f"Each method minus {self.against}:", ""]
            lines.append("| units | method | score | cells | clusters | difference | d | p | p, adjusted |")
            lines.append("|---" * 9 + "|")
        for one in self.comparisons:
            if one.network is None:
                lines += _difference_lines(one)
        if self.failed:
            lines += [
                "",
                *(_shown(f"failed: {name} on {cell}, seed {seed}: {error}") for name, cell, seed, error in self.failed),
            ]
        return "\n".join([*lines, ""])

    def _heading(self) -> str:
        steps = {name: "" if n is None else f" ({n} steps)" for name, n in self.n_steps.items()}
        counts = _shown(", ".join(f"{name} {n}{steps[name]}" for name, n in self.n_cells.items()))
        return (
            f"Suite {_shown(self.suite)}. Means over the cells that all methods have; cells of each method: {counts}."
        )


def make_table(
    results: Sequence[Result], methods: Sequence[str] | None = None, *, against: str | None = None, tuning: bool = False
) -> Table:
    """Return the table of results.

    Args:
        results: the results; a cell's score is the mean over its seeds.
        methods: names of the methods in their order; by default all. Real images are always there.
        against: the method with which the others are compared; by default ``facet``, if it is there, or the only
            ``facet-STEPS``.
        tuning: use the cells for tuning instead of the others.

    Raises:
        RunError: if there are no results that are done, or a method has none.
    """
    chosen = [result for result in results if result.tuning == tuning]
    done = _by_method([result for result in chosen if result.status == "done"])
    names = list(dict.fromkeys(one.method for one in chosen if one.method != REAL) if methods is None else methods)
    if not done:
        raise RunError("there are no results that are done")
    base = against or _default_base(list(done))
    failed = [one for one in chosen if one.status == "failed" and one.method in names]
    known = {*done, *(one.method for one in failed if one.method != against)}
    if unknown := next((name for name in [*names, *([base] if base else [])] if name not in known), None):
        hint = f"there are {', '.join(done)}{suggest(unknown, done)}"
        raise RunError(f"there are no results of method {unknown!r} that are done; {hint}")
    shown = [name for name in dict.fromkeys([REAL, *names]) if name in done]
    rows = [row for hidden in (False, True) for row in _rows(done, shown, hidden)]
    comparisons = [] if base is None else _comparisons(done, base, [name for name in shown if name not in (REAL, base)])
    return Table(
        suite=chosen[0].suite,
        against=base if comparisons else None,
        rows=tuple(rows),
        comparisons=tuple(comparisons),
        n_cells={name: len(done[name]) for name in shown},
        n_steps={name: next(iter(done[name].values())).steps for name in shown},
        failed=tuple((one.method, one.cell, one.seed, one.error or "") for one in failed),
    )


def _default_base(names: Sequence[str]) -> str | None:
    """Return ``facet``, or the recipe with another number of steps if there is one such row."""
    others = [name for name in names if re.fullmatch(r"facet-\d+", name)]
    return "facet" if "facet" in names else others[0] if len(others) == 1 else None


def _by_method(results: Sequence[Result]) -> dict[str, dict[str, Result]]:
    """Return results by method and cell, with means over seeds as scores."""
    found: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        found.setdefault(result.method, {}).setdefault(result.cell, []).append(result)
    return {method: {cell: _over_seeds(its) for cell, its in cells.items()} for method, cells in found.items()}


def _over_seeds(results: Sequence[Result]) -> Result:
    keys = set.intersection(*(set(result.scores) for result in results))
    scores = {key: fmean(result.scores[key] for result in results) for key in keys}
    return results[0].model_copy(update={"scores": scores})


def _groups(cells: Sequence[Result]) -> list[tuple[str, str | None, list[Result]]]:
    """Return the cells of classes and of hidden units: of all networks, and of each if there are several."""
    found: list[tuple[str, str | None, list[Result]]] = []
    for group in ("classes", "hidden units"):
        own = [cell for cell in cells if (cell.class_name is None) == (group == "hidden units")]
        networks = list(dict.fromkeys(cell.network for cell in own))
        found += [(group, None, own)] if own else []
        if len(networks) > 1:
            found += [(group, network, [cell for cell in own if cell.network == network]) for network in networks]
    return found


def _rows(done: Mapping[str, Mapping[str, Result]], methods: Sequence[str], hidden: bool) -> list[Row]:
    """Return the rows of classes, or of hidden units, over the cells that all methods have that have any of these."""
    own = {
        name: {cell: one for cell, one in done[name].items() if (one.class_name is None) == hidden} for name in methods
    }
    own = {name: cells for name, cells in own.items() if cells}
    first = next(iter(own.values()), {})
    common = [one for cell, one in first.items() if all(cell in cells for cells in own.values())]
    return [
        _row(group, network, name, [cells[one.cell] for one in chosen])
        for group, network, chosen in _groups(common)
        for name, cells in own.items()
    ]


def _row(group: str, network: str | None, method: str, cells: Sequence[Result]) -> Row:
    scores = {}
    for name in SCORES:
        own = [cell for cell in cells if name in cell.scores]
        if own:
            scores[name] = estimate(cluster_means([one.scores[name] for one in own], [one.cluster for one in own]))
    return Row(group, network, method, len(cells), len({cell.cluster for cell in cells}), scores)


def _comparisons(done: Mapping[str, Mapping[str, Result]], base: str, methods: Sequence[str]) -> list[Compared]:
    """Return the comparison of each method with one of them in each group, with adjusted p-values."""
    found: dict[tuple[str, str | None], list[Compared]] = {}
    for method in methods:
        both = [cell for name, cell in done[base].items() if name in done[method]]
        for group, network, cells in _groups(both):
            scores = {}
            for score in SCORES:
                pairs = [
                    (done[method][one.cell].scores.get(score), one.scores.get(score), one.cluster) for one in cells
                ]
                kept = [
                    (own - other, cluster) for own, other, cluster in pairs if own is not None and other is not None
                ]
                if kept:
                    scores[score] = compare([value for value, _ in kept], [cluster for _, cluster in kept])
            n_clusters = len({cell.cluster for cell in cells})
            found.setdefault((group, network), []).append(
                Compared(group, network, method, len(cells), n_clusters, scores, {})
            )
    return [one for family in found.values() for one in _adjusted(family)]


def _adjusted(family: Sequence[Compared]) -> list[Compared]:
    """Return comparisons with p-values adjusted for the number of methods that have a score."""
    adjusted: list[dict[str, float]] = [{} for _ in family]
    for score in SCORES:
        rows = [i for i, one in enumerate(family) if score in one.scores]
        for i, p_value in zip(rows, holm([family[i].scores[score].p_value for i in rows]).tolist(), strict=True):
            adjusted[i][score] = p_value
    return [replace(one, adjusted=own) for one, own in zip(family, adjusted, strict=True)]


def _title(row: Row | Compared) -> str:
    return f"{row.group}, {_shown(row.network or 'all')}"


def _shown(text: str) -> str:
    """Return a name or an error of a result, which anybody may have written, as it can stand in a table."""
    return visible(text).replace("|", "/")


def figure(found: Estimate | None, digits: int = 2) -> str:
    """Return a mean and its interval as text, such as ``.82 (.77 to .88)``; the mean alone of one cluster."""
    if found is None:
        return ""
    value, low, high = (_number(number, digits) for number in (found.value, found.low, found.high))
    return value if found.n == 1 else f"{value} ({low} to {high})"


def _difference_lines(row: Compared) -> list[str]:
    """Return a line for each score."""
    lines = []
    for name, found in row.scores.items():
        effect = "" if found.effect is None else _number(found.effect, 2)
        figures = [figure(found.difference, _DIGITS.get(name, 2)), effect, _p_value(found.p_value)]
        head = [_title(row), _shown(row.method), name, str(row.n_cells), str(row.n_clusters)]
        lines.append(f"| {' | '.join([*head, *figures, _p_value(row.adjusted[name])])} |")
    return lines


def _p_value(value: float) -> str:
    return _number(value, 3 if value < 0.1 else 2) if value >= 0.001 else "< .001"


def _number(value: float, digits: int) -> str:
    """Return a number without the zero before the point, and 1 or 0 without decimals."""
    text = f"{value:.{digits}f}"
    if float(text) == int(float(text)):
        return str(int(float(text)))
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
