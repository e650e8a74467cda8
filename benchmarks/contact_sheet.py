#!/usr/bin/env python
"""Draw the images of runs on one sheet: python benchmarks/contact_sheet.py PICTURE RUN [RUN …] [--columns 5] [--starts]

A run is a folder with images/facet_NN.png, as `captum-mfv run` and benchmarks/quality.py write it, or with
facet_NN.png, as `captum-mfv bench` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image


def sheet(pictures: list[Image.Image], columns: int, gap: int = 3) -> Image.Image:
    """Return a grid of pictures of one size, row by row."""
    width, height = (side + gap for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % columns * width, i // columns * height))
    return page


def side_by_side(sheets: list[Image.Image], gap: int = 28) -> Image.Image:
    """Return sheets in one row."""
    page = Image.new("RGB", (sum(one.width + gap for one in sheets) - gap, max(one.height for one in sheets)), "white")
    left = 0
    for one in sheets:
        page.paste(one, (left, 0))
        left += one.width + gap
    return page


def main() -> None:
    """Read the runs and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--side", type=int, default=128, help="side of each image in pixels")
    parser.add_argument("--starts", action="store_true", help="draw the start images")
    args = parser.parse_args()
    names = "facet_??_start.png" if args.starts else "facet_??.png"
    sheets = []
    for run in args.runs:
        paths = sorted([*run.glob(f"images/{names}"), *run.glob(names)])
        pictures = [Image.open(path).convert("RGB") for path in paths]
        sheets.append(sheet([one.resize((args.side,) * 2, Image.Resampling.LANCZOS) for one in pictures], args.columns))
    side_by_side(sheets).save(args.picture, quality=88)


if __name__ == "__main__":
    main()
