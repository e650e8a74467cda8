#!/usr/bin/env python
"""The path check and the patch swap on cells of the suite.

    python benchmarks/paths_and_patches.py PHOTOS --data DATA --suite OUT --out out/two_choice

Path check (`captum_mfv.metrics.path_check`), in the network that has the unit and in another one: similarity to the
facet's 15 nearest real images in twelve layers, 1 for two real images of the facet and 0 for images of other facets.
Rows: the facets' images, the mean images from which they start, one image without facets for all facets, the facets'
images in the wrong order, and real images that were left out of their facet.

Patch swap (`captum_mfv.metrics.patch_swap`): the patch of a third of the image's side in which an attribution
(`attr.facet_maps`, each facet against the others) is largest, of the five nearest images of each facet, pasted into
four photographs of other categories. Scores are the facet's logit minus the mean of the other facets' and the unit's
activation, in standard deviations over these images. The folders are those of two_choice.py, whose images
without facets are used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from two_choice import SUITE, Comparison, Scene

from captum_mfv import ImageFolder
from captum_mfv.attr import FacetModel, facet_maps, unit_forward
from captum_mfv.bench import Scenes
from captum_mfv.images import batches, image_at, stack
from captum_mfv.metrics import Estimate, estimate_ratio, patch_swap, path_check
from captum_mfv.optvis.initializer import mean_images

CELLS = ("SqueezeNet-bell_pepper", "MobileNet-crayfish", "Lite2-pizza", "SqueezeNet-llama", "MobileNet-dalmatian")
_N_REAL, _N_MEMBERS, _N_HOSTS = 15, 5, 4


def show(found: Estimate | None) -> str:
    """Return a value and its interval."""
    return "" if found is None else f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def third(above: np.ndarray, span: np.ndarray) -> Estimate | None:
    """Return the scaled similarity in some layers, (n_layers, n_facets), as a ratio of sums, with its interval."""
    known = span > 0
    return estimate_ratio(np.where(known, above, 0).sum(0), np.where(known, span, 0).sum(0))


def print_paths(comparison: Comparison, scene: Scene) -> None:
    """Print the path check of a cell in each network."""
    labels = scene.facets.labels
    left = np.array([int(facet.members[len(facet) // 2]) for facet in scene.facets])  # neither nearest nor farthest
    kept = np.full_like(labels, -1)
    for facet in scene.facets:
        kept[np.setdiff1d(facet.members[:_N_REAL], left)] = facet.index
    facets, (plain,) = scene.rendered(comparison.args.suite), comparison.references(scene, "without facets")
    pictures = {
        "facet": facets,
        "start": list(mean_images(scene.facets.facets, scene.images)),
        "without facets": plain * len(facets),
        "facet, wrong order": facets[1:] + facets[:1],
        "real, left out": [image_at(scene.images, int(i)) for i in left],
    }
    for name in (scene.cell.network, min(SUITE.networks.keys() - {scene.cell.network})):
        model, spec, _ = comparison.network(name)
        for row, images in pictures.items():
            found = path_check(model, images, scene.images, kept, input_spec=spec)
            above, span = found.similarity - found.between, found.within - found.between
            parts = np.array_split(np.arange(len(found.layers)), 3)
            cells = " | ".join(show(third(above[part], span[part])) for part in parts)
            print(f"| {scene.cell.name} | {name} | {row} | {cells} |", flush=True)


def hosts(comparison: Comparison, scene: Scene) -> Tensor:
    """Return photographs of other categories."""
    photos = ImageFolder(comparison.args.photos, scene.spec)
    free = np.flatnonzero(comparison.held_out(scene))
    return stack(photos, np.random.default_rng(0).choice(free, _N_HOSTS, replace=False).tolist())


def print_patches(comparison: Comparison, scene: Scene) -> None:
    """Print the patch swap of a cell."""
    members = [int(i) for facet in scene.facets for i in facet.members[:_N_MEMBERS]]
    targets = scene.facets.labels[members]
    images, spec = stack(scene.images, members), scene.images.input_spec
    maps = facet_maps(scene.model, scene.facets, images, targets, input_spec=spec)[:, None]
    logits, unit = FacetModel(scene.model.eval(), scene.facets), unit_forward(scene.model, scene.facets.unit)
    n = len(scene.facets)

    def against_others(x: Tensor) -> Tensor:
        found = logits(x)
        return (n * found - found.sum(1, keepdim=True)) / (n - 1)

    functions = {"facet": against_others, "unit": lambda x: unit(x)[:, None].expand(-1, n)}
    every = torch.cat([spec(batch) for _, batch in batches(images, 16)])
    photos = spec(hosts(comparison, scene))
    for name, function in functions.items():
        with torch.no_grad():
            own = torch.cat([function(rows) for rows in every.split(16)])
        deviation = float(own[torch.arange(len(own)), torch.from_numpy(targets)].std())
        found = patch_swap(
            lambda x, function=function, deviation=deviation: function(x) / deviation,
            every,
            maps,
            photos,
            targets,
            side=every.shape[-1] // 3,
        )
        controls = " | ".join(show(one) for one in found.differences.values())
        print(f"| {scene.cell.name} | {name} | {found.estimate.n} | {show(found.estimate)} | {controls} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--suite", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/two_choice"))
    parser.add_argument("--cells", nargs="+", default=CELLS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    comparison = Comparison(args, Scenes(SUITE, args.data, args.suite / "cells"))
    scenes = [comparison.scene(cell) for cell in comparison.cells() if cell.name in args.cells]
    print("\n| cell | network | images | first third of the layers | second third | last third |\n|" + "---|" * 6)
    for scene in scenes:
        print_paths(comparison, scene)
    print("\n| cell | score | images | gain | minus random place | minus another facet | minus host |\n|" + "---|" * 7)
    for scene in scenes:
        print_patches(comparison, scene)


if __name__ == "__main__":
    main()
