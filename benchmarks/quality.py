#!/usr/bin/env python
"""Are the images of facets recognised by another network, and what makes them so? Ours against peers, with controls.

    python benchmarks/quality.py IMAGES --model squeezenet1_0 --weights W --unit classifier.1:945 \
        --judge mobilenet_v1.py:mobilenet_v1_075 --judge-unit classifier:945 --out out/quality

Finds the facets of a unit, draws them by every method at the same number of steps, each in a process of its own, shows
the images to a network that took no part, and prints a table (`captum_mfv.metrics.EvaluationScores`), with controls:

retention  share of images whose nearest facet center, in the judge's codes by cosine, is their own; chance is 1 / k
centered   the same with the mean code of the images, and of the real images, removed
top-1      share of images that the judge calls the class, and probability, the mean one of the class
predicts   share of the real images whose nearest facet image (both centered) is their facet's: do the images tell
           what the facets are? For "all real images" the mean of the facet's other images stands for its image
distance   mean distance to the nearest real image, where 1 is as near as real images are to each other
precision  share of images in a real image's neighborhood; covered, share of real images with one in theirs
seconds    of drawing all images; memory is the peak of the process, model and images included

Peers that know nothing of facets (Lucent) draw as many images of the unit; their retention is their best match to
facets in any order. Peers of one image a call (Horama: `pip install horama einops`) are called once for each facet,
MACO under the spectrum of the facet's images, accentuation from the real image nearest to the facet's center; with two
crops a step, each of as many pixels as by its defaults, where ours sees an image once.

Each method's images go to OUT, one folder a method and seed, with the facets as JSON, and OUT/sheet.jpg shows all.
What is there already isn't drawn again.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from contact_sheet import sheet
from PIL import Image, ImageDraw, ImageFont
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from captum_mfv import FacetSet, ImageFolder, InputSpec, Unit, find_facets, models
from captum_mfv.images import from_pil, to_pil
from captum_mfv.metrics import CONTROLS, Estimate, Judge, LabeledOutput, draw_control, evaluate_images, judge_scores
from captum_mfv.metrics.scores import confusion
from captum_mfv.optvis import initializer
from captum_mfv.optvis.param import mean_magnitudes
from captum_mfv.optvis.recipes import RECIPES, Recipe, get_recipe
from captum_mfv.optvis.render import render_facets

HORAMA = {"image_size": 448, "box_size": (0.57, 0.71), "crops_per_iteration": 2, "device": "cpu"}

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
    """What every method works on."""

    model: nn.Module
    spec: InputSpec
    images: ImageFolder
    facets: FacetSet
    steps: int
    seed: int

    @property
    def unit(self) -> Unit:
        """The unit."""
        return self.facets.unit

    def recipe(self, name: str) -> Recipe:
        """A recipe in as many steps as every other."""
        return get_recipe(name).with_steps(self.steps)

    def render(self, recipe: str) -> list[Tensor]:
        """One image per facet by our loop."""
        options = {"recipe": self.recipe(recipe), "input_spec": self.spec, "seed": self.seed}
        return [one.image for one in render_facets(self.model, self.facets, self.images, **options)]

    def control(self, name: str) -> list[Tensor]:
        """The same with one thing taken away."""
        options = {"input_spec": self.spec, "seed": self.seed}
        drawn = draw_control(name, self.model, self.facets, self.images, self.recipe("facet"), **options)
        return [one.image for one in drawn]

    def lucent(self, diversity: bool) -> list[Tensor]:
        """As many images of the unit as there are facets, as Lucent draws them by default."""
        from lucent.optvis import objectives, param
        from lucent.optvis.render import render_vis

        objective = objectives.channel(self.unit.layer_name.replace(".", "_"), self.unit.index)
        if diversity:
            objective = objective - 1e2 * objectives.diversity(self.facets.code.layer.replace(".", "_"))
        np.random.seed(self.seed)  # noqa: NPY002 - Lucent draws from the global generators
        torch.manual_seed(self.seed)
        (made,) = render_vis(
            copy.deepcopy(self.model),
            objective,
            lambda: param.image(self.spec.size, batch=len(self.facets)),
            thresholds=[self.steps],
            show_image=False,
            progress=False,
        )
        return list(torch.from_numpy(made).permute(0, 3, 1, 2))

    def horama_maco(self) -> list[Tensor]:
        """Horama's MACO, the spectrum that of each facet's images."""
        import horama

        torch.manual_seed(self.seed)
        made = []
        with TemporaryDirectory() as folder, chdir(folder):  # where Horama looks for its spectrum
            for facet in self.facets:
                members = torch.stack([self.images[int(i)] for i in facet.members[:30]])
                np.save("spectrum_decorrelated.npy", mean_magnitudes(members).numpy())
                made.append(horama.maco(self.drive, total_steps=self.steps, **HORAMA)[0])
        return [self.shown(image) for image in made]

    def horama_accentuation(self) -> list[Tensor]:
        """Horama's feature accentuation of each facet's medoid."""
        import horama

        torch.manual_seed(self.seed)
        made = []
        for medoid in initializer.medoid_images(self.facets.facets, self.images):
            start = self.spec(medoid[None])[0]
            low_high = (float(start.min()), float(start.max()))
            made.append(
                horama.accentuation(self.drive, start, total_steps=self.steps, values_range=low_high, **HORAMA)[0]
            )
        return [self.shown(image) for image in made]

    def drive(self, inputs: Tensor) -> Tensor:
        """The unit's mean activation on normalised images."""
        return self.unit.read(self.model(inputs)).mean()

    def shown(self, normalised: Tensor) -> Tensor:
        """A normalised image of any size in [0, 1] at the model's."""
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.spec.mean, self.spec.std))
        return self.spec.resize((normalised.detach() * std + mean).clamp(0, 1)[None])[0]


