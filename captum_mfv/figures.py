"""Figures of facets for papers, on matplotlib axes of yours or in a new figure.

A new figure is ``axes[0].figure`` (for a single axis, ``axis.figure``), and ``width`` is its width in inches: 6.75 is
the text of a two-column paper, 3.25 one column. Fonts follow ``matplotlib.rcParams``. A facet has the same color and
marker in all figures. Pyplot's state doesn't change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.display.palette import facet_color, facet_marker
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, image_at
from captum_mfv.labels import Label
from captum_mfv.optvis.render import Rendering

__all__ = ["plot_attributions", "plot_embedding", "plot_facets", "plot_history"]

AxesLike: TypeAlias = Axes | Sequence[Axes] | NDArray[Any]

_LINE = 0.22  # height of a line of text in inches
_IMAGE = 2.2  # side of an image with its attribution in a new figure, in inches
_SMALL = 64  # pixels of a side below which an image is drawn without interpolation
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5)))


def plot_facets(
    renderings: Rendering | Sequence[Rendering],
    axes: AxesLike | None = None,
    *,
    titles: Sequence[str | Label] | None = None,
    starts: bool = False,
    images: Images | None = None,
    n_nearest: int = 3,
    transparency: bool = False,
    columns: int = 5,
    width: float = 6.75,
) -> NDArray[Any]:
    """Plot images of facets side by side, optionally above their start images and real images of their facets.

    Args:
        renderings: what `render_facets` returned, or a run's `RunFolder.read_renderings`.
        axes: one for each picture, the pictures of a facet in succession; None: a new figure. The axes are returned,
            (n_renderings,), or (n_renderings, n_pictures) with start images or members.
        titles: a text or a label for each rendering; by default the facet's number.
        starts: show the start images too.
        images: the dataset in which the facets were found, to show the n_nearest members of each facet.
        transparency: draw the image with its transparency, which fades out pixels that don't affect the facet.
        columns: number of facets in each row of a new figure.
        width: width of a new figure in inches.

    Raises:
        TypeError: if ``renderings`` holds anything else.
        FacetError: if there are no renderings, or the number of axes or titles is wrong.
    """
    shown = _listed(renderings)
    names = _titled(shown) if titles is None else [one.title if isinstance(one, Label) else one for one in titles]
    _check_count(len(shown), "renderings", names, "titles")
    strips = [_strip(one, starts, images, n_nearest, transparency) for one in shown]
    n_pictures = len(strips[0])
    places = _grid(len(shown), n_pictures, columns, width) if axes is None else axes
    places = _flat(places, len(shown) * n_pictures, "pictures").reshape(len(shown), n_pictures)
    for one, strip, column, name in zip(shown, strips, places, names, strict=True):
        for picture, axis in zip(strip, column, strict=True):
            _show(axis, picture)
        column[0].spines[:].set(visible=True, color=facet_color(one.facet.index), linewidth=1.5)
        column[0].set_title(name, fontsize="small")
    rows = ["", *(["start"] if starts else []), *(["nearest"] if images is not None else [])]
    for column in places[:: columns if axes is None else len(places)]:
        for axis, row in zip(column, rows, strict=False):
            axis.set_ylabel(row, fontsize="small")
    return places[:, 0] if n_pictures == 1 else places


def plot_attributions(
    images: Tensor,
    attributions: Tensor,
    axes: AxesLike | None = None,
    *,
    sign: str = "positive",
    titles: Sequence[str] | None = None,
    boxes: Tensor | None = None,
    method: str = "blended_heat_map",
    alpha: float = 0.65,
    outlier_perc: float = 2.0,
) -> NDArray[Any]:
    """Plot attributions over their images with Captum's `visualize_image_attr`.

    Args:
        images: (N, C, H, W) in [0, 1], gray or RGB; of more channels, those that `InputSpec.display` returns.
        attributions: (N, C, H, W), or of another size, such as a layer's, (N, 1, h, w) or (N, h, w).
        axes: one for each image, which are returned, (N,); None: one row in a new figure.
        sign: ``positive``, ``negative``, ``absolute_value`` or ``all``.
        titles: one for each image.
        boxes: (N, 4) rectangles to outline: left, top, right, bottom in pixels, as `peak_patches` returns; NaN: none.
        method: Captum's name of the kind of plot, such as ``blended_heat_map``, ``heat_map`` or ``masked_image``.
        alpha: opacity of the map, in [0, 1].
        outlier_perc: percentage of the total attribution that is clipped.

    Raises:
        FacetError: if there are not as many attributions, axes, titles or boxes as images.
    """
    n, names = len(images), [""] * len(images) if titles is None else list(titles)
    corners = torch.full((n, 4), torch.nan) if boxes is None else boxes
    for given, things in ((attributions, "attributions"), (names, "titles"), (corners, "boxes")):
        _check_count(n, "images", given, things)
    if axes is None:
        figure = Figure(figsize=(_IMAGE * n, _IMAGE * 1.12), layout="constrained")
        axes = figure.subplots(1, n, squeeze=False)
    places = _flat(axes, n, "images")
    maps = attributions.detach().float().cpu()
    maps = maps[:, None] if maps.ndim == 3 else maps
    maps = torch.nn.functional.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=False)
    rows = zip(places, images, maps.sum(1).numpy(), names, corners.tolist(), strict=True)
    for axis, image, values, name, box in rows:
        _overlay(axis, _pixels(image), values[..., None], sign, method, alpha, outlier_perc)
        _outline(axis, *box)
        axis.axis("off")
        axis.set_title(name, fontsize="small")
    return places


def plot_embedding(
    facets: FacetSet,
    axis: Axes | None = None,
    *,
    titles: Sequence[str | Label] | None = None,
    legend: bool = False,
    size: float = 14.0,
    width: float = 3.25,
) -> Axes:
    """Plot the embedding in which the facets were found: one point per image, and each facet's number.

    Args:
        facets: the facets; the first two axes of their embedding are drawn.
        axis: the axis, which is returned; None: a new square figure.
        titles: a text or a label for each facet; by default its number.
        legend: list the facets and their numbers of images beside the plot.
        size: size of a point in square typographic points.
        width: width of a new figure in inches, without the legend.

    Raises:
        TypeError: if ``facets`` isn't a `FacetSet`.
        FacetError: if the number of titles is wrong.
    """
    if not isinstance(facets, FacetSet):
        raise TypeError(f"facets must be a FacetSet, not {type(facets).__name__}")
    texts = [facet.index for facet in facets] if titles is None else list(titles)
    names = [one.title if isinstance(one, Label) else str(one) for one in texts]
    _check_count(len(facets), "facets", names, "titles")
    axis = Figure(figsize=(width + 1.4 * legend, width), layout="constrained").subplots() if axis is None else axis
    plane = facets.embedding[:, :2] if facets.embedding.shape[1] > 1 else np.pad(facets.embedding, ((0, 0), (0, 1)))
    background = axis.get_facecolor()
    halo = withStroke(linewidth=2.5, foreground=background)
    font: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small", "fontweight": "bold"}
    for index, name in enumerate(["no facet", *names], start=-1):
        rows = plane[(facets.labels == index) & np.isfinite(plane[:, 0])]
        if not len(rows):
            continue
        label = f"{'facet ' if titles is None and index >= 0 else ''}{name}, {len(rows)} images"
        look: dict[str, Any] = {"c": facet_color(index), "marker": facet_marker(index), "edgecolors": background}
        axis.scatter(rows[:, 0], rows[:, 1], size if index >= 0 else size / 3, linewidths=0.3, label=label, **look)
        if index >= 0:
            x, y = rows[np.square(rows - np.median(rows, axis=0)).sum(1).argmin()]  # nearest to the median
            axis.text(x, y, name, path_effects=[halo], **font)
    axis.set(xticks=[], yticks=[], aspect="equal")
    if legend:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    return axis


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

    The other arguments and errors are those of `plot_facets`.

    Args:
        axes: one for each term, which are returned; None: a new figure.
        terms: names in a rendering's ``history``; by default the activation, then the terms of the objective.
        window: number of steps of a running mean, by default a twentieth of all; 1 for the values themselves.
        legend: name the facets, if there are several: under a new figure, otherwise in the last panel.

    Raises:
        FacetError: if there is no such term.
    """
    shown = _listed(renderings)
    found = list(dict.fromkeys(["activation", *(term for one in shown for term in one.history)]))
    chosen = found if terms is None else list(terms)
    if unknown := [term for term in chosen if term not in found]:
        raise FacetError(f"no term {unknown[0]!r} in the history; there are {', '.join(found)}")
    places = _flat(_panels(len(chosen), width) if axes is None else axes, len(chosen), "terms")
    for axis, term in zip(places, chosen, strict=True):
        _draw_term(axis, term, shown, window)
    if legend and len(shown) > 1 and axes is None:
        below: dict[str, Any] = {"loc": "outside lower center", "ncols": int(width / 0.85), "frameon": False}
        places[0].figure.legend(handles=places[0].get_lines(), fontsize="x-small", **below)
    elif legend and len(shown) > 1:
        places[-1].legend(fontsize="x-small")
    return places


