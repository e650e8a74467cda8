#!/usr/bin/env python
"""Draw scores against numbers of steps, from results of the benchmark.

    captum-mfv bench facet lucent --steps 25,50,100,200 --suite benchmarks/suite.json --data DATA --tuning
    python benchmarks/quality_time.py out/bench docs/images/quality_time.png facet lucent --steps 25 50 100 200

A panel per score has a line per method, the mean over the cells that all methods have with all numbers of steps; with
one method, also a line per network. The dashed line is that of the real images. The means are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt

from captum_mfv.bench import Cell, Result, ResultFolder, get_suite

SUITE = get_suite(Path(__file__).with_name("suite.json"))
PANELS = {"retention": "retention", "top1": "top-1", "predicts": "predicts"}


def main() -> None:
    """Read the rows, print the means and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("methods", nargs="+", help="names of methods without the number of steps")
    parser.add_argument("--steps", nargs="+", type=int, required=True)
    args = parser.parse_args()
    found = {(row.cell, row.method): row for row in ResultFolder(args.out).read() if row.seed == 0}
    names = {(method, n): row_name(method, n, found) for method in args.methods for n in args.steps}
    cells = [cell for cell in (*SUITE.cells(tuning=True), *SUITE.cells()) if cell.class_name]
    cells = [cell for cell in cells if all((cell.name, name) in found for name in ("real images", *names.values()))]
    if not cells:
        parser.error(f"no cell in {args.out} has rows of {', '.join(names.values())}")
    lines = {method: (method, cells) for method in args.methods}
    if len(args.methods) == 1:
        (method,) = args.methods
        shown = {name: [cell for cell in cells if cell.network == name] for name in SUITE.networks}
        lines = {**{name: (method, own) for name, own in shown.items() if own}, "mean": (method, cells)}
    figure, axes = plt.subplots(1, len(PANELS), figsize=(3.2 * len(PANELS), 2.8), layout="constrained")
    for (score, title), axis in zip(PANELS.items(), axes, strict=True):

        def mean(name: str, own: list[Cell], score: str = score) -> float | None:
            values = [found[cell.name, name].scores.get(score) for cell in own]
            return None if None in values else fmean(values)

        for label, (method, own) in lines.items():
            values = [mean(names[method, n], own) for n in args.steps]
            style = {"color": "black", "linewidth": 2} if label == "mean" else {}
            axis.plot(args.steps, values, "o-", label=label, markersize=3, **style)
            print(title, label, *(f"{n}: {value:.3f}" for n, value in zip(args.steps, values, strict=True)))
        if (real := mean("real images", cells)) is not None:
            axis.axhline(real, color="gray", linestyle="--", linewidth=1, label="real images")
            print(title, f"real images: {real:.3f}")
        axis.set(title=title, xlabel="steps", xscale="log", ylim=(0, 1))
        axis.set_xticks(args.steps, map(str, args.steps))
        axis.minorticks_off()
    axes[-1].legend(frameon=False, fontsize=8)
    figure.savefig(args.picture, dpi=110)
    print(len(cells), "cells:", *(cell.name for cell in cells))


def row_name(method: str, steps: int, found: dict[tuple[str, str], Result]) -> str:
    """Return the name of a method's rows; a recipe with its own number of steps has the recipe's name."""
    name = f"{method}-{steps}"
    return name if any(other == name for _, other in found) else method


if __name__ == "__main__":
    main()
