"""Colors and markers of facets, the same on the page, in figures and in notebooks."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["COLORS", "NOISE", "SHAPES", "Polygon", "facet_color", "facet_marker"]

Polygon = tuple[tuple[float, float], ...]
"""Corners (x, y) around (0, 0), y downwards."""

COLORS = ("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499", "#ee7733")
"""Paul Tol's "muted" scheme, distinguishable for color-blind readers; orange replaces its pale gray."""

NOISE = "#999999"
"""Color of images in no facet."""

SHAPES: Mapping[str, Polygon] = {
    "o": (),
    "s": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "D": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "^": ((0, -1.25), (1.25, 0.95), (-1.25, 0.95)),
    "v": ((0, 1.25), (1.25, -0.95), (-1.25, -0.95)),
    "P": (
        *((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)),
        *((0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)),
    ),
    "X": (
        *((0, -0.57), (0.57, -1.13), (1.13, -0.57), (0.57, 0), (1.13, 0.57), (0.57, 1.13)),
        *((0, 0.57), (-0.57, 1.13), (-1.13, 0.57), (-0.57, 0), (-1.13, -0.57), (-0.57, -1.13)),
    ),
}
"""Shapes of about equal size by matplotlib's names of markers; ``o`` has no corners and the radius 1."""


def facet_color(index: int) -> str:
    """Return the color of a facet, or of no facet if the index is negative; colors repeat after ten facets."""
    return COLORS[index % len(COLORS)] if index >= 0 else NOISE


def facet_marker(index: int) -> str:
    """Return the marker of a facet, a point for no facet; color and marker together distinguish 70 facets.

    >>> facet_marker(9), facet_marker(10), facet_color(0) == facet_color(10)
    ('o', 's', True)
    """
    return list(SHAPES)[index // len(COLORS) % len(SHAPES)] if index >= 0 else "."
