#!/usr/bin/env python
"""Compare recipes over many units of three networks: python benchmarks/suite.py facet variant.json --data DATA

Every recipe renders the facets of every cell: class units of SqueezeNet 1.0, MobileNet v1 and EfficientNet-Lite2 (four
facets each, ten for bell pepper) and four hidden units of each network. The two networks that did not render a cell's
images evaluate them, and each score is the mean over both:

retention, top-1, probability, predicts, distance  as in benchmarks/quality.py; hidden units have no class
high          share of an image's spectral energy above a quarter of the sampling frequency
activation    the unit's activation on its image, relative to the largest on any real image
s/row-step    CPU seconds of one gradient step of one image, measurement of the facet's images excluded

The table gives means over the cells that all recipes have, with 95 % intervals: bootstrap samples of classes, because a
class's cells are not independent. The row "real images" has the same figures of the real images, each predicted by the
mean of its facet's other images.

OUT/rows.jsonl has one line per cell and recipe, which is not computed again: an interrupted command resumes, and
`--portion 0/2` and `--portion 1/2` may run at the same time. OUT/cells/ has facets and the evaluating networks' output
for real images, OUT/images/ the images. `--tuning` uses nine cells of other classes, on which to tune a recipe.

DATA has the networks, bell_pepper/images and caltech101/CATEGORY/, with caltech101/classes.json: category → class.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_mfv import FacetSet, ImageFolder, InputSpec, Unit, find_facets, models, top_images
from captum_mfv.activations.codes import collect
from captum_mfv.images import Images, image_at, to_pil
from captum_mfv.metrics import Judge, JudgeOutput, LabeledOutput, estimate, judge_scores
from captum_mfv.metrics.scores import real_predicts
from captum_mfv.optvis.recipes import Recipe, get_recipe
from captum_mfv.optvis.render import render_facets
from captum_mfv.storage.identity import fingerprint

TUNING = {"accordion": 401, "dragonfly": 319, "schooner": 780}
"""Categories on which recipes are tuned, and their ImageNet classes; the next are those that are reported."""

REPORTED = {
    "bell pepper": 945,
    "Leopards": 288,
    "crayfish": 124,
    "dalmatian": 251,
    "electric_guitar": 546,
    "hawksbill": 33,
    "llama": 355,
    "pizza": 963,
    "revolver": 763,
    "rooster": 7,
    "scorpion": 71,
    "soccer_ball": 805,
    "trilobite": 69,
}

SCORES = ("retention", "top1", "predicts", "probability", "distance")
_TOP_K = 150  # images of a hidden unit
COLUMNS = (*SCORES, "high", "activation", "seconds")


@dataclass(frozen=True)
class Network:
    """A network, its class layer and its hidden units; ``weights`` and a file in ``source`` are in the data folder."""

    source: str
    classes: str
    hidden: tuple[str, ...]
    weights: str | None = None
    gray: tuple[float, float] | None = None  # mean and standard deviation, where the source doesn't return them

    def load(self, data: Path) -> tuple[torch.nn.Module, InputSpec]:
        """Return the model and its preprocessing."""
        source = str(data / self.source) if ".py:" in self.source else self.source
        model, spec = models.load(source, None if self.weights is None else data / self.weights)
        if self.gray is not None:
            spec = replace(spec, mean=(self.gray[0],) * 3, std=(self.gray[1],) * 3)
        return model, spec


NETWORKS: Mapping[str, Network] = {
    "SqueezeNet": Network(
        "squeezenet1_0",
        "classifier.1",
        ("features.9:3", "features.9:100", "features.12:3", "features.12:410"),
        weights="squeezenet1_0_imagenet.safetensors",
    ),
    "MobileNet": Network(
        "mobilenet_v1.py:mobilenet_v1_075",
        "classifier",
        ("features.16:7", "features.16:100", "features.22:7", "features.22:100"),
        gray=(0.5, 0.5),
    ),
    "Lite2": Network(
        "efficientnet_lite2.py:efficientnet_lite2",
        "classifier",
        ("features.15:7", "features.15:50", "features.20:7", "features.20:100"),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A unit of a network: a class unit of a category's images, or a hidden unit, whose category is None."""

    network: str
    category: str | None
    unit: Unit
    n_facets: int = 4

    @property
    def name(self) -> str:
        """Name of the cell's folders."""
        return f"{self.network}-{self.category or self.unit}".replace(" ", "_").replace(":", "_")

    @property
    def cluster(self) -> str:
        """Return the name of the cluster that intervals resample: the class, or the hidden unit."""
        return self.category or self.name


