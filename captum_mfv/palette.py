"""The colours of facets: the same on the page, in figures and in notebooks."""

from __future__ import annotations

__all__ = ["COLORS", "NOISE", "facet_color"]

# Paul Tol's "muted" scheme, distinct to colour-blind readers; orange in the place of its pale grey.
COLORS = ("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499", "#ee7733")
NOISE = "#999999"
"""Of images in no facet."""


def facet_color(index: int) -> str:
    """The colour of a facet, or of no facet if the index is negative; from the eleventh on they repeat."""
    return COLORS[index % len(COLORS)] if index >= 0 else NOISE
