#!/usr/bin/env python
"""Do a unit's images show which of two photographs activates the unit more? The two-choice test on the suite's cells.

    captum-mfv bench facet --suite benchmarks/suite.json --data DATA --out OUT
    python benchmarks/two_choice.py PHOTOS --data DATA --suite OUT --out out/two_choice

For each cell of `suite.json`, the two networks that do not have the unit choose from each of 400 pairs of photographs
the one more similar to the nearest reference (`captum_mfv.metrics.two_choice`). Methods share the pairs of a cell,
and no pair contains a photograph of the cell's facets. References:

facet            the images of the facets, rendered by `captum-mfv bench` (--suite)
one facet        one of these images alone; mean over facets
start            the mean images from which the facets' images start
without facets   one image of the unit: recipe `plain` in 100 steps, as in a run's page
Lucent           as many images of the unit as there are facets, with Lucent's defaults, in 100 steps
real             the real image nearest to each facet's center
another unit     the facets' images of the next cell of the same network: a control, at chance

Prints shares, means over the cells with 95 % intervals of bootstrap samples of classes; chance is .5. PHOTOS is a
folder of all kinds of photographs, with caltech101/CATEGORY/ as DATA has it. OUT/photos/ has the photographs' codes
and activations, OUT/images/ the images of `without facets` and `Lucent`, OUT/rows.jsonl a line for each cell, network
and method: an interrupted command resumes. `--methods` are the methods to compute; the table has those that OUT has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_mfv import FacetSet, ImageFolder, InputSpec, Unit
from captum_mfv.activations.batching import cpu_batch_size
from captum_mfv.activations.capture import capture, guard
from captum_mfv.activations.codes import collect
from captum_mfv.activations.layers import resolve
from captum_mfv.bench import Cell, ResultFolder, Scenes, find_method, get_suite
from captum_mfv.bench.table import figure
from captum_mfv.errors import RenderError
from captum_mfv.images import Images, batches, image_at, to_pil
from captum_mfv.images.files import from_pil
from captum_mfv.metrics import TwoChoice, estimate, two_choice
from captum_mfv.metrics.comparison import cluster_means
from captum_mfv.optvis.initializer import mean_images
from captum_mfv.optvis.recipes import get_recipe
from captum_mfv.optvis.render import render_facets
from captum_mfv.units import Code

SUITE = get_suite(Path(__file__).with_name("suite.json"))
STEPS = 100
N_PAIRS = 400
GAPS = {"gap below 1/3": (0, 1 / 3), "1/3 to 2/3": (1 / 3, 2 / 3), "above 2/3": (2 / 3, 1)}


@dataclass(frozen=True, eq=False)
class Scene:
    """A cell's model, real images and facets."""

    cell: Cell
    model: torch.nn.Module
    spec: InputSpec
    images: Images
    facets: FacetSet

    def rendered(self, folder: Path, method: str = "facet") -> list[Tensor]:
        """Return a method's images in a folder of results."""
        paths = sorted(ResultFolder(folder).images(method, self.cell.name, 0).glob("facet_??.png"))
        return [from_pil(Image.open(path).convert("RGB")) for path in paths]


def without_facets(scene: Scene) -> list[Tensor]:
    """Return one image of the unit."""
    recipe = get_recipe("plain").with_steps(STEPS)
    whole = scene.facets.as_one_facet()
    return [one.image for one in render_facets(scene.model, whole, scene.images, recipe=recipe, input_spec=scene.spec)]


def lucent(scene: Scene) -> list[Tensor]:
    """Return images by Lucent's defaults."""
    return find_method("lucent", STEPS).render(scene, 0).images


def real(scene: Scene) -> list[Tensor]:
    """Return the real image nearest to each facet's center."""
    return [image_at(scene.images, int(facet.members[0])) for facet in scene.facets]


DRAWN: Mapping[str, Callable[[Scene], list[Tensor]]] = {
    "start": lambda scene: list(mean_images(scene.facets.facets, scene.images)),
    "real": real,
    "without facets": without_facets,
    "Lucent": lucent,
}
METHODS = ("facet", "one facet", *DRAWN, "another unit")


