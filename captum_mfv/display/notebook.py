"""What notebooks show of our values: small tables and pictures as HTML that needs nothing from elsewhere.

Text takes the notebook's own colours, so that it can be read in light and dark ones.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image
from torch import Tensor

from captum_mfv.display.palette import SHAPES, facet_color, facet_marker
from captum_mfv.images import to_pil

__all__ = ["picture", "png", "swatch", "table"]

_SIDE = 224  # pixels of a picture in a table, at most
_TINY = 64  # pixels; smaller images are shown as squares, not blurred


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts and of HTML that `swatch` and `picture` made."""
    title = f'<caption style="text-align:left;color:inherit;white-space:nowrap">{_safe(caption)}</caption>'
    body = "".join(_row("td", row) for row in rows)
    return f"<table>{title}<thead>{_row('th', head)}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    inside = "".join(f'<{tag} style="text-align:right;white-space:nowrap">{_safe(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inside}</tr>"


class _Html(str):
    """Text that is HTML already."""


def _safe(text: str) -> str:
    return text if isinstance(text, _Html) else escape(text)


def swatch(facet: int, text: str) -> str:
    """A text after a facet's colour in its shape."""
    corners = ",".join(f"{50 + 40 * x:g}% {50 + 40 * y:g}%" for x, y in SHAPES[facet_marker(facet)])
    shape = f"clip-path:polygon({corners})" if corners else "border-radius:50%"
    color = f"background:{facet_color(facet)};box-shadow:0 0 0 1px #8888"  # the ring shows dark colours on black
    box = f"display:inline-block;width:.8em;height:.8em;margin-right:.4em;{color};{shape}"
    return _Html(f'<span style="{box}"></span>{escape(text)}')


def picture(image: Tensor, text: str) -> str:
    """An image, (C, H, W) in [0, 1], at most 224 pixels wide; the text stands for one that has no colours to show."""
    data = png(image, _SIDE)
    if data is None:
        return _Html(escape(text))
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    scaled = ";image-rendering:pixelated" if image.shape[-1] <= _TINY else ""
    return _Html(f'<img alt="{escape(text)}" src="{source}" style="min-width:112px{scaled}">')


def png(image: Tensor, side: int | None = None) -> bytes | None:
    """A PNG file of an image, (C, H, W) in [0, 1], its sides so long at most; None of one with other channels."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        return None
    small = to_pil(image)
    if side is not None:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()
