#!/usr/bin/env python
"""Are the images of facets recognised by another network, and what makes them so?

    python benchmarks/quality.py IMAGES --model squeezenet1_0 --weights W --unit classifier.1:945 \
        --judge mobilenet_v1.py:mobilenet_v1_075 --judge-unit classifier:945 --out out/quality

Finds the facets of a unit, draws them by every method at the same number of steps, shows the images to a network
that took no part, and prints a table, with controls:

retention  share of images whose nearest facet center, in the judge's codes by cosine, is their own; chance is 1 / k
centered   the same with the mean code of the images, and of the real images, removed
top-1      share of images that the judge calls the class, and probability, the mean one of the class
predicts   share of the real images whose nearest facet image (both centered) is their facet's: do the images tell
           what the facets are? For "all real images" the mean of the facet's other images stands for its image
distance   mean distance to the nearest real image, where 1 is as near as real images are to each other

Clusters that mean nothing have centers too, and an image made from a cluster's members is near them. So the control
with shuffled clusters is held out: half of each facet's images make the image and the other half judges it; the
row above it says what true facets keep under the same terms.

Each method's images go to OUT, one folder a method and seed, with the facets as JSON, and OUT/sheet.jpg shows all.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from contact_sheet import sheet
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv import FacetSet, ImageFolder, InputSpec, Unit, find_facets, models
from captum_mfv.images import to_pil
from captum_mfv.metrics import Judge, Naturalness, Verdict, halved, shuffled, verdict
from captum_mfv.optvis import initializer
from captum_mfv.optvis.render import render_facets


@dataclass(frozen=True)
class Scene:
    """What every method works on."""

    model: nn.Module
    spec: InputSpec
    unit: Unit
    images: ImageFolder
    facets: FacetSet
    steps: int
    seed: int

    def render(self, recipe: str, start: Tensor | None = None) -> list[Tensor]:
        """One image per facet by our loop."""
        made = render_facets(
            self.model,
            self.facets,
            self.images,
            recipe=recipe,
            steps=self.steps,
            input_spec=self.spec,
            seed=self.seed,
            start=start,
        )
        return [rendering.image for rendering in made]

    def means(self) -> Tensor:
        """The mean images, where most methods start."""
        return initializer.mean_images(self.facets.facets, self.images)

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


COLUMNS = {
    "retention": "retention",
    "centered": "centered",
    "top1": "top-1",
    "probability": "probability",
    "predicts": "predicts",
    "naturalness": "distance",
}
METHODS: Mapping[str, Callable[[Scene], Sequence[Tensor]]] = {
    "real images": lambda scene: initializer.medoid_images(scene.facets.facets, scene.images),
    "start alone": lambda scene: scene.means(),
    "facet": lambda scene: scene.render("facet"),
    "facet, another facet's start": lambda scene: scene.render("facet", start=scene.means().roll(1, 0)),
    "facet, from noise": lambda scene: scene.render("facet-from-noise"),
    "facet, half of the images": lambda scene: scene.render("facet"),
    "facet, half of shuffled clusters": lambda scene: scene.render("facet"),
    "logit only": lambda scene: scene.render("logit"),
    "paper-mean": lambda scene: scene.render("paper-mean"),
    "paper-center-biased": lambda scene: scene.render("paper-center-biased"),
    "maco": lambda scene: scene.render("maco"),
    "faceted": lambda scene: scene.render("faceted"),
    "Lucent, defaults": lambda scene: scene.lucent(False),
    "Lucent, diversity": lambda scene: scene.lucent(True),
}


def variant(scene: Scene, name: str) -> tuple[Scene, NDArray[np.int64]]:
    """What a method works on, and the labels of the images that judge it."""
    facets = shuffled(scene.facets, seed=scene.seed) if "shuffled" in name else scene.facets
    facets, labels = halved(facets) if "half" in name else (facets, facets.labels)
    return replace(scene, facets=facets), labels


def slug(name: str) -> str:
    return "-".join(re.findall("[a-z]+", name.lower()))


def save(out: Path, scene: Scene, made: Sequence[Tensor]) -> None:
    """A method's images and facets, in the layout of a run's folder."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = [
        {"index": item.index, "members": [{"path": scene.images.name(int(i))} for i in item.members]}
        for item in scene.facets
    ]
    (out / "facets.json").write_text(json.dumps(rows))
    for k, (image, start) in enumerate(zip(made, scene.means(), strict=True)):
        to_pil(image).save(out / f"images/facet_{k:02d}.png")
        to_pil(start).save(out / f"images/facet_{k:02d}_start.png")


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
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    return parser.parse_args()


