#!/usr/bin/env python
"""Facets that are known: is every figure right, and which recipe shows its facet? No data, no download, two minutes.

    python benchmarks/planted.py [--seeds 0 1 2]

Two scenes. "Colors" is a network built by hand, whose unit is the OR of four detectors of a color; the judge is the
detectors themselves. "Digits" is a network trained on the spot to tell even digits from odd ones, whose unit "even" has
the facets 0, 2, 4, 6 and 8; the judge is another network, trained from another seed to tell the ten digits apart.

The first table takes images whose right answer is known and prints each figure beside it. The second scores every
recipe: *own* is the share of images that show their facet and no other most (the detector that answers most; the digit
that the judge calls it), *retention*, *predicts* and *distance* are the judge's, *off-facet* is the share of the unit's
activation that the facet's real images don't account for (a real image's own in the last row), and *seeds* the share of
images that are nearest to their own facet's of another seed.
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
    coverage,
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
        spec: what it sees.
        images: that activate its unit.
        facets: the true ones.
        judge: a network that takes no part.
        own: the right answer of the judge's codes' largest number, for each facet.
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
        """What the judge sees in the real images."""
        return LabeledOutput(self.judge(self.images), self.facets.labels)

    def drives(self, images: Tensor) -> NDArray[np.float32]:
        """How much each channel drives the unit."""
        code = pure_code(self.model, self.facets.unit, self.facets.code.layer, input_spec=self.spec)
        return code(images).numpy()

    def shows_own(self, seen: JudgeOutput) -> NDArray[np.bool_]:
        """Whether the judge sees most of each image's own facet."""
        return np.asarray(seen.codes.argmax(1) == self.own)


def true_facets(model: nn.Module, unit: Unit, images: Tensor, labels: Tensor, spec: InputSpec, code: Code) -> FacetSet:
    """The facets as they were planted, in the network's own codes."""
    found = find_facets(model, unit, images, n_facets=len(labels.unique()), code=code, input_spec=spec)
    return replace(found, labels=labels.numpy(), stability=found.stability)


def colors() -> Scene:
    """A network built by hand."""
    model, spec = datasets.planted_network()
    images, labels = datasets.planted_images(distractor=8)
    facets = true_facets(model, Unit("unit", 0), images, labels, spec, Code("rectified"))
    judge = Judge(datasets.planted_network()[0], code=Code("rectified"), input_spec=spec)
    return Scene("colors", model, spec, images, facets, judge, np.arange(4))


def digits() -> Scene:
    """A network trained on the spot."""
    model, spec = datasets.even_or_odd()
    images, labels = datasets.digits()
    even = labels % 2 == 0
    images, labels = images[even], labels[even] // 2
    facets = true_facets(model, Unit("logits", 0), images, labels, spec, Code("relu4", "flatten"))
    judge = Judge(datasets.ten_digits()[0], code=Code("logits"), input_spec=spec)
    return Scene("digits", model, spec, images, facets, judge, np.arange(0, 10, 2))


Images = Callable[[Scene], Tensor]


def members(scene: Scene) -> Tensor:
    """A real image of each facet, the nearest to its center."""
    return torch.stack([scene.images[facet.members[0]] for facet in scene.facets])


def halves(scene: Scene) -> Tensor:
    """The left half of a facet's image and the right half of the next one's."""
    own = members(scene)
    width = own.shape[-1] // 2
    return torch.cat([own[..., :width], own.roll(-1, 0)[..., width:]], -1)


KNOWN: Mapping[str, tuple[Images, Mapping[str, str]]] = {
    "a real image of each": (
        members,
        {"own": "1", "retention": "1", "centered": "1", "predicts": "near 1", "distance": "0", "precision": "1"},
    ),
    "the next facet's": (
        lambda scene: members(scene).roll(-1, 0),
        {"own": "0", "retention": "0", "predicts": "0", "off-facet": "near 1 (colors)", "diversity": "as above"},
    ),
    "one for all": (
        lambda scene: members(scene)[:1].expand_as(members(scene)).contiguous(),
        {"own": "1 / k", "retention": "1 / k", "predicts": "1 / k", "diversity": "0"},
    ),
    "half, and half the next": (halves, {"off-facet": "near .5 (colors)", "precision": "below 1"}),
    "grey": (
        lambda scene: torch.full_like(members(scene), 0.5),
        {"retention": "1 / k", "diversity": "0", "distance": "above 1", "precision": "0"},
    ),
}


