"""Figures of facets, on matplotlib axes of yours or of a figure of their own; pyplot's state is left alone.

A figure of its own is ``axes[0].figure`` (of one axis, ``axis.figure``), at the width in inches that you say: 6.75 is
the text of a two-column paper, 3.25 one column. Fonts follow ``matplotlib.rcParams``. A facet has the same colour and
marker in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from captum.attr import visualization
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.display.palette import facet_color, facet_marker
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, image_at
from captum_mfv.optvis.render import Rendering

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["overlay_png", "plot_attributions", "plot_embedding", "plot_facets", "plot_history"]

_AxesLike: TypeAlias = "Axes | Sequence[Axes] | NDArray[Any]"

_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5)))
_COLORMAPS = {"positive": "inferno", "negative": "inferno", "absolute_value": "inferno", "all": "PuOr_r"}
_INCHES = 2.2  # side of an image in a figure of our own
_SMALL = 64  # pixels of a side below which an image is drawn pixel by pixel
_TITLE = 0.22  # height of a line of text in inches


def plot_facets(
    renderings: Rendering | Sequence[Rendering],
    axes: _AxesLike | None = None,
    *,
    titles: Sequence[str] | None = None,
    starts: bool = False,
    images: Images | None = None,
    n_nearest: int = 3,
    transparency: bool = False,
    columns: int = 5,
    width: float = 6.75,
) -> NDArray[Any]:
    """Images of facets side by side; under each, if you like, where it started and real images of its facet.

    Args:
        renderings: what `render_facets` returned, or a run's `RunFolder.read_renderings`.
        axes: one for each picture, a facet's own one after the other; None: a figure of their own.
        titles: one for each rendering; by default its facet's number.
        starts: show the start image too.
        images: the dataset in which the facets were found, to show the members nearest to each facet's center.
        n_nearest: how many of them.
        transparency: let what doesn't matter to the facet fade out.
        columns: facets beside each other, in a figure of their own.
        width: of that figure, in inches.

    Returns:
        The axes, (n_renderings,), or (n_renderings, n_pictures) if there are starts or members.

    Raises:
        TypeError: if something else than renderings is given.
        FacetError: if there is nothing to show, or there are not as many axes or titles as needed.
    """
    shown = _renderings(renderings)
    names = _names(shown) if titles is None else list(titles)
    strips = [_strip(one, starts, images, n_nearest, transparency) for one in shown]
    n_pictures = len(strips[0])
    made = _grid(len(shown), n_pictures, columns, width) if axes is None else axes
    places = _places(made, len(shown) * n_pictures, "pictures").reshape(len(shown), n_pictures)
    if len(names) != len(shown):
        raise FacetError(f"{len(shown)} renderings need as many titles, not {len(names)}")
    rows = ["", *(["start"] if starts else []), *(["nearest"] if images is not None else [])]
    for one, strip, column, name in zip(shown, strips, places, names, strict=True):
        for picture, axis in zip(strip, column, strict=True):
            _show(axis, picture)
        _frame(column[0], facet_color(one.facet.index))
        column[0].set_title(name, fontsize="small")
    for column in places[:: columns if axes is None else len(places)]:
        for axis, row in zip(column, rows, strict=False):
            axis.set_ylabel(row, fontsize="small")
    return places[:, 0] if n_pictures == 1 else places


def plot_embedding(
    facets: FacetSet,
    axis: Axes | None = None,
    *,
    titles: Sequence[str] | None = None,
    legend: bool = False,
    size: float = 14.0,
    width: float = 3.25,
) -> Axes:
    """The map of images in which the facets were found: a point an image, the facet's number in its midst.

    Args:
        facets: the facets; of an embedding with more than two axes, the first two are drawn.
        axis: where; None: a square figure of its own.
        titles: one for each facet; by default its number.
        legend: name the facets, and how many images each has, beside the map.
        size: of a point, in square typographic points.
        width: of a figure of its own, in inches; a legend comes on top.

    Returns:
        The axis.

    Raises:
        TypeError: if something else than a facet set is given.
        FacetError: if there are not as many titles as facets.
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


