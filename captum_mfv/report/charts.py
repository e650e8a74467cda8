"""Geometry of a page's small charts, in units of their SVG view boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPARK", "Strip", "plane", "sparkline", "strip"]

SPARK = {"width": 240, "height": 30}
"""Size of the view box of `sparkline`."""

_BINS = 60
_WIDTH, _HEIGHT, _MARGIN = 720.0, 620.0, 26.0  # size and margin of the map


def sparkline(values: NDArray[Any]) -> str:
    """Return points of a polyline over the steps, at most one per unit of width; NaNs are omitted."""
    values = values[np.isfinite(values)]
    width, height = SPARK.values()
    values = values[np.linspace(0, len(values) - 1, min(len(values), width)).astype(int)]
    low, high = float(values.min()), float(values.max())
    x = np.linspace(0, width, len(values))
    y = height - (values - low) / max(high - low, 1e-12) * height
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


@dataclass(frozen=True)
class Strip:
    """Histograms of activations over one range, the same on all cards; ``top`` is the count of the fullest bin."""

    low: float
    high: float
    top: int
    bars: str = ""
    width: int = 300
    height: int = 34

    def path(self, activations: NDArray[Any]) -> str:
        """Return the histogram of some activations as an SVG path."""
        counts, _ = np.histogram(activations.astype(np.float64), _BINS, (self.low, self.high))
        step = self.width / _BINS
        heights = counts / self.top * (self.height - 4)
        return "".join(
            f"M{i * step:.1f} {self.height}v{-height:.1f}h{step - 0.6:.1f}v{height:.1f}z"
            for i, height in enumerate(heights)
            if height
        )

    def mark(self, activation: float) -> float:
        """Return the horizontal position of an activation, clipped to the range."""
        return round(self.width * min(max((activation - self.low) / (self.high - self.low), 0), 1), 1)


def strip(real: NDArray[Any], made: Sequence[float]) -> Strip:
    """Return the histogram of real images' activations.

    The range includes synthesized images, but is at most twice the range of real images.
    """
    low, highest = float(real.min()), float(real.max())
    span = max(highest - low, 1e-6 * max(1.0, abs(low), abs(highest)))
    low, high = min(low, *made, low + span), max(highest, min(max(made), highest + span), low + span)
    counts, _ = np.histogram(real.astype(np.float64), _BINS, (low, high))
    empty = Strip(low, high, int(counts.max()))
    return replace(empty, bars=empty.path(real))


@dataclass(frozen=True)
class Point:
    """An image on the map, or the median of a facet; ``row`` is the image's index in the dataset."""

    x: float
    y: float
    facet: int
    row: int = -1
    name: str = ""
    activation: float = 0.0


def plane(
    embedding: NDArray[Any], labels: NDArray[np.int64], names: Sequence[str], activations: NDArray[Any]
) -> dict[str, Any]:
    """Return the map of images: width, height, points, their radius, and the places of the facets' numbers."""
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
    return {
        "width": int(_WIDTH),
        "height": round(height),
        "radius": round(float(np.clip(110 / np.sqrt(len(seen)), 2.5, 9)), 1),
        "points": points,
        "places": [Point(x, y, k) for k, (x, y) in enumerate(middles)],
    }
