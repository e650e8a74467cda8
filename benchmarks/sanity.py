#!/usr/bin/env python
"""Do figures fall when facets' labels are wrong? Neuron Eval's two tests: python benchmarks/sanity.py [--draws 50]

Missing labels: half of each facet's images, at random, lose their label. Extra labels: each facet receives as many
wrong images as it has, images of other facets at random, which keep their own label too. A figure that says how well
labels describe a unit must fall in both tests (Oikarinen et al., ICML 2025, arXiv 2506.05774). The facets' images are
kept: they were synthesized from the right labels.

Prints for planted facets (`datasets.planted_codes`, four facets, 200 codes, another draw each time) and, with --run,
for a finished run of the command: the figure with the right labels, its mean change in each test, and the share of
draws in which it is lower by more than .001.

    python benchmarks/sanity.py --run out/pepper --images IMAGES --judge mobilenet_v1.py:mobilenet_v1_075

`two-choice, images` has the facets' images as references, `two-choice, real` the mean code of each facet's real
images; the pairs are planted codes of the same facets and of others, or with --run the photographs of two_choice.py
(--photos, the folder of SqueezeNet.npz and MobileNet.npz). `label` is a label in words (`captum_mfv.labels`), of
planted words or, with --run, by `AppearanceNamer`: AUROC on held-out images, and the share of facets that get a
label.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from captum_mfv import Code, FacetSet, ImageFolder, Unit, models
from captum_mfv.datasets import planted_codes
from captum_mfv.facets.finder import stability
from captum_mfv.images.files import from_pil
from captum_mfv.labels import AppearanceNamer, labels_from_scores, word_scores
from captum_mfv.metrics import Judge, multifacetedness, predicts, retained, spread, two_choice

Codes = NDArray[np.floating]
Labels = NDArray[np.int64]

_LESS = 0.001


@dataclass(frozen=True, eq=False)
class Scene:
    """A unit's facets, and what an independent network returns.

    Args:
        codes, activations, labels: of the facet set.
        judged: the independent network's codes of the same images.
        made: its codes of the facets' images.
        photos, photo_activations: its codes of other real images, and the unit's activation on these.
        words: (n, n_words) a namer's scores of the images, of which labels in words are made.
    """

    codes: Codes
    activations: Codes
    labels: Labels
    judged: Codes
    made: Codes
    photos: Codes
    photo_activations: Codes
    words: Codes

    def rows(self, indices: Labels, labels: Labels) -> Scene:
        """Return the scene with other labels of some of the images; images may be repeated."""
        found = {name: getattr(self, name)[indices] for name in ("codes", "activations", "judged", "words")}
        return replace(self, labels=labels, **found)

    def facets(self, stable: tuple[float, ...]) -> FacetSet:
        """Return the facet set."""
        arrays = (self.codes.astype(np.float32), self.activations.astype(np.float32))
        return FacetSet(Unit("unit", 0), Code("code"), self.labels, arrays[0][:, :2], *arrays, stability=stable)


def missing(scene: Scene, rng: np.random.Generator) -> Scene:
    """Remove the labels of half of each facet's images."""
    labels = scene.labels.copy()
    for k in np.unique(labels[labels >= 0]):
        members = rng.permutation(np.flatnonzero(labels == k))
        labels[members[: len(members) // 2]] = -1
    return scene.rows(np.arange(len(labels)), labels)


def extra(scene: Scene, rng: np.random.Generator) -> Scene:
    """Add as many images of other facets to each facet as it has."""
    indices, labels = [np.arange(len(scene.labels))], [scene.labels]
    for k in np.unique(scene.labels[scene.labels >= 0]):
        wrong = np.flatnonzero((scene.labels != k) & (scene.labels >= 0))
        n = min(len(wrong), int((scene.labels == k).sum()))
        indices.append(rng.choice(wrong, n, replace=False))
        labels.append(np.full(n, k))
    return scene.rows(np.concatenate(indices), np.concatenate(labels))


def figures(scene: Scene, seed: int) -> dict[str, float]:
    """Return all figures."""
    compared = (scene.made, scene.judged, scene.labels)
    kept = scene.labels >= 0
    across, within = spread(scene.judged, scene.labels)
    stable, _ = stability(scene.codes[kept], scene.labels[kept], seed=seed)
    facets = scene.facets(tuple(stable.tolist()))
    unit = multifacetedness(facets, seed=seed)
    named = labels_from_scores(facets, scene.words, [f"word {i}" for i in range(scene.words.shape[1])], seed=seed)
    centers = np.stack([scene.judged[scene.labels == k].mean(0) for k in range(len(scene.made))])
    pairs = (scene.photos, scene.photo_activations)
    return {
        "retention": float(retained(*compared).mean()),
        "centered": float(retained(*compared, centered=True).mean()),
        "predicts": float(predicts(*compared).mean()),
        "separation (spread ratio)": float(across.mean() / within.mean()),
        "stability": float(stable.mean()),
        "coverage": float(unit.coverage),
        "multifacetedness": unit.score,
        "label: AUROC": float(np.mean([label.score.value for label in named if label.score])),
        "label: share of facets with one": float(np.mean([label.text is not None for label in named])),
        "two-choice, images": two_choice(scene.made, *pairs, seed=seed).estimate.value,
        "two-choice, real": two_choice(centers, *pairs, seed=seed).estimate.value,
    }


def planted(seed: int) -> Scene:
    """Draw four facets of a unit and four clusters of images that don't activate it."""
    codes, labels = planted_codes(8, 800, 64, separation=7.0, seed=seed)
    rng = np.random.default_rng(seed)
    centers = np.stack([codes[labels == k].mean(0) for k in range(8)])
    active = -np.linalg.norm(codes[:, None] - centers[None, :4], axis=2).min(1) + rng.normal(size=len(codes))
    used = (labels < 4) & (np.arange(len(codes)) % 2 == 0)
    made = centers[:4] + rng.normal(size=(4, 64)) * codes.std()
    words = rng.normal(size=(int(used.sum()), 12))
    words[np.arange(len(words)), labels[used]] += 2  # words 0 to 3 are right for one facet each
    return Scene(codes[used], active[used], labels[used], codes[used], made, codes[~used], active[~used], words)


def of_run(args: argparse.Namespace) -> Scene:
    """Return the facets and images of a run."""
    facets = FacetSet.load(args.run)
    model, spec = models.load(args.judge)
    if args.judge_input:
        spec = replace(spec, mean=(args.judge_input[0],) * 3, std=(args.judge_input[1],) * 3)
    judge = Judge(model, args.judge_unit, input_spec=spec)
    paths = sorted((args.run / "images").glob("facet_??.png"))
    made = judge([from_pil(Image.open(path).convert("RGB")) for path in paths]).codes
    images = ImageFolder(args.images, replace(spec, crop_fraction=1.0))
    judged, words = judge(images).codes, word_scores(AppearanceNamer(), images)
    with np.load(args.photos / "MobileNet.npz") as photos, np.load(args.photos / "SqueezeNet.npz") as unit:
        pairs = photos["codes"], unit[str(facets.unit)]
    return Scene(facets.codes, facets.activations, facets.labels, judged, made, *pairs, words)


TESTS: Mapping[str, Callable[[Scene, np.random.Generator], Scene]] = {"missing": missing, "extra": extra}


def print_table(title: str, draw: Callable[[int], Scene], n_draws: int) -> None:
    """Print the figures with right labels, and how they change."""
    right: list[dict[str, float]] = []
    changes: dict[str, list[dict[str, float]]] = {name: [] for name in TESTS}
    for seed in range(n_draws):
        scene = draw(seed)
        right.append(figures(scene, seed))
        for name, corrupt in TESTS.items():
            wrong = figures(corrupt(scene, np.random.default_rng(seed)), seed)
            changes[name].append({key: wrong[key] - right[-1][key] for key in wrong})
    columns = [f"{name}: {what}" for name in TESTS for what in ("change", "lower")]
    print(f"\n{title}, {n_draws} draws\n\n| figure | right labels | {' | '.join(columns)} |\n|{'---|' * 6}")
    for key in right[0]:
        cells = []
        for rows in changes.values():
            values = np.array([row[key] for row in rows])
            cells += [f"{values.mean():+.3f}", f"{(values < -_LESS).mean():.2f}"]
        print(f"| {key} | {np.mean([row[key] for row in right]):.3f} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--run", type=Path, help="folder of a run")
    parser.add_argument("--images", type=Path, help="the run's images, cropped already")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--judge")
    parser.add_argument("--judge-unit", type=Unit.parse)
    parser.add_argument("--judge-input", nargs=2, type=float, metavar=("MEAN", "STD"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_table("planted facets", planted, args.draws)
    if args.run:
        scene = of_run(args)
        print_table(str(args.run.name), lambda seed: scene, args.draws)


if __name__ == "__main__":
    main()