def plot_history(
    renderings: Rendering | Sequence[Rendering],
    axes: _AxesLike | None = None,
    *,
    terms: Sequence[str] | None = None,
    window: int | None = None,
    legend: bool = True,
    width: float = 6.75,
) -> NDArray[Any]:
    """How the unit's activation and each term of the objective went over the steps, a panel each, a line a facet.

    Args:
        renderings: what `render_facets` returned, or a run's `RunFolder.read_renderings`.
        axes: one for each term; None: a figure of their own.
        terms: which, of a rendering's ``history``; by default the activation, then the terms of the objective.
        window: steps of a running mean, since transforms make each step's values jump; by default a twentieth of
            all, 1 for the values themselves.
        legend: name the facets, where there are several: under a figure of their own, else in the last panel.
        width: of a figure of their own, in inches.

    Returns:
        The axes, (n_terms,).

    Raises:
        TypeError: if something else than renderings is given.
        FacetError: if there is nothing to show, no such term, or there are not as many axes as terms.
    """
    shown = _renderings(renderings)
    found = list(dict.fromkeys(["activation", *(term for one in shown for term in one.history)]))
    chosen = found if terms is None else list(terms)
    if unknown := [term for term in chosen if term not in found]:
        raise FacetError(f"no term {unknown[0]!r} in the history; there are {', '.join(found)}")
    made = _panels(len(chosen), width) if axes is None else axes
    places = _places(made, len(chosen), "terms")
    for axis, term in zip(places, chosen, strict=True):
        for nth, (one, name) in enumerate(zip(shown, _names(shown), strict=True)):
            values = _running_mean(one.history.get(term, np.zeros(0)), window)
            _line(axis, values, one.facet.index, name, nth / len(shown))
        _dress(axis, term)
    if legend and len(shown) > 1:
        _name_lines(places, outside=axes is None, columns=int(width / 0.85))
    return places


def plot_attributions(
    images: Tensor,
    attributions: Tensor,
    axes: _AxesLike | None = None,
    *,
    sign: str = "positive",
    titles: Sequence[str] | None = None,
    method: str = "blended_heat_map",
    alpha: float = 0.65,
    outlier_perc: float = 2.0,
) -> NDArray[Any]:
    """Attributions over their images, drawn by Captum's `visualize_image_attr`.

    Args:
        images: (N, C, H, W) in [0, 1].
        attributions: (N, C, H, W), or (N, 1, h, w) or (N, h, w) of another size, such as a layer's.
        axes: one for each image; None: a row in a figure of their own, ``axes[0].figure``.
        sign: ``positive``, ``negative``, ``absolute_value`` or ``all``.
        titles: one for each image.
        method: Captum's, such as ``blended_heat_map``, ``heat_map`` or ``masked_image``.
        alpha: how much the map covers of the image, in [0, 1].
        outlier_perc: percent of the attributed mass that saturates.

    Returns:
        The axes, (N,).

    Raises:
        ValueError: if there are not as many attributions, axes and titles as images.
    """
    if attributions.ndim == 3:
        attributions = attributions[:, None]
    if axes is None:
        figure = Figure(figsize=(_INCHES * len(images), _INCHES * 1.12), layout="constrained")
        axes = figure.subplots(1, len(images), squeeze=False)
    places = np.atleast_1d(np.asarray(axes, dtype=object)).reshape(-1)
    names = [""] * len(images) if titles is None else list(titles)
    if not len(images) == len(attributions) == len(places) == len(names):
        raise ValueError(
            f"{len(images)} images need as many attributions, axes and titles, "
            f"not {len(attributions)}, {len(places)} and {len(names)}"
        )
    for axis, image, attribution, name in zip(places, images, _of_size(attributions, images), names, strict=True):
        _draw(axis, image, attribution, sign, method, alpha, outlier_perc)
        if name:
            axis.set_title(name, fontsize="small")
    return places


def overlay_png(image: Tensor, attribution: Tensor) -> bytes:
    """A PNG file of an image's size: positive attributions, (H, W), over the image, (C, H, W) in [0, 1]."""
    height, width = image.shape[-2:]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    plot_attributions(image[None], attribution[None], figure.add_axes((0, 0, 1, 1)))
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _of_size(attributions: Tensor, images: Tensor) -> Tensor:
    attributions = attributions.detach().float().cpu()
    if attributions.shape[-2:] == images.shape[-2:]:
        return attributions
    return torch.nn.functional.interpolate(attributions, images.shape[-2:], mode="bilinear", align_corners=False)


def _draw(
    axis: Axes, image: Tensor, attribution: Tensor, sign: str, method: str, alpha: float, outlier_perc: float
) -> None:
    pixels = _pixels(image)
    values = attribution.sum(0, keepdim=True).permute(1, 2, 0).numpy()
    if not _has(values, sign):  # Captum would divide by zero
        axis.imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
        return
    visualization.visualize_image_attr(
        values / np.abs(values).max(),  # of any scale: Captum warns of values that are small
        pixels,
        method=method,
        sign=sign,
        plt_fig_axis=(axis.figure, axis),
        outlier_perc=outlier_perc,
        cmap=_COLORMAPS[sign],
        alpha_overlay=alpha,
        use_pyplot=False,
    )
    axis.axis("off")


