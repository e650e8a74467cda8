#!/usr/bin/env python
"""One picture of a run's images: python benchmarks/contact_sheet.py RUN_FOLDER PICTURE [--columns 5] [--starts]."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from captum_mfv import RunFolder
from captum_mfv.images import to_pil


def sheet(pictures: list[Image.Image], columns: int, gap: int = 3) -> Image.Image:
    """Pictures of one size row by row, a gap between them."""
    width, height = (side + gap for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % columns * width, i // columns * height))
    return page


def main() -> None:
    """Read the run, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--starts", action="store_true", help="the start images instead")
    args = parser.parse_args()
    folder = RunFolder.read(args.run)
    images = folder.read_images(folder.read_facets(), "_start" if args.starts else "")
    sheet([to_pil(image) for image in images], args.columns).save(args.picture, quality=88)


if __name__ == "__main__":
    main()
