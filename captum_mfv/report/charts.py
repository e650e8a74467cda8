"""The geometry of a page's small charts, in the units of their SVG view boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPARK", "Plane", "Point", "Strip", "plane", "sparkline", "strip"]

_BINS = 60
_WIDTH, _HEIGHT, _MARGIN = 720.0, 620.0, 26.0  # of the map


@dataclass(frozen=True)
class Box:
    """Width and height of a chart."""

    width: int
    height: int


SPARK = Box(240, 30)


def sparkline(values: NDArray[Any]) -> str:
    """Points of a polyline over the steps, at most one for each unit of width; NaNs are left out."""
    values = values[np.isfinite(values)]
    values = values[np.linspace(0, len(values) - 1, min(len(values), SPARK.width)).astype(int)]
    low, high = float(values.min()), float(values.max())
    x = np.linspace(0, SPARK.width, len(values))
    y = SPARK.height - (values - low) / max(high - low, 1e-12) * SPARK.height
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


@dataclass(frozen=True)
class Strip:
    """Histograms of activations over one range, which all cards share.

    Args:
        low: where the range begins.
        high: where it ends: at the largest activation, but at most twice as far as real images go.
        top: the fullest bin's count.
        bars: path of all real images' histogram.
    """

    low: float
    high: float
    top: int
    bars: str
    width: int = 300
    height: int = 34

    def path(self, activations: NDArray[Any]) -> str:
        """A histogram of some of them as a path."""
        counts, _ = np.histogram(activations.astype(np.float64), _BINS, (self.low, self.high))
        step = self.width / _BINS
        heights = counts / self.top * (self.height - 4)
        return "".join(
            f"M{i * step:.1f} {self.height}v{-height:.1f}h{step - 0.6:.1f}v{height:.1f}z"
            for i, height in enumerate(heights)
            if height
        )

    def mark(self, activation: float) -> float:
        """Where an activation is, held at the ends."""
        return round(self.width * min(max((activation - self.low) / (self.high - self.low), 0), 1), 1)


def strip(real: NDArray[Any], made: Sequence[float]) -> Strip:
    """The strip of real images' activations that has room for those of the images made."""
    low, highest = float(real.min()), float(real.max())
    span = max(highest - low, 1e-6 * max(1.0, abs(low), abs(highest)))
    low, high = min(low, *made, low + span), max(highest, min(max(made), highest + span), low + span)
    counts, _ = np.histogram(real.astype(np.float64), _BINS, (low, high))
    empty = Strip(low, high, int(counts.max()), "")
    return Strip(low, high, empty.top, empty.path(real))


@dataclass(frozen=True)
class Point:
    """An image on the map, or a facet's middle; ``row`` is its index in the dataset."""

    x: float
    y: float
    facet: int
    row: int = -1
    name: str = ""
    activation: float = 0.0


@dataclass(frozen=True)
class Plane:
    """The map of images, and where each facet's number goes."""

    width: int
    height: int
    radius: float
    points: list[Point]
    places: list[Point]


def plane(embedding: NDArray[Any], labels: NDArray[np.int64], names: Sequence[str], activations: NDArray[Any]) -> Plane:
    """The embedding's first two axes at one scale; points are drawn smaller where there are many."""
    seen = np.flatnonzero(np.isfinite(embedding[:, 0]))
    flat = embedding[seen, :2] if embedding.shape[1] > 1 else np.repeat(embedding[seen], 2, axis=1)
    spread = np.maximum(np.ptp(flat, axis=0), 1e-9)
    scale = min((_WIDTH - 2 * _MARGIN) / spread[0], (_HEIGHT - 2 * _MARGIN) / spread[1])
    height = max(spread[1] * scale + 2 * _MARGIN, 300)
    middle = (flat.min(0) + flat.max(0)) / 2
    places = ((flat - middle) * scale + (_WIDTH / 2, height / 2)).round(1)
    points = [
        Point(x, y, int(labels[row]), row, names[row], float(activations[row]))
        for (x, y), row in zip(places.tolist(), seen.tolist(), strict=True)
    ]
    middles = [np.median(places[labels[seen] == k], axis=0).round(1).tolist() for k in range(int(labels.max()) + 1)]
    radius = float(np.clip(110 / np.sqrt(len(seen)), 2.5, 9))
    return Plane(
        int(_WIDTH), round(height), round(radius, 1), points, [Point(x, y, k) for k, (x, y) in enumerate(middles)]
    )
