#!/usr/bin/env python
"""Rank units of a layer: python benchmarks/hidden_units.py MODEL WEIGHTS LAYER IMAGES SHEET.png --units 3 37 100

Finds the top images of all units in one pass and the facets of each unit, prints the units sorted by multifacetedness,
and draws a contact sheet: each unit's strongest crops, then the crops nearest to each facet's center.
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageDraw

from captum_mfv import FacetSet, ImageFolder, TopImages, Unit, find_facets, models, top_images
from captum_mfv.images import to_pil
from captum_mfv.metrics import multifacetedness

_SIDE, _STRONGEST, _NEAREST = 72, 10, 4


def row(top: TopImages, facets: FacetSet) -> Image.Image:
    """Return the sheet's row of one unit."""
    groups = [range(_STRONGEST), *(facet.members[:_NEAREST] for facet in facets)]
    picks = [(int(i), g) for g, group in enumerate(groups) for i in group if i < len(top)]
    strip = Image.new("RGB", (_SIDE * len(picks) + 12 * len(groups), _SIDE + 14), "white")
    ImageDraw.Draw(strip).text((2, 0), f"{top.unit}, {top.activations[0]:.0f} to {top.activations[-1]:.0f}", "black")
    for place, (i, group) in enumerate(picks):
        strip.paste(to_pil(top[i]).resize((_SIDE - 2, _SIDE - 2)), (place * _SIDE + 12 * group, 13))
    return strip


def main() -> None:
    """Rank the units and draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "weights", "layer", "images", "sheet"):
        parser.add_argument(name)
    parser.add_argument("--units", type=int, nargs="+", required=True)
    parser.add_argument("--top-k", type=int, default=200)
    parser.add_argument("--facets", type=int, default=4)
    args = parser.parse_args()
    model, spec = models.load(args.model, args.weights)
    units = [Unit(args.layer, index, "max") for index in args.units]
    tops = top_images(model, units, ImageFolder(args.images, spec), args.top_k, input_spec=spec, progress=True)
    rows = []
    for top in tops:
        if len(top) < args.facets:
            print(f"{top.unit}: left out, only {len(top)} images activate the unit")
            continue
        facets = find_facets(model, top.unit, top, n_facets=args.facets, input_spec=top.input_spec)
        rows.append((multifacetedness(facets), facets, top))
    rows.sort(key=lambda one: -one[0].score)
    print("unit              multifacetedness      p   coverage   stability of facets")
    for found, facets, top in rows:
        stable = " ".join(f"{facet.stability:.2f}" for facet in facets)
        print(f"{top.unit!s:18}{found.score:16.3f}{found.p_value:7.3f}{found.coverage:11.2f}   {stable}")
    strips = [row(top, facets) for _, facets, top in rows]
    sheet = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), "white")
    for place, strip in enumerate(strips):
        sheet.paste(strip, (0, sum(one.height for one in strips[:place])))
    sheet.save(args.sheet)


if __name__ == "__main__":
    main()
