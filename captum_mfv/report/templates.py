"""Templates of self-contained HTML pages that make no network requests and run only their own script."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from captum_mfv._version import __version__
from captum_mfv.display.palette import COLORS, NOISE, SHAPES, Polygon, facet_marker
from captum_mfv.display.text import visible
from captum_mfv.errors import RunError
from captum_mfv.report import words
from captum_mfv.report.charts import sparkline
from captum_mfv.storage.files import write_whole

__all__ = ["environment", "fill", "format_interval", "p_value", "save", "short_name"]

_FIRST_STRONG, _END = "\u2068", "\u2069"  # a Unicode isolate, for attributes, which can't contain <bdi>


def fill(template: str, **values: Any) -> bytes:
    """Render a template as UTF-8; all values are escaped."""
    templates = environment()
    style = Markup(templates.get_template("page.css").render(colors=COLORS, noise=NOISE))
    script = Markup(templates.get_template("page.js").render())
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = templates.get_template(template)
    html = page.render(style=style, script=script, policy=policy, version=__version__, **values)
    return html.encode("utf-8", "replace")


def save(path: Path, html: bytes) -> Path:
    """Write a page and return its path.

    Raises:
        RunError: if the path is a folder.
    """
    if path.is_dir():
        raise RunError(f"{path} is a folder; the page can't be written")
    write_whole(path, html)
    return path


def environment() -> Environment:
    """Return the environment of the templates, with their filters."""
    made = Environment(loader=PackageLoader("captum_mfv", "report"), autoescape=True, undefined=StrictUndefined)
    made.globals.update(words=words, shapes={marker: _outline(shape) for marker, shape in SHAPES.items()})
    made.filters.update(
        above=_above,
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


def _above(percentile: float) -> str:
    """Return a percentile among real images in words."""
    return "above all real images" if percentile == 1 else f"above {percentile:.0%} of the real images"


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
