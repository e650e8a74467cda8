#!/usr/bin/env python
"""Compare recipes and peers over many units of three networks.

    python benchmarks/suite.py facet variant.json peers.py:lucent_recipe controls.py:unit_alone --data DATA

A method is a recipe's name, a recipe's JSON file, or `file.py:function`, a function like those of `peers.py` and
`controls.py`. With `--steps`, each method has a row for each number of steps. Every method renders the facets of every
cell (`cells.py`): class units of SqueezeNet 1.0, MobileNet v1 and EfficientNet-Lite2 (four facets each, ten for bell
pepper) and four hidden units of each network. The two networks that did not render a cell's images evaluate them, and
each score is the mean over both:

retention, top-1, probability, predicts, distance  as in benchmarks/quality.py; hidden units have no class
high          share of an image's spectral energy above a quarter of the sampling frequency
activation    the unit's activation on its image, relative to the largest on any real image
seconds       CPU seconds of one gradient step of one image; of recipes without the measurement of the facet's images

The table gives means over the cells that all methods have, with 95 % intervals: bootstrap samples of classes, because a
class's cells are not independent. The row "real images" has the same figures of the real images, each predicted by the
mean of its facet's other images.

OUT/rows.jsonl has one line per cell and method, which is not computed again: an interrupted command resumes, and
`--portion 0/2` and `--portion 1/2` may run at the same time. OUT/cells/ has facets and the evaluating networks' output
for real images, OUT/images/ the images. `--tuning` uses nine cells of other classes, on which to tune a recipe, and
`--cells` only some by name, such as SqueezeNet-bell_pepper.

DATA has the networks, bell_pepper/images and caltech101/CATEGORY/, with caltech101/classes.json: category → class.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from cells import NETWORKS, Cell, all_cells, hidden_unit
from controls import COMPARED_WITH
from numpy.typing import NDArray
from peers import NO_FACETS, matched
from torch import Tensor

from captum_mfv import FacetSet, ImageFolder, InputSpec, find_facets, top_images
from captum_mfv.activations.codes import collect
from captum_mfv.images import Images, image_at, to_pil
from captum_mfv.metrics import Judge, JudgeOutput, LabeledOutput, estimate, judge_scores
from captum_mfv.metrics.scores import real_predicts
from captum_mfv.optvis.recipes import Recipe, get_recipe
from captum_mfv.optvis.render import render_facets
from captum_mfv.storage.identity import fingerprint

SCORES = ("retention", "top1", "predicts", "probability", "distance")
_TOP_K = 150  # images of a hidden unit
COLUMNS = (*SCORES, "high", "activation", "seconds")


@dataclass(frozen=True, eq=False)
class Scene:
    """A cell's dataset and facets, and what the other networks return for the real images."""

    model: torch.nn.Module
    spec: InputSpec
    images: Images
    facets: FacetSet
    judges: Mapping[str, Judge]
    real: Mapping[str, LabeledOutput]


@dataclass(frozen=True)
class Method:
    """A recipe or a function that renders a cell's facets; its name is that of its rows."""

    name: str
    identity: str
    draw: Callable[[Scene], tuple[list[Tensor], float]]  # images, and CPU seconds of a step of an image
    has_facets: bool = True
    labels: Callable[[FacetSet], NDArray[np.int64]] = attrgetter("labels")  # of the real images

    @classmethod
    def parse(cls, text: str, steps: int | None) -> Method:
        """Return the method of a recipe's name or file, or of ``file.py:function``."""
        if ".py:" in text:
            return cls._of_function(text, steps or get_recipe("facet").n_steps)
        recipe = get_recipe(text)
        if steps not in (None, recipe.n_steps):
            recipe = replace(recipe.with_steps(steps), name=f"{recipe.name}-{steps}")
        return cls(recipe.name, fingerprint(recipe=recipe), lambda scene: _render(scene, recipe))

    @classmethod
    def _of_function(cls, text: str, steps: int) -> Method:
        path, _, name = text.rpartition(":")
        sys.path.insert(0, str(Path(path).resolve().parent))
        function = getattr(importlib.import_module(Path(path).stem), name)

        def draw(scene: Scene) -> tuple[list[Tensor], float]:
            began = time.process_time()
            options = {"input_spec": scene.spec, "seed": 0, "steps": steps}
            images = list(function(scene.model, scene.facets, scene.images, **options))
            return images, (time.process_time() - began) / steps / len(images)

        identity = fingerprint(source=inspect.getsource(function), steps=steps)
        labels = COMPARED_WITH.get(function, cls.labels)
        return cls(f"{name}-{steps}", identity, draw, function not in NO_FACETS, labels)