def figures(scene: Scene, images: Tensor) -> dict[str, float]:
    """Every figure of one image for each facet."""
    seen = scene.judge(list(images))
    scores = judge_scores(seen, scene.real)
    names = ("retention", "centered", "predicts", "distance", "precision", "covered", "diversity")
    off = off_facet(scene.drives(images), scene.drives(scene.images), scene.facets.labels)
    judged = {name: getattr(scores, name).value for name in names}
    return {"own": float(scene.shows_own(seen).mean()), **judged, "off-facet": float(off.mean())}


def known_answers(scene: Scene) -> None:
    """Figures beside their right answers."""
    k = len(scene.facets)
    print(f"\n{scene.name}: figures whose right answer is known (k = {k})\n\n| images | figure | is | should be |")
    print("|---|---|---|---|")
    for name, (images, wanted) in KNOWN.items():
        found = figures(scene, images(scene))
        for figure, answer in wanted.items():
            print(f"| {name} | {figure} | {found[figure]:.2f} | {answer} |")
    found = evaluate_images(scene.judge(list(members(scene))), scene.real)
    print(f"| a real image of each | retention, shuffled labels | {found.shuffled.value:.2f} | 1 / k |")
    assert found.separation is not None
    print(f"| real images | separation | {found.separation.value:.2f} | above 1 |")
    unit = multifacetedness(scene.facets)
    print(f"| real images | multifacetedness | {unit.score:.2f}, p = {unit.p_value:.2g} | above 0, p < .05 |")
    one = replace(scene.facets, labels=np.where(scene.facets.labels == 0, 0, -1), stability=None)
    alone = np.where(scene.facets.labels == 0, one.activations, np.nan)
    single = multifacetedness(replace(one, activations=alone))
    print(f"| one facet's images | multifacetedness | {single.score:.2f}, p = {single.p_value:.2g} | p > .05 |")
    print(f"| real images | coverage | {coverage(scene.facets):.2f} | near 1 |")


def drawn(scene: Scene, name: str, seeds: list[int]) -> list[Tensor]:
    """A recipe's images, a batch for each seed; or the start alone."""
    if name == "start alone":
        return [mean_images(scene.facets.facets, scene.images)]
    options = {"recipe": name, "seed": seeds, "input_spec": scene.spec}
    made = render_facets(scene.model, scene.facets, scene.images, **options)
    return list(torch.stack([one.image for one in made]).split(len(scene.facets)))


def recipes(scene: Scene, seeds: list[int]) -> None:
    """Every recipe's figures, means over seeds."""
    columns = ("own", "retention", "centered", "predicts", "distance", "off-facet")
    print(f"\n{scene.name}: recipes\n\n| recipe | {' | '.join(columns)} | seeds |\n|---|{'---|' * (len(columns) + 1)}")
    for name in ("start alone", *RECIPES):
        try:
            batches = drawn(scene, name, seeds)
        except RenderError as error:  # a unit that is dead at the start is named, not drawn
            print(f"| {name} | {str(error).partition(':')[2].partition(';')[0].strip()} |{' |' * len(columns)}")
            continue
        found = [figures(scene, images) for images in batches]
        cells = [f"{np.mean([one[column] for one in found]):.2f}" for column in columns]
        codes = np.stack([scene.judge(list(images)).codes for images in batches])
        again = f"{same_over_seeds(codes).mean():.2f}" if len(batches) > 1 else ""
        print(f"| {name} | {' | '.join([*cells, again])} |", flush=True)
    real = scene.drives(scene.images)
    its = evaluate_images(scene.judge(list(members(scene))), scene.real).real_predicts.value
    print(f"| real images | | | | {its:.2f} | | {real_off_facet(real, scene.facets.labels).mean():.2f} | |")


def main() -> None:
    """Both scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(2)
    for scene in (colors(), digits()):
        known_answers(scene)
        recipes(scene, args.seeds)


if __name__ == "__main__":
    main()