def _listed(renderings: Rendering | Sequence[Rendering]) -> list[Rendering]:
    listed = [renderings] if isinstance(renderings, Rendering) else list(renderings)
    if wrong := [one for one in listed if not isinstance(one, Rendering)]:
        raise TypeError(f"renderings must be what render_facets returns, not {type(wrong[0]).__name__}")
    if not listed:
        raise FacetError("there are no renderings to show")
    return listed


def _titled(renderings: Sequence[Rendering]) -> list[str]:
    """Return the facet of each rendering, with its seed if seeds differ."""
    several = len({one.seed for one in renderings}) > 1
    return [f"facet {one.facet.index}" + (f", seed {one.seed}" if several else "") for one in renderings]


def _check_count(n: int, things: str, given: Sequence[Any] | Tensor | NDArray[Any], name: str) -> None:
    if len(given) != n:
        raise FacetError(f"{n} {things} need as many {name}, not {len(given)}")


def _flat(axes: AxesLike, n: int, things: str) -> NDArray[Any]:
    """Return the caller's axes as an array, (n,)."""
    flat = np.atleast_1d(np.asarray(axes, dtype=object)).reshape(-1)
    _check_count(n, things, flat, "axes")
    return flat


def _panels(n: int, width: float) -> NDArray[Any]:
    """Return axes of n panels in a new figure, (n,), as many in each row as can be read."""
    columns = max(1, min(n, int(width / 1.5)))
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(width, rows * min(1.7, 0.8 * width) + 2 * _LINE), layout="constrained")
    return _first(figure.subplots(rows, columns, squeeze=False).reshape(-1), n)