METHODS: Mapping[str, Callable[[Scene], Sequence[Tensor]]] = {
    "facet": lambda scene: scene.render("facet"),
    "start alone": lambda scene: list(initializer.mean_images(scene.facets.facets, scene.images)),
    **{name: lambda scene, name=name: scene.control(name) for name in CONTROLS},
    **{name: lambda scene, name=name: scene.render(name) for name in RECIPES if name not in ("facet", "plain")},
    "Lucent, defaults": lambda scene: scene.lucent(False),
    "Lucent, diversity": lambda scene: scene.lucent(True),
    "Horama, MACO": lambda scene: scene.horama_maco(),
    "Horama, accentuation": lambda scene: scene.horama_accentuation(),
}


@dataclass(frozen=True)
class Task:
    """One method on one seed's facets, in a process of its own."""

    args: argparse.Namespace
    method: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its images go."""
        return self.args.out / f"{'-'.join(re.findall('[a-z]+', self.method.lower()))}_{self.seed}"

    def scene(self) -> Scene:
        """What the method works on; facets that were found before are read."""
        model, spec = models.load(self.args.model, self.args.weights)
        images = ImageFolder(self.args.images, spec)
        known = self.args.out / f"facets_{self.seed}.safetensors"
        if not known.exists():
            options = {"n_facets": self.args.facets, "input_spec": spec, "seed": self.seed}
            find_facets(model, self.args.unit, images, **options).save(known)
        return Scene(model, spec, images, FacetSet.load(known), self.args.steps, self.seed)

    def draw(self) -> None:
        """Draw the images and write them, with what it cost."""
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
        """The images as written, drawn if they aren't there."""
        if not (self.folder / "cost.json").exists():
            child = multiprocessing.get_context("spawn").Process(target=self.draw)
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(f"{self.method} failed")
        paths = sorted((self.folder / "images").glob("facet_??.png"))
        return [from_pil(Image.open(path).convert("RGB")) for path in paths]

    def cost(self) -> dict[str, float]:
        """Seconds, and memory in KiB."""
        return dict(json.loads((self.folder / "cost.json").read_text()))


def matched(made: Sequence[Tensor], judge: Judge, real: LabeledOutput) -> list[Tensor]:
    """Images of the unit alone in the order that matches them best to facets."""
    similar = confusion(judge(made).codes, real.kept().images.codes, real.kept().labels, centered=True)
    rows, facets = linear_sum_assignment(-similar)
    return [made[rows[k]] for k in np.argsort(facets)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--unit", required=True, type=Unit.parse)
    parser.add_argument("--judge", required=True, help="torchvision name or file.py:function, with its InputSpec")
    parser.add_argument("--judge-unit", required=True, type=Unit.parse)
    parser.add_argument("--judge-input", nargs=2, type=float, metavar=("MEAN", "STD"), help="of each channel")
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
    """Find, draw, judge, print."""
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
            made = matched(made, judge, real) if name.startswith("Lucent") else made
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
    """Rows of the real images, and a line on the same facets from another seed."""
    again = Task(task.args, "another seed", seed)
    both = again.folder.exists() and "another seed" in task.args.methods
    found = evaluate_images(judge(task.images()), real, again=judge(again.images()) if both else None, seed=seed)
    every = {"top1": found.real_top1, "probability": found.real_probability, "predicts": found.real_predicts}
    table.setdefault("all real images", []).append(every)
    table.setdefault("one real image of each facet", []).append(vars(found.controls["real image"]))
    over_seeds = "" if found.over_seeds is None else f"; images of the same facet from another seed {found.over_seeds}"
    print(f"seed {seed}: retention against shuffled labels {found.shuffled}{over_seeds}", flush=True)


def show(rows: Sequence[Mapping[str, Estimate | None]], column: str) -> str:
    """A figure's mean over seeds, and of its interval's ends."""
    found = [one for row in rows if (one := row.get(column)) is not None]
    if not found:
        return ""
    value, low, high = (np.mean([getattr(one, end) for one in found]) for end in ("value", "low", "high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def print_table(
    table: Mapping[str, Sequence[Mapping[str, Estimate | None]]], costs: Mapping[str, Sequence[Mapping[str, float]]]
) -> None:
    """Means over seeds, as Markdown."""
    print(f"\n| images | {' | '.join(COLUMNS.values())} | seconds | MiB |\n|---|{'---|' * (len(COLUMNS) + 2)}")
    for name, rows in table.items():
        cells = [show(rows, column) for column in COLUMNS]
        its = costs.get(name, [])
        cells += [f"{np.mean([one['seconds'] for one in its]):.0f}" if its else ""]
        cells += [f"{np.mean([one['memory'] for one in its]) / 1024:.0f}" if its else ""]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def contact(tasks: Sequence[Task], path: Path, side: int = 128, margin: int = 190) -> None:
    """All images, a row for each method, its name before it."""
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