def all_cells(tuning: bool) -> list[Cell]:
    """Return the tuning cells, or the reported ones: bell pepper, hidden units, then the other classes."""
    classes = TUNING if tuning else REPORTED
    cells = [
        Cell(name, category, Unit(network.classes, index), 10 if category == "bell pepper" else 4)
        for category, index in classes.items()
        for name, network in NETWORKS.items()
    ]
    hidden = zip(*(network.hidden for network in NETWORKS.values()), strict=True)
    more = [Cell(name, None, hidden_unit(text)) for texts in hidden for name, text in zip(NETWORKS, texts, strict=True)]
    return cells if tuning else cells[: len(NETWORKS)] + more + cells[len(NETWORKS) :]


def hidden_unit(text: str) -> Unit:
    """Return a unit read at its peak."""
    return replace(Unit.parse(text), reduce="max")


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

    def run(self, cell: Cell, recipes: Sequence[Recipe]) -> None:
        """Add the rows of a cell that are missing."""
        done = {row["recipe"]: row.get("fingerprint") for row in self.rows() if row["cell"] == cell.name}
        scene = None
        if "real images" not in done:
            scene = self._scene(cell)
            self._add(cell, "real images", _real_scores(scene))
        for recipe in recipes:
            identity = fingerprint(recipe=recipe)
            if recipe.name not in done:
                scene = scene or self._scene(cell)
                scores = _scores(scene, recipe, self.out / "images" / recipe.name / cell.name)
                self._add(cell, recipe.name, {**scores, "fingerprint": identity})
            elif done[recipe.name] != identity:
                raise SystemExit(f"{self.out} has rows of another recipe {recipe.name!r}; give this one another name")

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

    def _scene(self, cell: Cell) -> Scene:
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


def _scores(scene: Scene, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Render a cell by a recipe, save the images and return their scores, means over facets and networks."""
    times: list[float] = []
    options: dict[str, Any] = {"recipe": recipe, "input_spec": scene.spec}
    options["callback"] = lambda step, images: times.append(time.process_time())
    images = [one.image for one in render_facets(scene.model, scene.facets, scene.images, **options)]
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images):
        to_pil(image).save(folder / f"facet_{k:02}.png")
    judged = {
        name: {key: one.value for key, one in vars(judge_scores(judge(images), scene.real[name])).items() if one}
        for name, judge in scene.judges.items()
    }
    activations = collect(scene.model, scene.facets.unit, images, input_spec=scene.spec).activations
    return {
        **_means(judged.values()),
        "high": fmean(map(high_share, images)),
        "activation": float(activations.mean()) / scene.facets[0].peak,
        "seconds": (times[-1] - times[0]) / (len(times) - 1) / len(images),
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


def print_table(rows: Sequence[Mapping[str, Any]], recipes: Sequence[str], cells: Sequence[Cell]) -> None:
    """Print means over the cells that all recipes have: for each network and for all, classes and hidden units."""
    found = {(row["cell"], row["recipe"]): row for row in rows}
    shown = ["real images", *recipes]
    common = [cell for cell in cells if all((cell.name, name) in found for name in shown)]
    print(f"\n{len(common)} of {len(cells)} cells\n\n| units | recipe | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for hidden, network in itertools.product((False, True), ("", *sorted({cell.network for cell in common}))):
        chosen = [cell for cell in common if (cell.category is None) == hidden and network in ("", cell.network)]
        n_units = len({cell.cluster for cell in chosen})
        title = f"{network or 'all'}, {n_units} {'hidden units' if hidden else 'classes'}"
        for name in shown if chosen else ():
            figures = (_figure([found[cell.name, name] for cell in chosen], column) for column in COLUMNS)
            print(f"| {title} | {name} | {' | '.join(figures)} |")


def _figure(rows: Sequence[Mapping[str, Any]], column: str) -> str:
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
    parser.add_argument(
        "recipes", nargs="+", type=get_recipe, help="names or JSON files; a name is a recipe's identity"
    )
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/suite"))
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--portion", default="0/1", help="i/n: every n-th cell, from the i-th on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    (first, step), suite = map(int, args.portion.split("/")), Suite(args.data, args.out)
    cells = [cell for cell in all_cells(args.tuning) if cell.network in args.networks]
    for cell in () if args.table else cells[first::step]:
        suite.run(cell, args.recipes)
    print_table(suite.rows(), [recipe.name for recipe in args.recipes], cells)


if __name__ == "__main__":
    main()
