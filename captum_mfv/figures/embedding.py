"""Scatter plot of the embedding in which facets were found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from captum_mfv.display.palette import facet_color, facet_marker
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_embedding"]


def plot_embedding(
    facets: FacetSet,
    axis: Axes | None = None,
    *,
    titles: Sequence[str] | None = None,
    legend: bool = False,
    size: float = 14.0,
    width: float = 3.25,
) -> Axes:
    """Plot the embedding in which the facets were found: one point per image, and each facet's number.

    Args:
        facets: the facets; the first two axes of their embedding are drawn.
        axis: the axis; None: a new square figure.
        titles: one for each facet; by default its number.
        legend: list the facets and their numbers of images beside the plot.
        size: size of a point in square typographic points.
        width: width of a new figure in inches, without the legend.

    Returns:
        The axis.

    Raises:
        TypeError: if ``facets`` isn't a `FacetSet`.
        FacetError: if the number of titles is wrong.
    """
    if not isinstance(facets, FacetSet):
        raise TypeError(f"facets must be a FacetSet, not {type(facets).__name__}")
    names = [str(facet.index) for facet in facets] if titles is None else list(titles)
    if len(names) != len(facets):
        raise FacetError(f"{len(facets)} facets need as many titles, not {len(names)}")
    if axis is None:
        axis = Figure(figsize=(width + 1.4 * legend, width), layout="constrained").subplots()
    plane = _plane(facets.embedding)
    for index in range(-1, len(facets)):
        rows = plane[(facets.labels == index) & np.isfinite(plane[:, 0])]
        if len(rows):
            name = "no facet" if index < 0 else f"facet {index}" if titles is None else names[index]
            _scatter(axis, rows, index, size, f"{name}, {len(rows)} images")
    for index, name in enumerate(names):
        _label(axis, plane[facets.labels == index], name)
    axis.set(xticks=[], yticks=[], aspect="equal")
    if legend:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    return axis


def _plane(embedding: NDArray[Any]) -> NDArray[Any]:
    """Return the first two axes of an embedding, (N, 2); the second is 0 if there is only one."""
    return embedding[:, :2] if embedding.shape[1] > 1 else np.pad(embedding, ((0, 0), (0, 1)))


def _scatter(axis: Axes, rows: NDArray[Any], index: int, size: float, label: str) -> None:
    axis.scatter(
        rows[:, 0],
        rows[:, 1],
        s=size if index >= 0 else size / 3,
        c=facet_color(index),
        marker=facet_marker(index),
        edgecolors=axis.get_facecolor(),
        linewidths=0.3,
        label=label,
    )


def _label(axis: Axes, rows: NDArray[Any], name: str) -> None:
    """Write a facet's name at the point that is nearest to the median of its points."""
    rows = rows[np.isfinite(rows[:, 0])]
    x, y = rows[np.square(rows - np.median(rows, axis=0)).sum(1).argmin()]
    halo = withStroke(linewidth=2.5, foreground=axis.get_facecolor())
    axis.text(x, y, name, ha="center", va="center", fontsize="small", fontweight="bold", path_effects=[halo])
