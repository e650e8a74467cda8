#!/usr/bin/env python
"""Test the scores and score the recipes on known facets, without data files, in two minutes.

    python benchmarks/planted.py [--seeds 0 1 2]

There are two scenes. "Colors" is a network with hand-set weights, whose unit is the OR of four color detectors; the
judge returns the detectors. "Digits" is a network trained to distinguish even from odd digits, whose unit "even" has
the facets 0, 2, 4, 6 and 8; the judge is a second network, trained with another seed to classify the ten digits.

The first table compares scores of images with their known values. The second table has the scores of each recipe:
*own* is the share of images in which the judge's largest output (detector or digit) is that of the image's facet;
*retention*, *predicts* and *distance* are the judge's scores; *off-facet* is the share of the unit's activation that
the facet's real images do not explain (in the last row, for real images); *seeds* is the share of images whose most
similar image of another seed is their own facet's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv import Code, FacetSet, InputSpec, Unit, datasets, find_facets
from captum_mfv.attr import pure_code
from captum_mfv.errors import RenderError
from captum_mfv.metrics import (
    Judge,
    JudgeOutput,
    LabeledOutput,
    evaluate_images,
    judge_scores,
    multifacetedness,
    off_facet,
    real_off_facet,
    same_over_seeds,
)
from captum_mfv.optvis.initializer import mean_images
from captum_mfv.optvis.recipes import RECIPES
from captum_mfv.optvis.render import render_facets


@dataclass(frozen=True)
class Scene:
    """A network with known facets and a judge.

    Args:
        model: the network.
        spec: the network's input.
        images: the images that activate the unit.
        facets: the true facets.
        judge: an independent network.
        own: for each facet, the index of the judge's output that stands for the facet.
    """

    name: str
    model: nn.Module
    spec: InputSpec
    images: Tensor
    facets: FacetSet
    judge: Judge
    own: NDArray[np.int64]

    @property
    def real(self) -> LabeledOutput:
        """The judge's output for the real images."""
        return LabeledOutput(self.judge(self.images), self.facets.labels)

    def contributions(self, images: Tensor) -> NDArray[np.float32]:
        """Return the contribution of each channel to the unit."""
        code = pure_code(self.model, self.facets.unit, self.facets.code.layer, input_spec=self.spec)
        return code(images).numpy()

    def shows_own(self, made: JudgeOutput) -> NDArray[np.bool_]:
        """Return whether the judge's largest output for each image is that of the image's facet."""
        return np.asarray(made.codes.argmax(1) == self.own)


def true_facets(model: nn.Module, unit: Unit, images: Tensor, labels: Tensor, spec: InputSpec, code: Code) -> FacetSet:
    """Return the planted facets in the network's codes."""
    found = find_facets(model, unit, images, n_facets=len(labels.unique()), code=code, input_spec=spec)
    return replace(found, labels=labels.numpy(), stability=found.stability)


def colors() -> Scene:
    """Return the scene with hand-set weights."""
    model, spec = datasets.planted_network()
    images, labels = datasets.planted_images(distractor=8)
    facets = true_facets(model, Unit("unit", 0), images, labels, spec, Code("rectified"))
    judge = Judge(datasets.planted_network()[0], code=Code("rectified"), input_spec=spec)
    return Scene("colors", model, spec, images, facets, judge, np.arange(4))


def digits() -> Scene:
    """Return the scene with trained networks."""
    model, spec = datasets.even_or_odd()
    images, labels = datasets.digits()
    even = labels % 2 == 0
    images, labels = images[even], labels[even] // 2
    facets = true_facets(model, Unit("logits", 0), images, labels, spec, Code("relu4", "flatten"))
    judge = Judge(datasets.ten_digits()[0], code=Code("logits"), input_spec=spec)
    return Scene("digits", model, spec, images, facets, judge, np.arange(0, 10, 2))


Images = Callable[[Scene], Tensor]


def members(scene: Scene) -> Tensor:
    """Return the real image nearest to each facet's center."""
    return torch.stack([scene.images[facet.members[0]] for facet in scene.facets])


def halves(scene: Scene) -> Tensor:
    """Join the left half of each facet's image and the right half of the next facet's image."""
    own = members(scene)
    width = own.shape[-1] // 2
    return torch.cat([own[..., :width], own.roll(-1, 0)[..., width:]], -1)


