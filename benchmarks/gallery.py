"""Make the documentation's gallery from an atlas: a publication of it, and pictures of its best units.

    python benchmarks/gallery.py ATLAS [--docs docs] [--size 224] [--leave-out UNIT …]

Writes docs/_extra/gallery/ (`captum-mfv publish`, without the page, which docs/conf.py makes), and
docs/images/gallery.webp and gallery_strip.webp: the facets of the best units, each unit's side by side. The best
units have several facets with a mean stability of at least .6, and each image is nearest to its own facet; the most
multifaceted come first. Prints the units.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from captum_mfv import AtlasFolder
from captum_mfv.report.publication import publish
from captum_mfv.runs.atlas import image_file

TITLE = "What the last layer of SqueezeNet 1.0 responds to"
SOURCE, LICENSE = "https://arxiv.org/abs/1602.03616", "Apache 2.0"
WIDTH, SLOTS, GAP, BETWEEN = 1200, 8, 4, 20
"""Pixels of a row, most images in it, pixels between images of a unit, and between units."""


def best(folder: AtlasFolder, leave_out: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the best units, the most multifaceted first."""

    def stability(row: dict[str, Any]) -> float:
        values = [one["stability"] for one in folder.facets if one["unit"] == row["unit"]]
        return float(np.mean([value for value in values if value is not None] or [0.0]))

    found = [
        row for row in folder.ranked() if row["n_facets"] > 1 and row["retention"] == 1 and row["unit"] not in leave_out
    ]
    return sorted((row for row in found if stability(row) >= 0.6), key=lambda row: -row["multifacetedness"])


def rows_of(units: Sequence[dict[str, Any]], n_rows: int) -> list[list[dict[str, Any]]]:
    """Return rows of units with almost as many facets, each unit in the first row that has room for its facets."""
    rows: list[list[dict[str, Any]]] = [[] for _ in range(n_rows)]
    for unit in units:
        for row in rows:
            if n_images(row) + unit["n_facets"] <= SLOTS:
                row.append(unit)
                break
    return [row for row in rows if n_images(row) >= SLOTS - 1]


def n_images(row: Sequence[dict[str, Any]]) -> int:
    """Return the number of facets of units."""
    return sum(unit["n_facets"] for unit in row)


def draw(folder: AtlasFolder, rows: Sequence[Sequence[dict[str, Any]]]) -> Image.Image:
    """Return rows of one width; the ground is transparent, for light and dark pages."""
    lines = [_line(folder, row) for row in rows]
    page = Image.new("RGBA", (WIDTH, sum(line.height + BETWEEN for line in lines) - BETWEEN), (0, 0, 0, 0))
    top = 0
    for line in lines:
        page.paste(line, (0, top))
        top += line.height + BETWEEN
    return page


def _line(folder: AtlasFolder, row: Sequence[dict[str, Any]]) -> Image.Image:
    gaps = GAP * (n_images(row) - len(row)) + BETWEEN * (len(row) - 1)
    side = (WIDTH - gaps) // n_images(row)
    line = Image.new("RGBA", (WIDTH, side), (0, 0, 0, 0))
    left = 0
    for unit in row:
        width = unit["n_facets"] * (side + GAP) - GAP
        group, mask = Image.new("RGBA", (width, side), (0, 0, 0, 0)), Image.new("L", (4 * width, 4 * side))
        for facet in range(unit["n_facets"]):
            with Image.open(folder.path / image_file(unit["unit"], facet)) as image:
                tile = image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
            group.paste(tile, (facet * (side + GAP), 0))
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * width - 1, 4 * side - 1), 32, fill=255)
        group.putalpha(Image.composite(group.getchannel("A"), Image.new("L", group.size), mask.resize(group.size)))
        line.paste(group, (left, 0))
        left += width + BETWEEN
    return line


def main() -> None:
    """Write the publication and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="UNIT", help="units that the pictures don't show")
    options = parser.parse_args()
    folder = AtlasFolder.read(options.atlas)
    place = options.docs / "_extra" / "gallery"
    sizes = publish(folder, place, title=TITLE, source=SOURCE, license=LICENSE, size=options.size)
    (place / "index.html").unlink()
    print(f"{place}: {len(folder.units)} units, {len(folder.facets)} facets, {sum(sizes.values()) / 1e6:.2f} MB")
    units = best(folder, options.leave_out)
    print(f"{len(units)} units have several facets")
    for name, n_rows in (("gallery", 3), ("gallery_strip", 1)):
        rows = rows_of(units, n_rows)
        if not rows:
            parser.error(f"too few units with several facets for the pictures: {[row['unit'] for row in units]}")
        path = options.docs / "images" / f"{name}.webp"
        draw(folder, rows).save(path, quality=80, method=6)
        shown = "; ".join(", ".join(unit["unit"] for unit in row) for row in rows)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {shown}")


if __name__ == "__main__":
    main()
