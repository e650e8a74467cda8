"""Images as data URLs, small enough that a page of ten facets fits in an e-mail."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image
from torch import Tensor

__all__ = ["THUMBNAIL", "data_url", "pixel_class", "small_url"]

THUMBNAIL = 112
"""Side of thumbnails, in pixels."""

_TINY = 64  # pixels; smaller images are upscaled without interpolation
_MOST = 400_000  # bytes of a PNG; larger images are compressed with loss


def data_url(image: Image.Image) -> str:
    """Return the data URL of an image, compressed with loss if the image is large."""
    png = _encoded(image, "PNG")
    return _url(png, "png") if len(png) <= _MOST else _url(_encoded(image, "WEBP", quality=92), "webp")


def small_url(image: Image.Image, side: int = THUMBNAIL) -> str:
    """Return the data URL of an image downscaled to a side, compressed with loss."""
    if image.width > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return _url(_encoded(image.convert("RGB"), "WEBP", quality=85), "webp")


def pixel_class(image: Tensor) -> str:
    """Return the CSS class of an image, (C, H, W), by its size."""
    return "pixels" if image.shape[-1] <= _TINY else ""


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
