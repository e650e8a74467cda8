"""A run's facets, rows and metrics, checked against each other: anyone may have written the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from captum_mfv.errors import RunError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.runs.folder import RunFolder

__all__ = ["Parts", "read_parts"]


@dataclass(frozen=True, eq=False)
class Parts:
    """A run's facets, the rows of ``facets.json`` and its metrics."""

    facets: FacetSet
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any]


def read_parts(folder: RunFolder) -> Parts:
    """Read a run's parts.

    Raises:
        FacetError: if the facets can't be read.
        RunError: if the settings are incomplete, another part can't be read, or the parts are of different facets.
    """
    _ = folder.input_spec  # raises if settings are incomplete
    facets, rows, metrics = folder.read_facets(), folder.read_members(), folder.read_metrics()
    sizes = [len(facet) for facet in facets]
    for name, found in {
        "facets.json": [row["size"] for row in rows],
        "facets.json's members": [len(row["members"]) for row in rows],
    }.items():
        if found != sizes:
            raise RunError(f"{folder.path}: {name} isn't of the facets in tensors.safetensors")
    judged = (metrics.get("judge") or {}).get("confusion")
    fits = [row["index"] for row in rows] == list(range(len(sizes))) and len(metrics["facets"]) == len(sizes)
    fits = fits and all(("off_facet" in score) == ("real_off_facet" in score) for score in metrics["facets"])
    if not fits or (judged is not None and [len(row) for row in judged] != [len(sizes)] * len(sizes)):
        raise RunError(f"{folder.path}: metrics.json isn't of the facets in tensors.safetensors")
    history = folder.read_histories().get("activation", np.empty(0))
    whole = history.ndim == 2 and history.dtype.kind == "f" and len(history) == len(sizes)
    if not whole or not np.isfinite(history[:, :1]).all() or not history.size:
        raise RunError(f"{folder.path}: tensors.safetensors holds no activation of each step")
    return Parts(facets, rows, metrics)
