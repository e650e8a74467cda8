"""Templates, images and formats of self-contained HTML pages, which make no network requests."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from captum_mfv._version import __version__
from captum_mfv.display import notebook
from captum_mfv.display.palette import COLORS, NOISE, SHAPES, Polygon, facet_marker
from captum_mfv.errors import RunError
from captum_mfv.report.charts import sparkline
from captum_mfv.storage.files import write_whole
from captum_mfv.storage.untrusted import visible

__all__ = [
    "CONTROLS",
    "REAL",
    "SCORES",
    "THUMBNAIL",
    "data_url",
    "environment",
    "fill",
    "format_interval",
    "p_value",
    "pixel_class",
    "save",
    "short_name",
    "small_url",
]

SCORES: Mapping[str, tuple[str, str]] = {
    "retention": (
        "Nearest to their own facet",
        "synthesized images whose nearest center of real images is their own facet's",
    ),
    "centered": ("Nearest, after centering", "the same, after the mean code of all images is subtracted"),
    "predicts": ("Classify real images", "real images whose nearest synthesized image is their own facet's"),
    "top1": ("Top-1 of the class", "images that the independent network classifies as the unit's class"),
    "probability": ("Probability of the class", "mean probability of the unit's class"),
    "distance": ("Distance to real images", "relative to the distance of real images from each other, which is 1"),
    "precision": ("Precision", "images in the neighborhood of a real image, its 3 nearest real images"),
    "covered": ("Covered real images", "real images with a synthesized image in their neighborhood"),
    "diversity": ("Diversity", "how much the images differ from each other: 1 \u2212 cosine"),
}
"""Title and meaning of each of `metrics.EvaluationScores`."""

CONTROLS: Mapping[str, str] = {"real image": "one real image per facet", "start": "start images"}
"""Controls that every evaluation has; rendered controls have their own names."""

REAL: Mapping[str, str] = {"predicts": "real_predicts", "top1": "real_top1", "probability": "real_probability"}
"""Scores of all real images, by the score of synthesized images that they are compared with."""

THUMBNAIL = 112
"""Side of thumbnails, in pixels."""

_TINY = 64  # pixels; smaller images are upscaled without interpolation
_MOST = 400_000  # bytes of a PNG; larger images are compressed with loss
_FIRST_STRONG, _END = "\u2068", "\u2069"  # a Unicode isolate, for attributes, which can't contain <bdi>


def fill(
    template: str, *, parts: Sequence[str] = ("page",), images: str = "data:", scripts: str = "", **values: Any
) -> bytes:
    """Render a template as UTF-8; all values are escaped.

    Args:
        template: the template.
        parts: names of the style sheets and scripts that follow ``base.css`` and ``base.js``.
        images: sources of images, as a Content-Security-Policy names them.
        scripts: sources of scripts other than the page's own.
        values: the template's variables.
    """
    templates = environment()
    style, script = (
        Markup("".join(templates.get_template(name).render(colors=COLORS, noise=NOISE) + "\n" for name in names))
        for names in (_existing(templates, parts, ".css"), _existing(templates, parts, ".js"))
    )
    sources = f"img-src {images}; style-src {_digest(style)}; script-src {_digest(script)} {scripts}".rstrip()
    policy = f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"
    page = templates.get_template(template)
    html = page.render(style=style, script=script, policy=policy, version=__version__, **values)
    return html.encode("utf-8", "replace")


def _existing(templates: Environment, parts: Sequence[str], suffix: str) -> list[str]:
    """Return the names of the templates with a suffix among the parts, after the base's."""
    known = set(templates.list_templates())
    return [name for name in (f"{part}{suffix}" for part in ("base", *parts)) if name in known]


def save(path: Path, html: bytes) -> Path:
    """Write a page and return its path.

    Raises:
        RunError: if the path is a folder.
    """
    if path.is_dir():
        raise RunError(f"{path} is a folder; the page can't be written")
    write_whole(path, html)
    return path


@cache
def environment() -> Environment:
    """Return the environment of the templates, with their filters; templates are compiled once."""
    made = Environment(loader=PackageLoader("captum_mfv", "report"), autoescape=True, undefined=StrictUndefined)
    made.globals.update(
        SCORES=SCORES,
        CONTROLS=CONTROLS,
        REAL=REAL,
        shapes={marker: _outline(shape) for marker, shape in SHAPES.items()},
    )
    made.filters.update(
        above=lambda share: f"above {'all real images' if share == 1 else f'{share:.0%} of the real images'}",
        hue=lambda index: f"hue-{index % len(COLORS)}" if index >= 0 else "hue-none",
        ink_on=_ink_on,
        interval=format_interval,
        shape=lambda index: f"shape-{list(SHAPES).index(facet_marker(index))}",
        short=short_name,
        isolated=lambda text: f"{_FIRST_STRONG}{visible(text)}{_END}",
        marker=facet_marker,
        number=lambda value: f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}",
        p_value=lambda p: p_value(p, "p\u00a0"),
        percent=lambda share: f"{share:.0%}",
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        sparkline=sparkline,
        visible=visible,
    )
    return made


def _digest(text: str) -> str:
    """Return the hash by which a Content-Security-Policy allows an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _outline(shape: Polygon) -> str:
    """Return a marker's shape as an SVG path around (0, 0)."""
    if not shape:
        return "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z"
    return f"M{'L'.join(f'{x:g} {y:g}' for x, y in shape)}z"


def p_value(p: float, name: str = "") -> str:
    """Format a p-value, with its name, as papers do."""
    return f"{name}<\u00a0.001" if p < 0.001 else f"{name}{'=' + chr(0xA0) if name else ''}{p:.2g}".replace("0.", ".")


def short_name(path: str) -> str:
    """Return a file's name without its folders."""
    return path.replace("\\", "/").rpartition("/")[2] or path


def format_interval(found: dict[str, Any]) -> str:
    """Format an estimate with its interval."""
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _ink_on(color: str) -> str:
    """Return black or white, whichever has more contrast with a color."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#fff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#111"


def data_url(image: Image.Image) -> str:
    """Return the data URL of an image, compressed with loss if the image is large."""
    content, kind = notebook.encoded(image, "PNG"), "png"
    if len(content) > _MOST:
        content, kind = notebook.encoded(image, "WEBP", quality=92), "webp"
    return notebook.data_url(content, kind)


def small_url(image: Image.Image, side: int = THUMBNAIL) -> str:
    """Return the data URL of an image downscaled to a side, compressed with loss."""
    if image.width > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return notebook.data_url(notebook.encoded(image.convert("RGB"), "WEBP", quality=85), "webp")


def pixel_class(image: Tensor) -> str:
    """Return the CSS class of an image, (C, H, W), by its size."""
    return "pixels" if image.shape[-1] <= _TINY else ""
