"""HTML tables and pictures for notebooks, without external resources.

Text has the notebook's own color, so that it is readable in light and dark themes.
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

__all__ = ["data_url", "encoded", "picture", "png", "swatch", "table"]

_SIDE = 224  # largest side of a picture in a table, in pixels
_TINY = 64  # pixels; smaller images are upscaled without interpolation


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table of texts and of HTML from `swatch` and `picture`."""
    title = f'<caption style="text-align:left;color:inherit;white-space:nowrap">{_safe(caption)}</caption>'
    body = "".join(_row("td", row) for row in rows)
    return f"<table>{title}<thead>{_row('th', head)}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    inside = "".join(f'<{tag} style="text-align:right;white-space:nowrap">{_safe(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inside}</tr>"


class _Html(str):
    """Text that is HTML and needs no escaping."""


def _safe(text: str) -> str:
    return text if isinstance(text, _Html) else escape(text)


def swatch(facet: int, text: str) -> str:
    """Return HTML of a text after the facet's marker in the facet's color."""
    corners = ",".join(f"{50 + 40 * x:g}% {50 + 40 * y:g}%" for x, y in SHAPES[facet_marker(facet)])
    shape = f"clip-path:polygon({corners})" if corners else "border-radius:50%"
    color = f"background:{facet_color(facet)};box-shadow:0 0 0 1px #8888"  # the ring makes dark colors visible on black
    box = f"display:inline-block;width:.8em;height:.8em;margin-right:.4em;{color};{shape}"
    return _Html(f'<span style="{box}"></span>{escape(text)}')


def picture(image: Tensor, text: str) -> str:
    """Return HTML of an image, (C, H, W) in [0, 1], at most 224 pixels wide; the text if C isn't 1 or 3."""
    data = png(image, _SIDE)
    if data is None:
        return _Html(escape(text))
    scaled = ";image-rendering:pixelated" if image.shape[-1] <= _TINY else ""
    return _Html(f'<img alt="{escape(text)}" src="{data_url(data, "png")}" style="min-width:112px{scaled}">')


def png(image: Tensor, side: int | None = None) -> bytes | None:
    """Return a PNG file of an image, (C, H, W) in [0, 1], with sides up to ``side``; None if C isn't 1 or 3."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        return None
    small = to_pil(image)
    if side is not None:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return encoded(small, "PNG")


def encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    """Return an image file of a kind that Pillow can write."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(content: bytes, kind: str) -> str:
    """Return an image file as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
