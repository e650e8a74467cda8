"""The page: what it shows, gathered from a run's folder and filled into the template."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from captum_mfv.errors import ImageError
from captum_mfv.facets import FacetSet
from captum_mfv.files import write_whole
from captum_mfv.images import to_pil
from captum_mfv.palette import facet_color
from captum_mfv.result import NEAREST, MemberImages, RunFolder

__all__ = ["build"]

_THUMBNAIL = 96  # pixels


@dataclass(frozen=True)
class Member:
    """A real image on a facet's card."""

    path: str
    thumbnail: str | None
    activation: float


@dataclass(frozen=True)
class Card:
    """A facet's card."""

    index: int
    color: str
    size: int
    share: float
    activation: float
    stability: float | None
    image: str
    start: str
    score: dict[str, Any]
    sparkline: str
    members: list[Member]


@dataclass(frozen=True)
class Point:
    """An image in the embedding, in percent of the map's side."""

    x: float
    y: float
    color: str
    label: str


def build(folder: RunFolder) -> Path:
    """Write ``report.html`` of a run's folder and return its path.

    The page opens from disk and needs no network: images are inside it. Members' thumbnails need the
    run's image folder; without it their names stand alone.

    Raises:
        RunError: if the folder's files can't be read.
    """
    environment = Environment(loader=PackageLoader("captum_mfv", "report"), autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = lambda share: f"{share:.0%}"
    environment.filters["interval"] = _interval
    facets, metrics = folder.read_facets(), folder.read_metrics()
    cards = _cards(folder, facets, metrics["facets"])
    html = environment.get_template("page.html").render(
        manifest=folder.manifest,
        settings=folder.settings,
        metrics=metrics,
        unit=facets.unit,
        code=facets.code,
        n_images=int(np.isfinite(facets.activations).sum()),
        cards=cards,
        points=_points(facets.embedding, facets.labels),
    )
    path = folder.path / "report.html"
    write_whole(path, html.encode("utf-8", "replace"))
    return path


def _interval(found: dict[str, Any]) -> str:
    """An estimate with its interval."""
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _cards(folder: RunFolder, facets: FacetSet, scores: list[dict[str, Any]]) -> list[Card]:
    rows = folder.read_members()
    images, starts = folder.read_images(facets), folder.read_images(facets, "_start")
    activations = folder.read_histories()["activation"]
    total = sum(row["size"] for row in rows)
    pictures = folder.member_images()
    return [
        Card(
            index=row["index"],
            color=facet_color(row["index"]),
            size=row["size"],
            share=row["size"] / total,
            activation=row["activation"],
            image=_data_url(to_pil(images[i]), "PNG"),
            start=_data_url(to_pil(starts[i]), "JPEG"),
            score=scores[i],
            sparkline=_sparkline(activations[i]),
            stability=row["stability"],
            members=[_member(pictures, member) for member in row["members"][:NEAREST]],
        )
        for i, row in enumerate(rows)
    ]


def _member(pictures: MemberImages, member: dict[str, Any]) -> Member:
    try:
        small = pictures.picture(member).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        thumbnail = _data_url(small, "JPEG")
    except ImageError:
        thumbnail = None
    return Member(member["path"], thumbnail, member["activation"])


def _data_url(image: Image.Image, kind: str) -> str:
    buffer = BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sparkline(values: NDArray[np.float32], width: int = 120, height: int = 28) -> str:
    """Points of an SVG polyline over the steps, at most one a pixel."""
    values = values[np.linspace(0, len(values) - 1, min(len(values), width)).astype(int)]
    low, high = float(values.min()), float(values.max())
    x = np.linspace(0, width, len(values))
    y = height - (values - low) / max(high - low, 1e-12) * height
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _points(embedding: NDArray[np.float32], labels: Sequence[int] | NDArray[np.int64]) -> list[Point]:
    """The embedding's first two axes as a map of 4 to 96 percent of its side."""
    plane = embedding[:, :2] if embedding.shape[1] > 1 else np.repeat(embedding, 2, axis=1)
    low, high = np.nanmin(plane, axis=0), np.nanmax(plane, axis=0)
    places = 4 + 92 * (plane - low) / np.maximum(high - low, 1e-12)
    return [
        Point(
            round(float(x), 2),
            round(float(y), 2),
            facet_color(int(label)),
            f"facet {label}" if label >= 0 else "no facet",
        )
        for (x, y), label in zip(places, labels, strict=True)
        if np.isfinite(x)
    ]
