"""The objective's terms over the steps of rendering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from captum_mfv.display.palette import facet_color, facet_marker
from captum_mfv.errors import FacetError
from captum_mfv.figures.axes import AxesLike, default_titles, flat_axes, panels, to_list
from captum_mfv.optvis.render import Rendering

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_history"]

_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5)))


def plot_history(
    renderings: Rendering | Sequence[Rendering],
    axes: AxesLike | None = None,
    *,
    terms: Sequence[str] | None = None,
    window: int | None = None,
    legend: bool = True,
    width: float = 6.75,
) -> NDArray[Any]:
    """Plot the unit's activation and the objective's terms over the steps: a panel per term, a line per facet.

    Args:
        renderings: what `render_facets` returned, or a run's `RunFolder.read_renderings`.
        axes: one for each term; None: a new figure.
        terms: names in a rendering's ``history``; by default the activation, then the terms of the objective.
        window: number of steps of a running mean, since transforms change each step's values; by default a twentieth
            of all steps; 1 for the values themselves.
        legend: name the facets, if there are several: under a new figure, otherwise in the last panel.
        width: width of a new figure in inches.

    Returns:
        The axes, (n_terms,).

    Raises:
        TypeError: if ``renderings`` holds anything else.
        FacetError: if there are no renderings, no such term, or the number of axes is wrong.
    """
    shown = to_list(renderings)
    found = list(dict.fromkeys(["activation", *(term for one in shown for term in one.history)]))
    chosen = found if terms is None else list(terms)
    if unknown := [term for term in chosen if term not in found]:
        raise FacetError(f"no term {unknown[0]!r} in the history; there are {', '.join(found)}")
    made = panels(len(chosen), width) if axes is None else axes
    places = flat_axes(made, len(chosen), "terms")
    for axis, term in zip(places, chosen, strict=True):
        for nth, (one, name) in enumerate(zip(shown, default_titles(shown), strict=True)):
            values = _running_mean(one.history.get(term, np.zeros(0)), window)
            _line(axis, values, one.facet.index, name, nth / len(shown))
        _dress(axis, term)
    if legend and len(shown) > 1:
        _name_lines(places, outside=axes is None, columns=int(width / 0.85))
    return places


def _line(axis: Axes, values: NDArray[Any], index: int, label: str, phase: float) -> None:
    """Draw a facet's line; ``phase`` shifts its markers, so that those of several facets don't overlap."""
    apart = max(len(values) // 4, 1)
    axis.plot(
        np.arange(len(values)),
        values,
        color=facet_color(index),
        linestyle=_DASHES[index % len(_DASHES)],
        marker=facet_marker(index),
        markevery=(int(phase * apart), apart),
        markersize=3.5,
        linewidth=0.9,
        label=label,
    )


def _running_mean(values: NDArray[Any], window: int | None) -> NDArray[Any]:
    """Return the mean of the values within half a window of each; NaN where a phase doesn't have the term."""
    half = (len(values) // 20 if window is None else window) // 2
    rows = np.pad(values.astype(float), half, constant_values=np.nan)
    if half == 0 or not len(values):
        return values
    near = np.lib.stride_tricks.sliding_window_view(rows, 2 * half + 1)
    known = np.isfinite(near)
    means = np.where(known, near, 0).sum(1) / np.maximum(known.sum(1), 1)
    return np.where(np.isfinite(values), means, np.nan)


def _dress(axis: Axes, term: str) -> None:
    axis.set_title(term.replace("_", " "), fontsize="small")
    axis.set_xlabel("step", fontsize="small")
    axis.tick_params(labelsize="x-small")
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.spines[["top", "right"]].set_visible(False)


def _name_lines(places: NDArray[Any], outside: bool, columns: int) -> None:
    if outside:
        lines = places[0].get_lines()
        places[0].figure.legend(
            handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize="x-small"
        )
    else:
        places[-1].legend(fontsize="x-small")
