"""One page that compares runs: settings that differ, matched facets and metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from captum_mfv.errors import RunError
from captum_mfv.images import to_pil
from captum_mfv.report import templates
from captum_mfv.report.page import Parts, read_parts
from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.labels import RunLabels

__all__ = ["compare"]

_SIDE = 384  # largest side of the images, in pixels
_ALONE = {
    "shuffled": "Nearest to their own center, shuffled facets",
    "held_out": "Classify real images held out",
    "over_seeds": "Nearest to the image of their own facet with another seed",
    "separation": "Distance of real images across facets, relative to within",
}
"""Scores of an evaluation that have no controls."""

Table = dict[str, list[str]]
"""Title of each row of a table, and its cell for each run."""


def compare(folders: Sequence[RunFolder], path: str | os.PathLike[str]) -> Path:
    """Write one page that compares finished runs.

    Args:
        folders: at least two runs.
        path: the HTML file to write, which is returned; its folder is created if missing.

    Raises:
        RunError: if there are fewer than two runs, one isn't finished, or its files can't be read.
    """
    if len(folders) < 2:
        raise RunError(f"at least two runs are compared, not {len(folders)}")
    for folder in folders:
        if not folder.finished:
            raise RunError(f"{folder.path} isn't finished; resume it with the command that started it")
    parts = [read_parts(folder) for folder in folders]
    differing, same = _settings(folders)
    html = templates.fill(
        "compare.html",
        runs=_titles(folders),
        units=list(dict.fromkeys(folder.settings["unit"] for folder in folders)),
        differing=differing,
        same=same,
        rows=_rows(folders, parts),
        figures=_aligned([_figures(*pair) for pair in zip(folders, parts, strict=True)]),
        judged=_aligned([_judged(part.metrics.get("judge")) for part in parts]),
    )
    return templates.save(Path(path), html)


def _titles(folders: Sequence[RunFolder]) -> list[str]:
    """Return the folders' names, or their paths if names repeat."""
    names = [folder.path.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder.path) for folder in folders]


def _settings(folders: Sequence[RunFolder]) -> tuple[Table, dict[str, str]]:
    """Return the settings that differ, with a cell for each run, and those that are equal."""
    flat = [_flat({k: v for k, v in folder.settings.items() if k != "command"}) for folder in folders]
    rows = _aligned(flat)
    differing = {name: cells for name, cells in rows.items() if len(set(cells)) > 1}
    return differing, {name: cells[0] for name, cells in rows.items() if name not in differing}


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Return nested settings under their joined names, without settings that are None."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value, 1)
        parts = [_flat(part, f"{name} {key}".strip()) for key, part in pairs]
        return {key: text for part in parts for key, text in part.items()}
    return {} if value is None else {name.replace("_", " "): str(value)}


def _aligned(columns: Sequence[Mapping[str, str]]) -> Table:
    """Return the rows of all columns, in order; missing cells are a dash."""
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, "\u2013") for column in columns] for name in names}


def _rows(folders: Sequence[RunFolder], parts: Sequence[Parts]) -> list[dict[str, Any]]:
    """Return a row for each facet of the first run, then one for each unmatched facet of the other runs."""
    members = [[_paths_and_crops(row) for row in part.rows] for part in parts]
    overlaps = [np.array([[len(a & b) / len(a | b) for b in other] for a in members[0]]) for other in members]
    pairs = [matched(overlap) for overlap in overlaps]
    each = zip(folders, parts, pairs, overlaps, strict=True)
    cells = [_cells(*its, first=n == 0) for n, its in enumerate(each)]
    rows = [
        {"reference": k, "cells": [own.get(pair.get(k, -1)) for own, pair in zip(cells, pairs, strict=True)]}
        for k in range(len(members[0]))
    ]
    for n, (own, pair) in enumerate(zip(cells, pairs, strict=True)):
        left = [own[k] for k in own if k not in pair.values()]
        rows += [{"reference": None, "cells": [cell if i == n else None for i in range(len(folders))]} for cell in left]
    return rows


def _paths_and_crops(row: Mapping[str, Any]) -> set[tuple[str, tuple[int, ...]]]:
    """Return the images of a facet in a form that is comparable between runs."""
    return {(member["path"], tuple(member.get("crop") or ())) for member in row["members"]}


def matched(overlap: NDArray[np.float64]) -> dict[int, int]:
    """Match rows with columns so that their overlaps, above 0, have the largest sum."""
    pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
    return {int(a): int(b) for a, b in pairs if overlap[a, b] > 0}


def _cells(
    folder: RunFolder, parts: Parts, pair: Mapping[int, int], overlap: NDArray[np.float64], *, first: bool
) -> dict[int, dict[str, Any]]:
    """Return the facets of a run, with the overlap of each with the matched facet of the first run."""
    images, scores = folder.read_images(parts.facets), parts.metrics["facets"]
    display = folder.input_spec.display
    shared = {} if first else {b: float(overlap[a, b]) for a, b in pair.items()}
    return {
        k: {
            "index": k,
            "image": templates.small_url(to_pil(display(images[k])), _SIDE),
            "pixels": templates.pixel_class(images[k]),
            "size": row["size"],
            "activation": scores[k]["activation"],
            "stability": row["stability"],
            "overlap": shared.get(k),
            "label": parts.labels and parts.labels.facets[k].text,
        }
        for k, row in enumerate(parts.rows)
    }


def _figures(folder: RunFolder, parts: Parts) -> dict[str, str]:
    metrics, rows = parts.metrics, parts.rows
    unit = metrics["multifacetedness"]
    stable = [row["stability"] for row in rows if row["stability"] is not None]
    found = {
        "facets": len(rows),
        "images": sum(row["size"] for row in rows),
        "nearest to their own facet, in the network's own codes": metrics["retention"],
        "by chance": metrics["chance"],
        "real images nearest to their own facet's center": metrics.get("agreement"),
        "multifacetedness": unit["score"],
        "p-value of one facet": templates.p_value(unit["p_value"]),
        "share of activation in stable facets": unit["coverage"],
        "mean stability": float(np.mean(stable)) if stable else None,
        "mean share of real images that activate the unit less": np.mean([s["percentile"] for s in metrics["facets"]]),
        "adjusted Rand index against known groups": metrics.get("adjusted_rand_index"),
        "facets with a label": _n_labeled(parts.labels),
        "seconds": sum(seconds for stage, seconds in folder.manifest["timings"].items() if stage != "report"),
    }
    return {name: _short(value) for name, value in found.items() if value is not None}


def _n_labeled(labels: RunLabels | None) -> str | None:
    """Return how many facets have a label, and by which namer; None without labels."""
    if labels is None:
        return None
    n_labeled = sum(label.text is not None for label in labels.facets)
    return f"{n_labeled} of {len(labels.facets)}, by {templates.short_name(labels.namer)}"


def _judged(judge: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the scores of an evaluation, each followed by those of its controls."""
    if judge is None:
        return {}
    others = {templates.CONTROLS.get(name, name): scores for name, scores in judge["controls"].items()}
    found: dict[str, Any] = {}
    for key, (title, _) in templates.SCORES.items():
        found[title] = judge["scores"][key]
        found |= {f"{title}: {name}": scores[key] for name, scores in others.items()}
        found[f"{title}: all real images"] = judge.get(templates.REAL.get(key, ""))
    found |= {title: judge.get(key) for key, title in _ALONE.items()}
    texts = {title: templates.format_interval(figure) for title, figure in found.items() if figure is not None}
    return {"independent network": templates.short_name(str(judge["name"])), "chance": _short(judge["chance"]), **texts}


def _short(value: str | float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