def _grid(n_strips: int, n_pictures: int, columns: int, width: float) -> NDArray[Any]:
    """Return axes of square pictures, (n_strips, n_pictures), in a new figure with blocks of ``columns`` strips."""
    columns = max(1, min(columns, n_strips))
    blocks, side = math.ceil(n_strips / columns), width / columns
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, blocks * (n_pictures * side + _LINE)), layout=layout)
    made = np.asarray(figure.subplots(blocks * n_pictures, columns, squeeze=False))
    return _first(made.reshape(blocks, n_pictures, columns).swapaxes(1, 2).reshape(-1, n_pictures), n_strips)


def _first(axes: NDArray[Any], n: int) -> NDArray[Any]:
    """Return the first n rows of axes, and remove the others from the figure."""
    for axis in axes[n:].flat:
        axis.remove()
    return axes[:n]


def _strip(
    one: Rendering, starts: bool, images: Images | None, n_nearest: int, transparency: bool
) -> list[Tensor | None]:
    """Return a facet's pictures, top to bottom; None in the places of members that the facet doesn't have."""
    strip = [one.rgba if transparency else one.display(one.image), *([one.display(one.start)] if starts else [])]
    if images is None:
        return [*strip]
    members = [one.display(image_at(images, int(member))) for member in one.facet.members[:n_nearest]]
    return [*strip, *members, *[None] * (n_nearest - len(members))]


def _show(axis: Axes, picture: Tensor | None) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.patch.set_visible(picture is not None)
    if picture is not None:
        axis.imshow(_pixels(picture), interpolation="none" if min(picture.shape[1:]) < _SMALL else None)


def _pixels(image: Tensor) -> NDArray[Any]:
    """Return a gray, color or transparent image, (C, H, W), as (H, W, 3 or 4) in [0, 1]."""
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _overlay(
    axis: Axes, pixels: NDArray[Any], values: NDArray[Any], sign: str, method: str, alpha: float, outlier_perc: float
) -> None:
    if not {"positive": values > 0, "negative": values < 0}.get(sign, values != 0).any():  # Captum would divide by 0
        axis.imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=1)
        return
    from captum.attr import visualization  # here, since importing it takes a second

    axis.set(xticks=[], yticks=[])  # Captum hides the ticks' labels one by one, which takes most of the time
    scaled = values / np.abs(values).max()  # Captum warns if values are small
    look: dict[str, Any] = {"method": method, "sign": sign, "outlier_perc": outlier_perc, "alpha_overlay": alpha}
    colors, place = "PuOr_r" if sign == "all" else "inferno", (axis.figure, axis)
    visualization.visualize_image_attr(scaled, pixels, **look, cmap=colors, plt_fig_axis=place, use_pyplot=False)


def _outline(axis: Axes, left: float, top: float, right: float, bottom: float) -> None:
    """Outline a rectangle in white between black lines, which show on any color."""
    if math.isfinite(left):
        look: dict[str, Any] = {"edgecolor": "white", "path_effects": [withStroke(linewidth=2.2, foreground="black")]}
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, **look))


def _draw_term(axis: Axes, term: str, renderings: Sequence[Rendering], window: int | None) -> None:
    for nth, (one, name) in enumerate(zip(renderings, _titled(renderings), strict=True)):
        values, index = _running_mean(one.history.get(term, np.zeros(0)), window), one.facet.index
        apart = max(len(values) // 4, 1)
        shift = int(nth / len(renderings) * apart)  # so that markers of several facets don't overlap
        signs: dict[str, Any] = {"marker": facet_marker(index), "markevery": (shift, apart), "markersize": 3.5}
        dashes = _DASHES[index % len(_DASHES)]
        axis.plot(values, color=facet_color(index), linestyle=dashes, linewidth=0.9, label=name, **signs)
    axis.set_title(term.replace("_", " "), fontsize="small")
    axis.set_xlabel("step", fontsize="small")
    axis.tick_params(labelsize="x-small")
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.spines[["top", "right"]].set_visible(False)


def _running_mean(values: NDArray[Any], window: int | None) -> NDArray[Any]:
    """Return the mean of the values within half a window of each; NaN where a phase doesn't have the term."""
    half = (len(values) // 20 if window is None else window) // 2
    if half == 0 or not len(values):
        return values
    known, ones = np.isfinite(values), np.ones(2 * half + 1)
    sums, counts = (np.convolve(x, ones)[half : half + len(values)] for x in (np.where(known, values, 0), known))
    return np.where(known, sums / np.maximum(counts, 1), np.nan)