KNOWN: Mapping[str, tuple[Images, Mapping[str, str]]] = {
    "one real image of each facet": (
        members,
        {"own": "1", "retention": "1", "centered": "1", "predicts": "near 1", "distance": "0", "precision": "1"},
    ),
    "image of the next facet": (
        lambda scene: members(scene).roll(-1, 0),
        {"own": "0", "retention": "0", "predicts": "0", "off-facet": "near 1 (colors)", "diversity": "as above"},
    ),
    "one image for all facets": (
        lambda scene: members(scene)[:1].expand_as(members(scene)).contiguous(),
        {"own": "1 / k", "retention": "1 / k", "predicts": "1 / k", "diversity": "0"},
    ),
    "half, and half of the next": (halves, {"off-facet": "near .5 (colors)", "precision": "below 1"}),
    "gray": (
        lambda scene: torch.full_like(members(scene), 0.5),
        {"retention": "1 / k", "diversity": "0", "distance": "above 1", "precision": "0"},
    ),
}


def score(scene: Scene, images: Tensor) -> dict[str, float]:
    """Return all scores of one image for each facet."""
    made = scene.judge(list(images))
    scores = judge_scores(made, scene.real)
    names = ("retention", "centered", "predicts", "distance", "precision", "covered", "diversity")
    off = off_facet(scene.contributions(images), scene.contributions(scene.images), scene.facets.labels)
    judged = {name: getattr(scores, name).value for name in names}
    return {"own": float(scene.shows_own(made).mean()), **judged, "off-facet": float(off.mean())}


def known_answers(scene: Scene) -> None:
    """Print scores and their known values."""
    k = len(scene.facets)
    print(f"\n{scene.name}: scores with known values (k = {k})\n\n| images | score | value | expected |")
    print("|---|---|---|---|")
    for name, (images, wanted) in KNOWN.items():
        found = score(scene, images(scene))
        for column, expected in wanted.items():
            print(f"| {name} | {column} | {found[column]:.2f} | {expected} |")
    real = evaluate_images(scene.judge(list(members(scene))), scene.real)
    print(f"| one real image of each facet | retention, shuffled labels | {real.shuffled.value:.2f} | 1 / k |")
    assert real.separation is not None
    print(f"| real images | separation | {real.separation.value:.2f} | above 1 |")
    unit = multifacetedness(scene.facets)
    print(f"| real images | multifacetedness | {unit.score:.2f}, p = {unit.p_value:.2g} | above 0, p < .05 |")
    one = replace(scene.facets, labels=np.where(scene.facets.labels == 0, 0, -1), stability=None)
    alone = np.where(scene.facets.labels == 0, one.activations, np.nan)
    single = multifacetedness(replace(one, activations=alone))
    print(f"| images of one facet | multifacetedness | {single.score:.2f}, p = {single.p_value:.2g} | p > .05 |")
    print(f"| real images | coverage | {unit.coverage:.2f} | near 1 |")


def drawn(scene: Scene, name: str, seeds: list[int]) -> list[Tensor]:
    """Return a recipe's images, or the start images, one batch for each seed."""
    if name == "start alone":
        return [mean_images(scene.facets.facets, scene.images)]
    options = {"recipe": name, "seed": seeds, "input_spec": scene.spec}
    made = render_facets(scene.model, scene.facets, scene.images, **options)
    return list(torch.stack([one.image for one in made]).split(len(scene.facets)))


def recipes(scene: Scene, seeds: list[int]) -> None:
    """Print the scores of each recipe, means over seeds."""
    columns = ("own", "retention", "centered", "predicts", "distance", "off-facet")
    print(f"\n{scene.name}: recipes\n\n| recipe | {' | '.join(columns)} | seeds |\n|---|{'---|' * (len(columns) + 1)}")
    for name in ("start alone", *RECIPES):
        try:
            batches = drawn(scene, name, seeds)
        except RenderError as error:  # the unit is dead at the start
            print(f"| {name} | {str(error).partition(':')[2].partition(';')[0].strip()} |{' |' * len(columns)}")
            continue
        found = [score(scene, images) for images in batches]
        cells = [f"{np.mean([one[column] for one in found]):.2f}" for column in columns]
        codes = np.stack([scene.judge(list(images)).codes for images in batches])
        again = f"{same_over_seeds(codes).mean():.2f}" if len(batches) > 1 else ""
        print(f"| {name} | {' | '.join([*cells, again])} |", flush=True)
    real = scene.contributions(scene.images)
    predicted = evaluate_images(scene.judge(list(members(scene))), scene.real).real_predicts.value
    print(f"| real images | | | | {predicted:.2f} | | {real_off_facet(real, scene.facets.labels).mean():.2f} | |")


def main() -> None:
    """Print both tables for both scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(2)
    for scene in (colors(), digits()):
        known_answers(scene)
        recipes(scene, args.seeds)


if __name__ == "__main__":
    main()