def _render(scene: Scene, recipe: Recipe) -> tuple[list[Tensor], float]:
    times: list[float] = []
    options: dict[str, Any] = {"recipe": recipe, "input_spec": scene.spec}
    options["callback"] = lambda step, images: times.append(time.process_time())
    images = [one.image for one in render_facets(scene.model, scene.facets, scene.images, **options)]
    return images, (times[-1] - times[0]) / (len(times) - 1) / len(images)


@dataclass(frozen=True)
class Suite:
    """Data and results; see the module's docstring."""

    data: Path
    out: Path
    _loaded: dict[str, tuple[torch.nn.Module, InputSpec]] = field(default_factory=dict, init=False, compare=False)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows so far; a line that another process is writing is left out."""
        path = self.out / "rows.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def run(self, cell: Cell, methods: Sequence[Method]) -> None:
        """Add the rows of a cell that are missing."""
        done = {row["recipe"]: row.get("fingerprint") for row in self.rows() if row["cell"] == cell.name}
        scene = None
        if "real images" not in done:
            scene = self.scene(cell)
            self._add(cell, "real images", _real_scores(scene))
        for method in methods:
            if method.name not in done:
                scene = scene or self.scene(cell)
                scores = _scores(scene, method, self.out / "images" / method.name / cell.name)
                self._add(cell, method.name, {**scores, "fingerprint": method.identity})
            elif done[method.name] != method.identity:
                raise SystemExit(f"{self.out} has rows of another method {method.name!r}; give this one another name")

    def _add(self, cell: Cell, recipe: str, scores: Mapping[str, Any]) -> None:
        row = {"cell": cell.name, "network": cell.network, "cluster": cell.cluster, "recipe": recipe, **scores}
        with (self.out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(cell.name, recipe, *(f"{name} {row[name]:.3g}" for name in COLUMNS if name in row), flush=True)

    def _network(self, name: str) -> tuple[torch.nn.Module, InputSpec]:
        if name not in self._loaded:
            self._loaded[name] = NETWORKS[name].load(self.data)
        return self._loaded[name]

    def _images(self, cell: Cell) -> tuple[Images, InputSpec]:
        """Return the images of a class, or those that activate a hidden unit most, and the model's preprocessing."""
        model, spec = self._network(cell.network)
        if cell.category == "bell pepper":  # these are cropped already
            return ImageFolder(self.data / "bell_pepper/images", replace(spec, crop_fraction=1.0)), spec
        if cell.category is not None:
            return ImageFolder(self.data / "caltech101" / cell.category, spec), spec
        units = [hidden_unit(text) for text in NETWORKS[cell.network].hidden]
        store, photos = self.out / "cells" / f"{cell.network}-top", ImageFolder(self.data / "caltech101", spec)
        tops = top_images(model, units, photos, _TOP_K, input_spec=spec, store=store)
        return (top := tops[units.index(cell.unit)]), top.input_spec

    def scene(self, cell: Cell) -> Scene:
        """Return a cell's input; facets and the other networks' output are read from files where these exist."""
        model, _ = self._network(cell.network)
        images, spec = self._images(cell)
        folder = self.out / "cells" / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "facets.safetensors"
        if not known.exists():
            find_facets(model, cell.unit, images, n_facets=cell.n_facets, input_spec=spec).save(known)
        facets = FacetSet.load(known)
        judges, real = {}, {}
        for name in NETWORKS.keys() - {cell.network}:
            judge, judge_spec = self._network(name)
            unit = None if cell.category is None else replace(cell.unit, layer=NETWORKS[name].classes)
            judges[name] = Judge(judge, unit, input_spec=judge_spec)
            outputs = folder / f"{name}.npz"
            if not outputs.exists():
                found = judges[name](images)
                np.savez(outputs, **{part: values for part, values in vars(found).items() if values is not None})
            with np.load(outputs) as file:
                real[name] = LabeledOutput(JudgeOutput(**file), facets.labels)
        return Scene(model, spec, images, facets, judges, real)


