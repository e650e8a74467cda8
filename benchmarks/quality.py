#!/usr/bin/env python
"""Evaluate facets' images with an independent network: recipes, controls and other packages.

    python benchmarks/quality.py IMAGES --model squeezenet1_0 --weights W --unit classifier.1:945 \
        --judge mobilenet_v1.py:mobilenet_v1_075 --judge-unit classifier:945 --out out/quality

Finds the facets of a unit, renders them with each method in the same number of steps, each method in a separate
process, and prints the scores by an independent network, the judge (`captum_mfv.metrics.EvaluationScores`):

retention  share of images whose most similar facet center, by cosine of the judge's codes, is their own facet's;
           chance is 1 / k
centered   retention after subtracting the mean code of the images, and of the real images
top-1      share of images whose most likely class is the judge's unit; probability is the mean of that class
predicts   share of real images whose most similar facet image (both centered) is their own facet's; in the row "all
           real images", the mean of the facet's other real images is used as its image
distance   mean distance to the nearest real image; 1: as near as real images are to each other
precision  share of images in the neighborhood of a real image
covered    share of real images that have an image in their neighborhood
seconds    time to render all images; MiB is the peak memory of the process, with model and images

Other packages are called as by `captum-mfv bench`. Lucent has no facets: it renders as many images of the unit,
which are matched to facets in the order that is best for retention.

Images are written to OUT, one folder for each method and seed, with the facets as JSON; OUT/sheet.jpg shows all
images. Methods whose images exist are not rendered again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contact_sheet import sheet
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from captum_mfv import FacetSet, ImageFolder, InputSpec, Unit, find_facets, models
from captum_mfv.bench import find_method
from captum_mfv.bench.peers import PEERS
from captum_mfv.bench.scores import matched
from captum_mfv.images import to_pil
from captum_mfv.images.files import from_pil
from captum_mfv.metrics import CONTROLS, Estimate, Judge, LabeledOutput, draw_control, evaluate_images, judge_scores
from captum_mfv.optvis import initializer
from captum_mfv.optvis.recipes import RECIPES, Recipe, get_recipe
from captum_mfv.optvis.render import render_facets

OTHERS = {
    "Lucent, the recipe": "lucent-recipe",
    "Lucent, defaults": "lucent",
    "Lucent, diversity": "lucent-diversity",
    "Horama, MACO": "horama-maco",
    "Horama, accentuation": "horama-accentuation",
    "VITAL": f"{Path(__file__).with_name('vital.py')}:vital",
}
NO_FACETS = [title for title, name in OTHERS.items() if name in PEERS and not PEERS[name].has_facets]

COLUMNS = {
    "retention": "retention",
    "centered": "centered",
    "top1": "top-1",
    "probability": "probability",
    "predicts": "predicts",
    "distance": "distance",
    "precision": "precision",
    "covered": "covered",
}


@dataclass(frozen=True)
class Scene:
    """Input of every method."""

    model: nn.Module
    spec: InputSpec
    images: ImageFolder
    facets: FacetSet
    steps: int
    seed: int

    @property
    def unit(self) -> Unit:
        """Unit of the facets."""
        return self.facets.unit

    def recipe(self, name: str) -> Recipe:
        """Return a recipe with the common number of steps."""
        return get_recipe(name).with_steps(self.steps)

    def render(self, recipe: str) -> list[Tensor]:
        """Return one image per facet from `render_facets`."""
        options = {"recipe": self.recipe(recipe), "input_spec": self.spec, "seed": self.seed}
        return [one.image for one in render_facets(self.model, self.facets, self.images, **options)]

    def control(self, name: str) -> list[Tensor]:
        """Return the images of a control."""
        options = {"input_spec": self.spec, "seed": self.seed}
        drawn = draw_control(name, self.model, self.facets, self.images, self.recipe("facet"), **options)
        return [one.image for one in drawn]

    def other(self, method: str) -> Sequence[Tensor]:
        """Return the images of another package."""
        return find_method(method, self.steps).render(self, self.seed).images


METHODS: Mapping[str, Callable[[Scene], Sequence[Tensor]]] = {
    "facet": lambda scene: scene.render("facet"),
    "start alone": lambda scene: list(initializer.mean_images(scene.facets.facets, scene.images)),
    **{name: lambda scene, name=name: scene.control(name) for name in CONTROLS},
    **{name: lambda scene, name=name: scene.render(name) for name in RECIPES if name not in ("facet", "plain")},
    **{title: lambda scene, name=name: scene.other(name) for title, name in OTHERS.items()},
}


@dataclass(frozen=True)
class Task:
    """One method and the facets of one seed, in a separate process."""

    args: argparse.Namespace
    method: str
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of the images."""
        return self.args.out / f"{'-'.join(re.findall('[a-z]+', self.method.lower()))}_{self.seed}"

    def scene(self) -> Scene:
        """Return the method's input; facets are loaded if they were found before."""
        model, spec = models.load(self.args.model, self.args.weights)
        images = ImageFolder(self.args.images, spec)
        known = self.args.out / f"facets_{self.seed}.safetensors"
        if not known.exists():
            options = {"n_facets": self.args.facets, "input_spec": spec, "seed": self.seed}
            find_facets(model, self.args.unit, images, **options).save(known)
        return Scene(model, spec, images, FacetSet.load(known), self.args.steps, self.seed)

    def draw(self) -> None:
        """Render the images, and write the images, their seconds and the peak memory."""
        torch.set_num_threads(self.args.threads)
        scene = self.scene()
        began = time.perf_counter()
        made = METHODS[self.method](scene)
        cost = {"seconds": time.perf_counter() - began, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        rows = [
            {"index": item.index, "members": [{"path": scene.images.name(int(i))} for i in item.members]}
            for item in scene.facets
        ]
        (self.folder / "facets.json").write_text(json.dumps(rows))
        for k, image in enumerate(made):
            to_pil(image).save(self.folder / f"images/facet_{k:02d}.png")
        (self.folder / "cost.json").write_text(json.dumps(cost))

    def images(self) -> list[Tensor]:
        """Return the images from files, rendered if the files are missing."""
        if not (self.folder / "cost.json").exists():
            child = multiprocessing.get_context("spawn").Process(target=self.draw)
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(f"{self.method} failed")
        paths = sorted((self.folder / "images").glob("facet_??.png"))
        return [from_pil(Image.open(path).convert("RGB")) for path in paths]

    def cost(self) -> dict[str, float]:
        """Return seconds, and memory in KiB."""
        return dict(json.loads((self.folder / "cost.json").read_text()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--unit", required=True, type=Unit.parse)
    parser.add_argument("--judge", required=True, help="torchvision name or file.py:function, with its InputSpec")
    parser.add_argument("--judge-unit", required=True, type=Unit.parse)
    parser.add_argument(
        "--judge-input", nargs=2, type=float, metavar=("MEAN", "STD"), help="mean and std of each channel"
    )
    parser.add_argument("--facets", type=int, default=10)
    parser.add_argument("--steps", type=int, default=get_recipe("facet").n_steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    return parser.parse_args()


def load_judge(args: argparse.Namespace) -> Judge:
    model, spec = models.load(args.judge)
    if args.judge_input:
        mean, std = args.judge_input
        spec = replace(spec, mean=(mean,) * 3, std=(std,) * 3)
    return Judge(model, args.judge_unit, input_spec=spec)


def main() -> None:
    """Find facets, render, evaluate and print the table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    judge = load_judge(args)
    table: dict[str, list[Mapping[str, Estimate | None]]] = {}
    costs: dict[str, list[Mapping[str, float]]] = {}
    for seed in args.seeds:
        scene = Task(args, "facet", seed).scene()
        real = LabeledOutput(judge(scene.images), scene.facets.labels)
        for name in args.methods:
            task = Task(args, name, seed)
            made = task.images()
            made = matched(made, judge, real) if name in NO_FACETS else made
            labels = CONTROLS[name].facets(scene.facets, seed)[1] if name in CONTROLS else real.labels
            scores = judge_scores(judge(made), LabeledOutput(real.images, labels), seed=seed)
            table.setdefault(name, []).append(vars(scores))
            costs.setdefault(name, []).append(task.cost())
            print(name, seed, "; ".join(f"{column} {show([vars(scores)], column)}" for column in COLUMNS), flush=True)
        add_ceilings(table, judge, real, Task(args, "facet", seed), seed)
    print_table(table, costs)
    contact([Task(args, name, args.seeds[0]) for name in args.methods], args.out / "sheet.jpg")


def add_ceilings(
    table: dict[str, list[Mapping[str, Estimate | None]]], judge: Judge, real: LabeledOutput, task: Task, seed: int
) -> None:
    """Add rows of real images, and print retention with shuffled labels and agreement with another seed."""
    again = Task(task.args, "another seed", seed)
    both = again.folder.exists() and "another seed" in task.args.methods
    found = evaluate_images(judge(task.images()), real, again=judge(again.images()) if both else None, seed=seed)
    every = {"top1": found.real_top1, "probability": found.real_probability, "predicts": found.real_predicts}
    table.setdefault("all real images", []).append(every)
    table.setdefault("one real image of each facet", []).append(vars(found.controls["real image"]))
    over_seeds = f"; share nearest to their facet's image of another seed {show([vars(found)], 'over_seeds')}"
    shuffled = f"{show([vars(found)], 'shuffled')}, p = {found.shuffled.p_value:.2g}"
    print(f"seed {seed}: retention with shuffled labels {shuffled}{over_seeds if both else ''}", flush=True)


def show(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """Return a score and its interval, means over seeds; empty if no row has the score."""
    found = [one for row in rows if (one := row.get(column)) is not None]
    if not found:
        return ""
    value, low, high = (np.mean([getattr(one, end) for one in found]) for end in ("value", "low", "high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def print_table(
    table: Mapping[str, Sequence[Mapping[str, Estimate | None]]], costs: Mapping[str, Sequence[Mapping[str, float]]]
) -> None:
    """Print means over seeds, as Markdown."""
    print(f"\n| images | {' | '.join(COLUMNS.values())} | seconds | MiB |\n|---|{'---|' * (len(COLUMNS) + 2)}")
    for name, rows in table.items():
        cells = [show(rows, column) for column in COLUMNS]
        spent = costs.get(name, [])
        cells += [f"{np.mean([one['seconds'] for one in spent]):.0f}" if spent else ""]
        cells += [f"{np.mean([one['memory'] for one in spent]) / 1024:.0f}" if spent else ""]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def contact(tasks: Sequence[Task], path: Path, side: int = 128, margin: int = 190) -> None:
    """Draw all images, one row for each method."""
    pages = []
    for task in tasks:
        row = sheet([to_pil(image).resize((side, side)) for image in task.images()], task.args.facets)
        page = Image.new("RGB", (margin + row.width, side + 3), "white")
        page.paste(row, (margin, 0))
        ImageDraw.Draw(page).text((4, side // 2 - 8), task.method, "black", ImageFont.load_default(15))
        pages.append(page)
    sheet(pages, 1, gap=0).save(path, quality=85)


if __name__ == "__main__":
    main()
