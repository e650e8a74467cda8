"""Axes, pixels and titles that all figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.errors import FacetError
from captum_mfv.optvis.render import Rendering

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["TITLE", "AxesLike", "default_titles", "flat_axes", "panels", "to_list", "to_pixels"]

AxesLike: TypeAlias = "Axes | Sequence[Axes] | NDArray[Any]"

TITLE = 0.22
"""Height of a line of text in inches."""


def to_list(renderings: Rendering | Sequence[Rendering]) -> list[Rendering]:
    """Return renderings as a list.

    Raises:
        TypeError: if one is not a `Rendering`.
        FacetError: if there are none.
    """
    listed = [renderings] if isinstance(renderings, Rendering) else list(renderings)
    for one in listed:
        if not isinstance(one, Rendering):
            raise TypeError(f"renderings must be what render_facets returns, not {type(one).__name__}")
    if not listed:
        raise FacetError("there are no renderings to show")
    return listed


def default_titles(renderings: Sequence[Rendering]) -> list[str]:
    """Return the facet of each rendering, with its seed if seeds differ."""
    several = len({one.seed for one in renderings}) > 1
    return [f"facet {one.facet.index}" + (f", seed {one.seed}" if several else "") for one in renderings]


def flat_axes(axes: AxesLike, n: int, what: str) -> NDArray[Any]:
    """Return the caller's axes as an array, (n,).

    Raises:
        FacetError: if there are not n axes; ``what`` names the things to be drawn.
    """
    flat = np.atleast_1d(np.asarray(axes, dtype=object)).reshape(-1)
    if len(flat) != n:
        raise FacetError(f"{n} {what} need as many axes, not {len(flat)}")
    return flat


def panels(n: int, width: float) -> NDArray[Any]:
    """Return axes of n panels in a new figure, (n,), as many in each row as can be read."""
    columns = max(1, min(n, int(width / 1.5)))
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(width, rows * min(1.7, 0.8 * width) + 2 * TITLE), layout="constrained")
    made = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in made[n:]:
        axis.remove()
    return np.asarray(made[:n])


def to_pixels(image: Tensor) -> NDArray[Any]:
    """Return a gray, color or transparent image, (C, H, W), as (H, W, 3 or 4) in [0, 1]."""
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