def _scores(scene: Scene, method: Method, folder: Path) -> dict[str, Any]:
    """Render a cell by a method, save the images and return their scores, means over facets and networks."""
    images, seconds = method.draw(scene)
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images):
        to_pil(image).save(folder / f"facet_{k:02}.png")
    judged, labels = {}, method.labels(scene.facets)
    for name, judge in scene.judges.items():
        real = LabeledOutput(scene.real[name].images, labels)
        ordered = images if method.has_facets else matched(images, judge, real)
        scores = judge_scores(judge(ordered), real)
        judged[name] = {key: one.value for key, one in vars(scores).items() if one}
    activations = collect(scene.model, scene.facets.unit, images, input_spec=scene.spec).activations
    return {
        **_means(judged.values()),
        "high": fmean(map(high_share, images)),
        "activation": float(activations.mean()) / scene.facets[0].peak,
        "seconds": seconds,
        "judges": judged,
    }


def _real_scores(scene: Scene) -> dict[str, Any]:
    """Return the scores of the real images, each predicted by the mean of its facet's other images."""
    judged = {}
    for name, real in scene.real.items():
        kept = real.kept()
        found = {"predicts": real_predicts(kept.images.codes, kept.labels)}
        if kept.images.top1 is not None and kept.images.probabilities is not None:
            found |= {"top1": kept.images.top1, "probability": kept.images.probabilities}
        judged[name] = {key: float(values.mean()) for key, values in found.items()}
    nearest = [image_at(scene.images, int(i)) for facet in scene.facets for i in facet.members[:15]]
    return {
        **_means(judged.values()),
        "high": fmean(map(high_share, nearest)),
        "activation": float(np.nanmean(scene.facets.activations)) / scene.facets[0].peak,
        "judges": judged,
    }


def _means(judged: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the evaluating networks."""
    rows = list(judged)
    return {key: fmean(row[key] for row in rows) for key in SCORES if all(key in row for row in rows)}


def high_share(image: Tensor) -> float:
    """Return the share of an image's energy, mean color excluded, above a quarter of the sampling frequency.

    The image is multiplied by a Hann window, since the step between opposite borders has energy at all frequencies.
    """
    height, width = image.shape[1:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)
    centered = (image - (image * window).mean((1, 2), keepdim=True) / window.mean()) * window
    power = torch.fft.fft2(centered).abs().square().sum(0)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width))
    return float(power[frequency > 0.25].sum() / power.sum())


def print_table(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], cells: Sequence[Cell]) -> None:
    """Print means over the cells that all methods have: for each network and for all, classes and hidden units."""
    found = {(row["cell"], row["recipe"]): row for row in rows}
    shown = ["real images", *methods]
    common = [cell for cell in cells if all((cell.name, name) in found for name in shown)]
    print(f"\n{len(common)} of {len(cells)} cells\n\n| units | method | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for hidden, network in itertools.product((False, True), ("", *sorted({cell.network for cell in common}))):
        chosen = [cell for cell in common if (cell.category is None) == hidden and network in ("", cell.network)]
        n_units = len({cell.cluster for cell in chosen})
        title = f"{network or 'all'}, {n_units} {'hidden units' if hidden else 'classes'}"
        for name in shown if chosen else ():
            figures = (figure([found[cell.name, name] for cell in chosen], column) for column in COLUMNS)
            print(f"| {title} | {name} | {' | '.join(figures)} |")


def figure(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """Return the mean over classes of a class's mean over cells; empty if no row has the score."""
    clusters: dict[str, list[float]] = {}
    for row in rows:
        if column in row:
            clusters.setdefault(row["cluster"], []).append(row[column])
    found = estimate(np.array(list(map(fmean, clusters.values())))) if clusters else None
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})" if found else ""


def main() -> None:
    """Add the missing rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help="recipes' names or JSON files, or file.py:function")
    parser.add_argument("--steps", nargs="+", type=int, default=[None], help="default: a recipe's own, 100 otherwise")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/suite"))
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--cells", nargs="+", help="names; default: all")
    parser.add_argument("--portion", default="0/1", help="i/n: every n-th cell, from the i-th on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    (first, step), suite = map(int, args.portion.split("/")), Suite(args.data, args.out)
    methods = [Method.parse(text, steps) for text, steps in itertools.product(args.methods, args.steps)]
    cells = [cell for cell in all_cells(args.tuning) if cell.network in args.networks]
    if args.cells:
        cells = [cell for cell in cells if cell.name in args.cells]
    for cell in () if args.table else cells[first::step]:
        suite.run(cell, methods)
    print_table(suite.rows(), [method.name for method in methods], cells)


if __name__ == "__main__":
    main()