def main() -> None:
    """Find, draw, judge, print."""
    args = arguments()
    torch.set_num_threads(2)
    model, spec = models.load(args.model, args.weights)
    images = ImageFolder(args.images, spec)
    judge_model, judge_spec = models.load(args.judge)
    if args.judge_input:
        mean, std = args.judge_input
        judge_spec = replace(judge_spec, mean=(mean,) * 3, std=(std,) * 3)
    judge = Judge(judge_model, args.judge_unit, input_spec=judge_spec)
    real = judge(images)
    rows: dict[str, list[tuple[Verdict, float]]] = {}
    for seed in range(args.seeds):
        found = find_facets(model, args.unit, images, n_facets=args.facets, input_spec=spec, seed=seed)
        scene = Scene(model, spec, found.unit, images, found, args.steps, seed)
        starts = judge(list(scene.means()))
        for name in args.methods:
            its, labels = variant(scene, name)
            began = time.perf_counter()
            made = METHODS[name](its)
            seconds = time.perf_counter() - began
            save(args.out / f"{slug(name)}_{seed}", its, made)
            its_verdict = verdict(judge(made), starts, real, labels, seed=seed)
            rows.setdefault(name, []).append((its_verdict, seconds))
            print(name, seed, "; ".join(f"{key} {show([its_verdict], key)}" for key in COLUMNS), flush=True)
    table(rows)
    shown = [args.out / f"{slug(name)}_0" for name in args.methods]
    contact(shown, args.facets, args.out / "sheet.jpg")


def show(verdicts: Sequence[Verdict], column: str) -> str:
    """A figure's mean over seeds, and of its interval's ends."""
    found = [getattr(one, column) for one in verdicts]
    if isinstance(found[0], Naturalness):
        return f"{np.mean([one.distance for one in found]):.2f}"
    value, low, high = (np.mean([getattr(one, end) for one in found]) for end in ("value", "low", "high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def table(rows: Mapping[str, Sequence[tuple[Verdict, float]]]) -> None:
    """Means over seeds, as Markdown."""
    print(f"\n| images | {' | '.join(COLUMNS.values())} | seconds |\n|---|{'---|' * (len(COLUMNS) + 1)}")
    whole = next((seeds for name, seeds in rows.items() if "half" not in name), [])
    if whole:
        verdicts = [one for one, _ in whole]
        real = {"top1": "real_top1", "probability": "real_probability", "predicts": "real_predicts"}
        cells = [show(verdicts, real[column]) if column in real else "" for column in COLUMNS]
        print(f"| all real images | {' | '.join(cells)} | |")
    for name, seeds in rows.items():
        cells = [show([one for one, _ in seeds], column) for column in COLUMNS]
        print(f"| {name} | {' | '.join(cells)} | {np.mean([time_ for _, time_ in seeds]):.0f} |", flush=True)


def contact(folders: Sequence[Path], n_facets: int, path: Path) -> None:
    """All images, a row for each method."""
    from PIL import Image

    pictures = [Image.open(folder / f"images/facet_{k:02d}.png") for folder in folders for k in range(n_facets)]
    sheet([picture.resize((160, 160)) for picture in pictures], n_facets).save(path, quality=88)


if __name__ == "__main__":
    main()
