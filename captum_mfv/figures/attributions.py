"""Attributions over their images."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from captum.attr import visualization
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.figures.axes import AxesLike, to_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["overlay_png", "plot_attributions"]

_COLORMAPS = {"positive": "inferno", "negative": "inferno", "absolute_value": "inferno", "all": "PuOr_r"}
_INCHES = 2.2  # side of an image in a new figure


def plot_attributions(
    images: Tensor,
    attributions: Tensor,
    axes: AxesLike | None = None,
    *,
    sign: str = "positive",
    titles: Sequence[str] | None = None,
    method: str = "blended_heat_map",
    alpha: float = 0.65,
    outlier_perc: float = 2.0,
) -> NDArray[Any]:
    """Plot attributions over their images with Captum's `visualize_image_attr`.

    Args:
        images: (N, C, H, W) in [0, 1].
        attributions: (N, C, H, W), or of another size, such as a layer's, (N, 1, h, w) or (N, h, w).
        axes: one for each image; None: one row in a new figure, ``axes[0].figure``.
        sign: ``positive``, ``negative``, ``absolute_value`` or ``all``.
        titles: one for each image.
        method: Captum's name of the kind of plot, such as ``blended_heat_map``, ``heat_map`` or ``masked_image``.
        alpha: opacity of the map, in [0, 1].
        outlier_perc: percentage of the total attribution that is clipped.

    Returns:
        The axes, (N,).

    Raises:
        ValueError: if the number of attributions, axes or titles isn't that of the images.
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
    """Return a PNG file of positive attributions, (H, W), over an image, (C, H, W) in [0, 1], of the image's size."""
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
    pixels = to_pixels(image)
    values = attribution.sum(0, keepdim=True).permute(1, 2, 0).numpy()
    if not _has(values, sign):  # Captum would divide by zero
        axis.imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
        return
    visualization.visualize_image_attr(
        values / np.abs(values).max(),  # Captum warns if values are small
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
    """Whether any value has the sign that is drawn."""
    if sign == "positive":
        return bool((values > 0).any())
    return bool((values < 0).any()) if sign == "negative" else bool(values.any())