def _has(values: NDArray[Any], sign: str) -> bool:
    """Whether there is anything of this sign to show."""
    if sign == "positive":
        return bool((values > 0).any())
    return bool((values < 0).any()) if sign == "negative" else bool(values.any())


def _renderings(given: Rendering | Sequence[Rendering]) -> list[Rendering]:
    shown = [given] if isinstance(given, Rendering) else list(given)
    for one in shown:
        if not isinstance(one, Rendering):
            raise TypeError(f"renderings must be what render_facets returns, not {type(one).__name__}")
    if not shown:
        raise FacetError("there are no renderings to show")
    return shown


def _names(renderings: Sequence[Rendering]) -> list[str]:
    """Each rendering's facet, and its seed where they differ."""
    several = len({one.seed for one in renderings}) > 1
    return [f"facet {one.facet.index}" + (f", seed {one.seed}" if several else "") for one in renderings]


def _places(axes: _AxesLike, n: int, what: str) -> NDArray[Any]:
    """The caller's axes in a row, (n,)."""
    places = np.atleast_1d(np.asarray(axes, dtype=object)).reshape(-1)
    if len(places) != n:
        raise FacetError(f"{n} {what} need as many axes, not {len(places)}")
    return places


def _panels(n: int, width: float) -> NDArray[Any]:
    """Axes of panels, (n,), as many beside each other as can be read."""
    columns = max(1, min(n, int(width / 1.5)))
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(width, rows * min(1.7, 0.8 * width) + 2 * _TITLE), layout="constrained")
    made = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in made[n:]:
        axis.remove()
    return np.asarray(made[:n])


def _grid(n_strips: int, n_pictures: int, columns: int, width: float) -> NDArray[Any]:
    """Axes of strips of square pictures, (n_strips, n_pictures), in blocks of so many columns."""
    columns = max(1, min(columns, n_strips))
    blocks, side = math.ceil(n_strips / columns), width / columns
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, blocks * (n_pictures * side + _TITLE)), layout=layout)
    made = np.asarray(figure.subplots(blocks * n_pictures, columns, squeeze=False))
    strips = made.reshape(blocks, n_pictures, columns).swapaxes(1, 2).reshape(-1, n_pictures)
    for axis in strips[n_strips:].flat:
        axis.remove()
    return strips[:n_strips]


def _strip(
    one: Rendering, starts: bool, images: Images | None, n_nearest: int, transparency: bool
) -> list[Tensor | None]:
    """A facet's pictures, top to bottom; None where it has fewer members than are to be shown."""
    strip: list[Tensor | None] = [one.rgba if transparency else one.image]
    if starts:
        strip.append(one.start)
    if images is not None:
        members = [image_at(images, int(member)) for member in one.facet.members[:n_nearest]]
        strip += [*members, *[None] * (n_nearest - len(members))]
    return strip


def _show(axis: Axes, picture: Tensor | None) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if picture is None:
        axis.patch.set_visible(False)
        return
    pixels = _pixels(picture)
    axis.imshow(pixels, interpolation="none" if min(pixels.shape[:2]) < _SMALL else None)


def _frame(axis: Axes, color: str) -> None:
    axis.spines[:].set(visible=True, color=color, linewidth=1.5)


def _pixels(image: Tensor) -> NDArray[Any]:
    """(H, W, 3 or 4) in [0, 1] of a grey image, one in colours, or one with transparency."""
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _plane(embedding: NDArray[Any]) -> NDArray[Any]:
    """The first two axes of an embedding, (N, 2); of one axis, a line."""
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
    """A facet's name at the point that is nearest to the middle of its points."""
    rows = rows[np.isfinite(rows[:, 0])]
    x, y = rows[np.square(rows - np.median(rows, axis=0)).sum(1).argmin()]
    halo = withStroke(linewidth=2.5, foreground=axis.get_facecolor())
    axis.text(x, y, name, ha="center", va="center", fontsize="small", fontweight="bold", path_effects=[halo])


def _line(axis: Axes, values: NDArray[Any], index: int, label: str, phase: float) -> None:
    """A facet's line; its markers stand where no other's do."""
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
    """Of the values within half a window of each; NaN where a phase doesn't have the term."""
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
