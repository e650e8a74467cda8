"""Images of facets in a grid, with their start images and real images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.display.palette import facet_color
from captum_mfv.errors import FacetError
from captum_mfv.figures.axes import TITLE, AxesLike, default_titles, flat_axes, to_list, to_pixels
from captum_mfv.images import Images, image_at
from captum_mfv.optvis.render import Rendering

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_facets"]

_SMALL = 64  # pixels of a side below which an image is drawn without interpolation


def plot_facets(
    renderings: Rendering | Sequence[Rendering],
    axes: AxesLike | None = None,
    *,
    titles: Sequence[str] | None = None,
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
        axes: one for each picture, the pictures of a facet in succession; None: a new figure.
        titles: one for each rendering; by default the facet's number.
        starts: show the start images too.
        images: the dataset in which the facets were found, to show the members nearest to each facet's center.
        n_nearest: number of these members.
        transparency: draw the image with its transparency, which fades out pixels that don't affect the facet.
        columns: number of facets in each row of a new figure.
        width: width of a new figure in inches.

    Returns:
        The axes, (n_renderings,), or (n_renderings, n_pictures) with start images or members.

    Raises:
        TypeError: if ``renderings`` holds anything else.
        FacetError: if there are no renderings, or the number of axes or titles is wrong.
    """
    shown = to_list(renderings)
    names = default_titles(shown) if titles is None else list(titles)
    strips = [_strip(one, starts, images, n_nearest, transparency) for one in shown]
    n_pictures = len(strips[0])
    made = _grid(len(shown), n_pictures, columns, width) if axes is None else axes
    places = flat_axes(made, len(shown) * n_pictures, "pictures").reshape(len(shown), n_pictures)
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


def _grid(n_strips: int, n_pictures: int, columns: int, width: float) -> NDArray[Any]:
    """Return axes of square pictures, (n_strips, n_pictures), in a new figure with blocks of ``columns`` strips."""
    columns = max(1, min(columns, n_strips))
    blocks, side = math.ceil(n_strips / columns), width / columns
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, blocks * (n_pictures * side + TITLE)), layout=layout)
    made = np.asarray(figure.subplots(blocks * n_pictures, columns, squeeze=False))
    strips = made.reshape(blocks, n_pictures, columns).swapaxes(1, 2).reshape(-1, n_pictures)
    for axis in strips[n_strips:].flat:
        axis.remove()
    return strips[:n_strips]


def _strip(
    one: Rendering, starts: bool, images: Images | None, n_nearest: int, transparency: bool
) -> list[Tensor | None]:
    """Return a facet's pictures, top to bottom; None in the places of members that the facet doesn't have."""
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
    pixels = to_pixels(picture)
    axis.imshow(pixels, interpolation="none" if min(pixels.shape[:2]) < _SMALL else None)


def _frame(axis: Axes, color: str) -> None:
    axis.spines[:].set(visible=True, color=color, linewidth=1.5)
