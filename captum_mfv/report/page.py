"""The page of a run: collect its data from the run's folder and fill the templates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.attr import explained
from captum_mfv.errors import ImageError, MFVWarning
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import to_pil
from captum_mfv.report.charts import SPARK, Strip, plane, strip
from captum_mfv.report.parts import Parts, read_parts
from captum_mfv.report.pictures import THUMBNAIL, data_url, pixel_class, small_url
from captum_mfv.report.templates import fill, save
from captum_mfv.runs.folder import NEAREST, RunFolder
from captum_mfv.runs.member_images import MemberImages
from captum_mfv.storage.untrusted import is_folder

__all__ = ["build"]

_SHOWN = 600  # real images with a thumbnail: limits the size of the file
_LARGE = 2048  # pixels; larger starts and overlays are scaled down


@dataclass(frozen=True)
class Member:
    """A real image on a facet's card; ``row`` is its index in the dataset."""

    row: int
    name: str
    activation: float
    thumbnail: str | None
    overlay: str | None = None


@dataclass(frozen=True)
class Card:
    """A facet's card.

    Args:
        index: index of the facet.
        row: the facet's entry in facets.json.
        share: the facet's share of all facets' images.
        score: the facet's entry in metrics.json.
        judged: the facet whose center is nearest to the image in the independent network's codes; None: not evaluated.
        image: the image in full size; ``small``, ``start`` and ``overlay`` are scaled for the page.
        bars: SVG path of the histogram of the activations of the facet's real images.
        ascent: (n_steps,) the unit's activation at each step.
        members: the real images nearest to the facet's center, with attributions.
        others: further real images of the facet, up to the page's limit.
    """

    index: int
    row: Mapping[str, Any]
    share: float
    score: Mapping[str, Any]
    judged: int | None
    image: str
    small: str
    start: str
    overlay: str | None
    bars: str
    ascent: NDArray[Any]
    members: list[Member]
    others: list[Member]


@dataclass(frozen=True)
class Plain:
    """The image of the whole unit."""

    image: str
    small: str
    scores: Mapping[str, Any] | None


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
    parts = read_parts(folder)
    facets, rows, metrics = parts.facets, parts.rows, parts.metrics
    scores = metrics["facets"]
    real = facets.activations[np.isfinite(facets.activations)]
    activations = strip(real, [score["activation"] for score in scores])
    cards = _cards(folder, parts, activations)
    html = fill(
        "page.html",
        manifest=folder.manifest,
        settings=folder.settings,
        shown_settings=_shown(folder.settings),
        metrics=metrics,
        judge=metrics.get("judge"),
        unit=facets.unit,
        code=facets.code,
        n_images=len(real),
        cropped=any("crop" in member for row in rows for member in row["members"][:1]),
        cards=cards,
        explained=explained(facets),
        largest=max(card.share for card in cards),
        plain=_plain(folder, metrics),
        plane=plane(facets.embedding, facets.labels, _names(facets, rows), facets.activations),
        strip=activations,
        spark=SPARK,
        pixels=pixel_class(folder.read_images(facets)[0]),
    )
    return save(folder.path / "report.html", html)


def _cards(folder: RunFolder, parts: Parts, activations: Strip) -> list[Card]:
    facets, rows, metrics = parts.facets, parts.rows, parts.metrics
    images, starts = folder.read_images(facets), folder.read_images(facets, "_start")
    ascents = folder.read_histories()["activation"]
    total = sum(row["size"] for row in rows)
    judged = (metrics.get("judge") or {}).get("confusion")
    return [
        Card(
            index=k,
            row=row,
            share=row["size"] / total,
            score=metrics["facets"][k],
            judged=None if judged is None else int(np.argmax(judged[k])),
            image=data_url(to_pil(images[k])),
            small=small_url(to_pil(images[k]), 2 * THUMBNAIL),
            start=small_url(to_pil(starts[k]), _LARGE),
            overlay=_overlay(folder, k, None, _LARGE),
            bars=activations.path(facets[k].activations),
            ascent=ascents[k],
            members=[_with_overlay(folder, k, n, member) for n, member in enumerate(members[:NEAREST])],
            others=members[NEAREST:],
        )
        for k, (row, members) in enumerate(zip(rows, _members(folder, facets, rows), strict=True))
    ]


def _members(folder: RunFolder, facets: FacetSet, rows: Sequence[Mapping[str, Any]]) -> list[list[Member]]:
    """Return the real images of each facet, nearest to the center first, up to the page's limit."""
    pictures, n_shown = folder.member_images(), max(NEAREST, _SHOWN // len(rows))
    if pictures.refused is not None and is_folder(pictures.root):
        warnings.warn(f"the page shows no real images: {pictures.refused}", MFVWarning, stacklevel=4)
    return [
        [_member(pictures, *pair) for pair in zip(facet.members[:n_shown], row["members"], strict=False)]
        for facet, row in zip(facets, rows, strict=True)
    ]


def _member(pictures: MemberImages, index: int, row: Mapping[str, Any]) -> Member:
    try:
        thumbnail = small_url(pictures.picture(row))
    except ImageError:
        thumbnail = None
    return Member(int(index), row["path"], row["activation"], thumbnail)


def _with_overlay(folder: RunFolder, index: int, n: int, member: Member) -> Member:
    return Member(**{**vars(member), "overlay": _overlay(folder, index, n, THUMBNAIL)})


def _overlay(folder: RunFolder, index: int, member: int | None, side: int) -> str | None:
    found = folder.read_overlay(index, member)
    return None if found is None else small_url(to_pil(found), side)


def _plain(folder: RunFolder, metrics: Mapping[str, Any]) -> Plain | None:
    image: Tensor | None = folder.read_baseline()
    if image is None:
        return None
    return Plain(data_url(to_pil(image)), small_url(to_pil(image)), metrics.get("plain"))


def _names(facets: FacetSet, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the path of each image of the dataset; ``image N`` for images in no facet."""
    names = [f"image {i}" for i in range(len(facets.labels))]
    for facet, row in zip(facets, rows, strict=True):
        for index, member in zip(facet.members, row["members"], strict=True):
            names[index] = member["path"]
    return names


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the page lists."""
    hidden = ("command", "recipe_data")
    return {
        name.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in hidden and value is not None
    }
