#!/usr/bin/env python
"""Compare codes in which facets are found: python benchmarks/codes.py --data DATA --out out/bench

The images of each class cell of `suite.json` are clustered into as many facets as there, in several codes:

default       that of `find_facets`: output of the last layer with positions, below a head, averaged over positions
earlier       the same of an earlier layer, that of the network's first hidden unit there
both          default and earlier, each scaled to a total variance of 1, concatenated
PURE          positive part of gradient times activation of the default's layer (`attr.pure_code`)
standardized  default, each channel scaled to a variance of 1

With `--layers`, in the default's and these layers' outputs, averaged over positions: one network's, named by `--cells`.

The two other networks evaluate the facets in their own default codes. Scores are means over both and over seeds:

agreement  adjusted Rand index with the clusters that are found in the other network's code; chance is 0
predicts   share of images whose most similar mean code of a facet's other images is that of their own facet

The table gives means over cells and differences from the default's, with 95 % intervals (bootstrap samples of classes).
OUT/codes.jsonl (or codes-LAYER.jsonl) has a line per cell, which is not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from captum_mfv import FacetFinder
from captum_mfv.activations.codes import collect
from captum_mfv.attr import pure_code
from captum_mfv.bench import Cell, Scene, Scenes, get_suite
from captum_mfv.bench.table import figure
from captum_mfv.metrics import estimate
from captum_mfv.metrics.comparison import cluster_means
from captum_mfv.metrics.scores import real_predicts

SUITE = get_suite(Path(__file__).with_name("suite.json"))
SCORES = ("agreement", "predicts")

Codes = NDArray[np.float32]


def codes(scene: Scene, cell: Cell) -> dict[str, Codes]:
    """Return the codes of a cell's images by name, (n, D) each."""
    earlier = next(one.unit for one in SUITE.units if one.network == cell.network).rpartition(":")[0]
    pure = pure_code(scene.model, cell.unit, input_spec=scene.spec)
    found = collect(scene.model, cell.unit, scene.images, code=earlier, code_fn=pure, input_spec=scene.spec)
    assert found.fn_codes is not None
    default, rows = scene.facets.codes, found.indices
    deviations = default[rows].std(0)
    by_name = {
        "default": default,
        "earlier": found.codes,
        "both": np.concatenate([one / np.sqrt(one[rows].var(0).sum()) for one in (default, found.codes)], 1),
        "PURE": found.fn_codes,
        "standardized": default / np.where(deviations > 0, deviations, 1),
    }
    return {name: values[rows] for name, values in by_name.items()}


def layer_codes(scene: Scene, cell: Cell, layers: Sequence[str]) -> dict[str, Codes]:
    """Return the default code and those of layers."""
    found = {"default": scene.facets.codes}
    for layer in layers:
        found[layer] = collect(scene.model, cell.unit, scene.images, code=layer, input_spec=scene.spec).codes
    return {name: values[scene.facets.labels >= 0] for name, values in found.items()}


def clusters(values: Codes, n_facets: int, seeds: int) -> list[NDArray[np.int64]]:
    """Return the facet index of each image for each seed."""
    return [FacetFinder(n_facets, n_bootstraps=0, random_state=seed).fit(values).labels_ for seed in range(seeds)]


def scores(scene: Scene, cell: Cell, seeds: int, layers: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Return the scores of each code, means over the other networks and seeds."""
    kept = scene.facets.labels >= 0
    others = [real.images.codes[kept] for real in scene.real.values()]
    theirs = [clusters(values, cell.source.n_facets, seeds) for values in others]
    found = {}
    by_name = layer_codes(scene, cell, layers) if layers else codes(scene, cell)
    for name, values in by_name.items():
        ours = clusters(values, cell.source.n_facets, seeds)
        agreement = [adjusted_rand_score(*pair) for labels in theirs for pair in zip(ours, labels, strict=True)]
        predicted = [real_predicts(values, labels).mean() for values in others for labels in ours]
        found[name] = {"agreement": fmean(agreement), "predicts": fmean(map(float, predicted))}
    return found


def print_table(found: Mapping[str, Mapping[str, Any]], cells: list[Cell]) -> None:
    """Print scores and differences from the default's, of all networks and each."""
    heads = [head for score in SCORES for head in (score, "difference")]
    print(f"\n{len(cells)} cells\n\n| networks | code | {' | '.join(heads)} |\n{'|---' * (len(heads) + 2)}|")
    for network in ("", *SUITE.networks):
        chosen = [cell for cell in cells if network in ("", cell.network)]
        for code in found[chosen[0].name] if chosen else ():
            columns = []
            for score in SCORES:
                names = [cell.cluster for cell in chosen]
                values, base = (
                    np.array([found[cell.name][one][score] for cell in chosen]) for one in (code, "default")
                )
                texts = [figure(estimate(cluster_means(one, names)), 3) for one in (values, values - base)]
                columns += [texts[0], "" if code == "default" else texts[1]]
            print(f"| {network or 'all'}, {len(chosen)} | {code} | {' | '.join(columns)} |")


def main() -> None:
    """Add the missing cells and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--cells", nargs="+", help="names; default: all class cells that are reported")
    parser.add_argument("--layers", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in SUITE.choose(args.cells) if cell.class_name]
    scenes, path = (
        Scenes(SUITE, args.data, args.out / "cells"),
        args.out / ("-".join(["codes", *args.layers]) + ".jsonl"),
    )
    found = {row["cell"]: row["codes"] for row in map(json.loads, path.open() if path.exists() else ())}
    for cell in cells:
        if cell.name not in found:
            found[cell.name] = scores(scenes.scene(cell), cell, args.seeds, args.layers)
            with path.open("a") as file:
                file.write(json.dumps({"cell": cell.name, "codes": found[cell.name]}) + "\n")
            print(cell.name, json.dumps(found[cell.name]), flush=True)
    print_table(found, cells)


if __name__ == "__main__":
    main()
