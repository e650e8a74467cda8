"""The page of a run, from the files of the run's folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captum_mfv.attr import explained
from captum_mfv.errors import ImageError, MFVWarning, RunError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import to_pil
from captum_mfv.report.charts import SPARK, Strip, plane, strip
from captum_mfv.report.provenance import Provenance, without_folders
from captum_mfv.report.templates import THUMBNAIL, data_url, fill, pixel_class, save, small_url
from captum_mfv.runs.folder import NEAREST, RunFolder, overlay_path
from captum_mfv.runs.labels import RunLabels
from captum_mfv.storage.untrusted import is_folder

__all__ = ["Parts", "build", "fill_page", "read_parts"]

_SHOWN = 600  # real images with a thumbnail: limits the size of the file
_LARGE = 2048  # pixels; larger starts and overlays are scaled down


@dataclass(frozen=True, eq=False)
class Parts:
    """A run's facets, the rows of ``facets.json``, its metrics and, if it has them, its labels."""

    facets: FacetSet
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any]
    labels: RunLabels | None


def read_parts(folder: RunFolder) -> Parts:
    """Read a run's parts, and check them against each other: anyone may have written the folder.

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
    if not fits or (judged is not None and [len(row) for row in judged] != [len(sizes)] * len(sizes)):
        raise RunError(f"{folder.path}: metrics.json isn't of the facets in tensors.safetensors")
    history = folder.read_histories().get("activation", np.empty(0))
    whole = history.ndim == 2 and history.dtype.kind == "f" and len(history) == len(sizes)
    if not whole or not np.isfinite(history[:, :1]).all() or not history.size:
        raise RunError(f"{folder.path}: tensors.safetensors holds no activation of each step")
    labels = folder.read_labels()
    if labels is not None:
        members = [set(facet.members.tolist()) for facet in facets]
        same = len(labels.facets) == len(members)
        if not same or not all(members[label.index].issuperset(label.evidence) for label in labels.facets):
            raise RunError(f"{folder.path}: labels.json isn't of the facets in tensors.safetensors")
    return Parts(facets, rows, metrics, labels)


def build(folder: RunFolder) -> Path:
    """Write ``report.html`` of a run's folder and return its path.

    The page contains its images and makes no network request. Thumbnails of real images need the run's image
    folder, unchanged; without it the page shows the images' names.

    Raises:
        FacetError: if the folder's facets can't be read.
        RunError: if its other files can't be read, or contradict each other.

    Warns:
        MFVWarning: if the image folder isn't the run's.
    """
    return save(folder.path / "report.html", fill_page(folder))


def fill_page(folder: RunFolder, provenance: Provenance | None = None) -> bytes:
    """Return the page of a run's folder; errors and warnings are those of `build`.

    With a provenance, the page is for publication: without images, names and places of real images.
    """
    parts, settings = read_parts(folder), {"recipe_data": {}, **folder.settings}
    facets, rows, metrics = parts.facets, parts.rows, parts.metrics
    activations = strip(
        real := facets.activations[np.isfinite(facets.activations)],
        [score["activation"] for score in metrics["facets"]],
    )
    if provenance is None:
        members, shown = _members(folder, parts), _shown(settings)
    else:
        members, shown = [[] for _ in rows], dict(provenance.settings)
        settings = {**provenance.settings, "command": provenance.command, "recipe_data": settings["recipe_data"]}
    cards = _cards(folder, parts, activations, members, starts=provenance is None)
    return fill(
        "page.html",
        manifest=folder.manifest,
        settings=settings,
        shown_settings=shown,
        provenance=provenance,
        metrics=metrics,
        judge=_judge(metrics, provenance),
        labels=_labels(parts.labels, provenance),
        unit=facets.unit,
        code=facets.code,
        n_images=len(real),
        cropped=any("crop" in member for row in rows for member in row["members"][:1]),
        cards=cards,
        explained=explained(facets),
        peaks=bool(folder.read_peaks()),
        largest=max(card["share"] for card in cards),
        plain=_plain(folder, metrics),
        plane=None if provenance else _plane(facets, rows),
        strip=activations,
        spark=SPARK,
        pixels=pixel_class(folder.read_images(facets)[0]),
    )


def _cards(
    folder: RunFolder, parts: Parts, activations: Strip, members: Sequence[list[dict[str, Any]]], *, starts: bool
) -> list[dict[str, Any]]:
    """Return each facet's card; judged is the nearest facet in the independent network's codes, if evaluated.

    A start image is the mean of real images, or one of them: ``starts`` adds it.
    """
    facets, rows, metrics = parts.facets, parts.rows, parts.metrics
    display = folder.input_spec.display
    images = list(map(display, folder.read_images(facets)))
    before = map(display, folder.read_images(facets, "_start") if starts else ())
    begun = [small_url(to_pil(image), _LARGE) for image in before]
    ascents = folder.read_histories()["activation"]
    total = sum(row["size"] for row in rows)
    judged = (metrics.get("judge") or {}).get("confusion")
    labels = _labels(parts.labels, None)
    return [
        {
            "index": k,
            "row": row,
            "share": row["size"] / total,
            "score": metrics["facets"][k],
            "judged": None if judged is None else int(np.argmax(judged[k])),
            "image": data_url(to_pil(images[k])),
            "small": small_url(to_pil(images[k]), 2 * THUMBNAIL),
            "start": begun[k] if starts else None,
            "overlay": _overlay(folder, k, None, _LARGE),
            "bars": activations.path(facets[k].activations),
            "ascent": ascents[k],
            "label": None if labels is None else labels["facets"][k],
            "evidence": [] if labels is None else _evidence(labels["facets"][k], own),
            "members": own[:NEAREST],
            "others": [member for member in own[NEAREST:] if member["shown"]],
        }
        for k, (row, own) in enumerate(zip(rows, members, strict=True))
    ]


def _judge(metrics: Mapping[str, Any], provenance: Provenance | None) -> dict[str, Any] | None:
    """Return the evaluation by an independent network, or None."""
    judge: dict[str, Any] | None = metrics.get("judge")
    return {**judge, "name": without_folders("model", judge["name"])} if judge and provenance else judge


def _labels(labels: RunLabels | None, provenance: Provenance | None) -> dict[str, Any] | None:
    """Return the labels of the facets, or None."""
    if labels is None:
        return None
    return {**labels.model_dump(), "namer": without_folders("model", labels.namer) if provenance else labels.namer}


def _evidence(label: Mapping[str, Any], members: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the members that a label names as evidence, in its order."""
    rows = {member["row"]: member for member in members}
    return [rows[index] for index in label["evidence"] if index in rows]