@dataclass(frozen=True)
class Photos:
    """Codes of all photographs in one network, and the activations of the units of its cells, by the unit's text."""

    names: tuple[str, ...]
    codes: np.ndarray
    activations: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Data and results; see the module's docstring."""

    args: argparse.Namespace
    scenes: Scenes

    @cache  # noqa: B019 - there is one object
    def network(self, name: str) -> tuple[torch.nn.Module, InputSpec, Code]:
        """Return a network, its preprocessing, and the code before its classes."""
        model, spec = self.scenes.network(name)
        _, code = resolve(model, Unit(SUITE.networks[name].class_layer, 0), None, spec)
        return model, spec, code

    @cache  # noqa: B019
    def photos(self, name: str) -> Photos:
        """Return what a network returns for the photographs, from a file if there is one."""
        model, spec, code = self.network(name)
        folder = ImageFolder(self.args.photos, spec)
        names = tuple(folder.name(i) for i in range(len(folder)))
        units = [cell.unit for cell in SUITE.cells() if cell.network == name]
        path = self.args.out / "photos" / f"{name}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            found: dict[str, np.ndarray] = {}
            feed = spec.feed(model)
            firsts = {unit.layer_name: unit for unit in units}.values()  # units of a layer are read alike
            layers = list(dict.fromkeys([code.layer, *(unit.layer_name for unit in units)]))
            with guard(model), torch.no_grad(), capture(model, layers) as run:
                for rows, batch in batches(folder, cpu_batch_size(model, spec, 32)):
                    outputs = run(feed(batch))
                    channels = {unit.layer_name: unit.read_channels(outputs[unit.layer_name]) for unit in firsts}
                    values = {str(unit): unit.pick(channels[unit.layer_name]) for unit in units}
                    for key, part in {"codes": code.read(outputs[code.layer]), **values}.items():
                        if key not in found:
                            found[key] = np.full((len(folder), *part.shape[1:]), np.nan, np.float32)
                        found[key][rows] = part.numpy()
            np.savez(path, **found)
        with np.load(path) as file:
            arrays = dict(file)
        return Photos(names, arrays.pop("codes"), arrays)

    def codes(self, name: str, images: Sequence[Tensor]) -> np.ndarray:
        """Return a network's codes of images."""
        model, spec, code = self.network(name)
        return collect(model, Unit(SUITE.networks[name].class_layer, 0), images, code=code, input_spec=spec).codes

    def scene(self, cell: Cell) -> Scene:
        """Return a cell's facets and its real images."""
        model, spec, _ = self.network(cell.network)
        return Scene(cell, model, spec, self.scenes.images(cell)[0], self.scenes.facets(cell))

    def held_out(self, scene: Scene) -> np.ndarray:
        """Return whether each photograph is none of the facets' images."""
        names = self.photos(scene.cell.network).names
        if scene.cell.class_name is None:  # crops of photographs
            used = {f"caltech101/{scene.images.images.name(int(i))}" for i in scene.images.indices}
            return np.array([name not in used for name in names])
        return np.array([not name.startswith(f"caltech101/{scene.cell.class_name}/") for name in names])

    def references(self, scene: Scene, method: str) -> list[list[Tensor]]:
        """Return the references of a method: one set of images, or several whose shares are averaged."""
        if method in ("facet", "one facet"):
            images = scene.rendered(self.args.suite)
            return [images] if method == "facet" else [[image] for image in images]
        if method == "another unit":
            cells = [cell for cell in self.cells() if cell.network == scene.cell.network]
            following = cells[(cells.index(scene.cell) + 1) % len(cells)]
            return [replace(scene, cell=following).rendered(self.args.suite)]
        if not (images := scene.rendered(self.args.out, method)):
            images = DRAWN[method](scene)
            folder = ResultFolder(self.args.out).images(method, scene.cell.name, 0)
            folder.mkdir(parents=True, exist_ok=True)
            for k, image in enumerate(images):
                to_pil(image).save(folder / f"facet_{k:02}.png")
        return [images]

    def cells(self) -> list[Cell]:
        """Return the cells whose facets' images exist."""
        folder = ResultFolder(self.args.suite)
        return [cell for cell in SUITE.cells() if folder.images("facet", cell.name, 0).is_dir()]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows so far."""
        path = self.args.out / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, cell: Cell, methods: Sequence[str]) -> None:
        """Add the rows of a cell that are missing."""
        done = {(row["cell"], row["method"]) for row in self.rows()}
        if not (methods := [method for method in methods if (cell.name, method) not in done]):
            return
        scene = self.scene(cell)
        activations = self.photos(cell.network).activations[str(cell.unit)]
        free = self.held_out(scene)
        for method in methods:
            try:
                sets = self.references(scene, method)
            except RenderError as error:  # the unit is dead or saturated at the start
                print(cell.name, method, error, flush=True)
                continue
            for judge in sorted(SUITE.networks.keys() - {cell.network}):
                codes = self.photos(judge).codes[free]
                every = self.codes(judge, [image for one in sets for image in one])
                found = [
                    two_choice(references, codes, activations[free], n_pairs=N_PAIRS, seed=0)
                    for references in np.split(every, np.cumsum([len(one) for one in sets])[:-1])
                ]
                row = {"cell": cell.name, "network": cell.network, "cluster": cell.cluster, "judge": judge}
                row |= {"hidden": cell.class_name is None, "method": method, "pairs": N_PAIRS, **shares(found)}
                with (self.args.out / "rows.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(cell.name, judge, method, f"{row['share']:.3f}", flush=True)


def shares(found: Sequence[TwoChoice]) -> dict[str, float]:
    """Return the share of right choices, and those by gap; means over sets of references."""
    values = {"share": fmean(one.estimate.value for one in found)}
    for name, edges in GAPS.items():
        values[name] = fmean(one.by_gap(edges)[0].value for one in found)
    return values


def mean(rows: Sequence[Mapping[str, Any]], column: str = "share") -> str:
    """Return the mean over classes of a class's mean, and its interval: bootstrap samples of classes."""
    means = cluster_means([row[column] for row in rows], [row["cluster"] for row in rows])
    return figure(estimate(means), 3)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print shares of each method, over all cells that it has and by network, and its difference from `facet`."""
    table = {(row["cell"], row["judge"], row["method"]): row for row in rows}
    print(f"\n| units | references | cells | pairs | share | {' | '.join(GAPS)} | facet minus this |\n|{'---|' * 9}")
    for hidden in (False, True):
        for network in ("", *SUITE.networks):
            chosen = [row for row in rows if row["hidden"] == hidden and network in ("", row["network"])]
            for method in METHODS:
                own = [row for row in chosen if row["method"] == method]
                if not own:
                    continue
                paired = [(table.get((row["cell"], row["judge"], "facet")), row) for row in own]
                differences = [{**row, "share": best["share"] - row["share"]} for best, row in paired if best]
                n_cells = len({row["cell"] for row in own})
                title = f"{network or 'all'}, {'hidden units' if hidden else 'classes'}"
                gaps = " | ".join(mean(own, name) for name in GAPS)
                less = "" if method == "facet" else mean(differences)
                n_pairs = sum(row["pairs"] for row in own)
                print(f"| {title} | {method} | {n_cells} | {n_pairs} | {mean(own)} | {gaps} | {less} |")


def main() -> None:
    """Add the missing rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--suite", required=True, type=Path, help="folder of the benchmark, with facets and images")
    parser.add_argument("--out", type=Path, default=Path("out/two_choice"))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--cells", nargs="+", help="names; default: all that have images")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(args, Scenes(SUITE, args.data, args.suite / "cells"))
    for cell in comparison.cells():
        if not args.cells or cell.name in args.cells:
            comparison.run(cell, args.methods)
    names = {cell.name for cell in comparison.cells()}
    print_table([row for row in comparison.rows() if row["cell"] in names])


if __name__ == "__main__":
    main()