def _members(folder: RunFolder, parts: Parts) -> list[list[dict[str, Any]]]:
    """Return the real images of each facet, nearest to the center first: up to the page's limit, and evidence."""
    facets, rows, peaks = parts.facets, parts.rows, folder.read_peaks()
    evidence = [set[int]() if parts.labels is None else set(parts.labels.facets[k].evidence) for k in range(len(rows))]
    pictures, n_shown = folder.member_images(), max(NEAREST, _SHOWN // len(rows))
    if pictures.refused is not None and is_folder(pictures.root):
        warnings.warn(f"the page shows no real images: {pictures.refused}", MFVWarning, stacklevel=4)

    def member(k: int, n: int, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            thumbnail = small_url(to_pil(pictures.input_spec.display(pictures.read(row))))
        except ImageError:
            thumbnail = None
        overlay = _overlay(folder, k, n, THUMBNAIL) if n < NEAREST else None
        found = {"thumbnail": thumbnail, "overlay": overlay, "peak": peaks.get(overlay_path(k, n))}
        return {"row": index, "name": row["path"], "activation": row["activation"], "shown": n < n_shown, **found}

    return [
        [
            member(k, n, int(index), its)
            for n, (index, its) in enumerate(zip(facet.members, row["members"], strict=True))
            if n < n_shown or int(index) in evidence[k]
        ]
        for k, (facet, row) in enumerate(zip(facets, rows, strict=True))
    ]


def _overlay(folder: RunFolder, index: int, member: int | None, side: int) -> str | None:
    found = folder.read_overlay(index, member)
    return None if found is None else small_url(to_pil(found), side)


def _plain(folder: RunFolder, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the image of the whole unit and its scores, or None."""
    image = folder.read_baseline()
    if image is None:
        return None
    shown = to_pil(folder.input_spec.display(image))
    return {"image": data_url(shown), "small": small_url(shown), "scores": metrics.get("plain")}


def _plane(facets: FacetSet, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the map with the path of each image of the dataset; ``image N`` for images in no facet."""
    names = [f"image {i}" for i in range(len(facets.labels))]
    for facet, row in zip(facets, rows, strict=True):
        for index, member in zip(facet.members, row["members"], strict=True):
            names[index] = member["path"]
    return plane(facets.embedding, facets.labels, names, facets.activations)


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the page lists."""
    hidden = ("command", "recipe_data")
    return {
        name.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in hidden and value is not None
    }
