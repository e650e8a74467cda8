#!/usr/bin/env python
"""Label the facets of bell pepper and of ten class units, and score the labels: python benchmarks/labels.py DATA OUT

The units are logits of SqueezeNet 1.0 (`suite.json`). Facets are labeled by EfficientNet-Lite2's class names and by
`AppearanceNamer`, which sees colors and composition. For each label, the tables show

auroc      AUROC on held-out images of the facet against those of the unit's other facets, with its corrected interval
agrees     whether the facet's synthesized image has the label, by the same namer
drawn      share of the unit's other facets whose synthesized images have less of the label than the facet's own
facet AUC  CoSy's AUC with real images: the log probability of the facet by `FacetSet.head`, on the 20 images that have
           most of the word, against all others. For class names, another network (MobileNet v1) chooses the images; for
           appearance, AppearanceNamer itself. Images are those of DATA/imagenet_sample and every fifth of
           DATA/caltech101, without the unit's own. MAD is CoSy's mean activation difference of the same numbers
unit AUC   the same with the unit's activation in place of the facet's probability

OUT/CELL/ has facets, synthesized images and contact sheets, on which to look: a row for each facet, its synthesized
image first, then its label's evidence, then members from the nearest to the farthest. What exists is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from contact_sheet import sheet
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from captum_mfv import FacetSet, ImageFolder, InputSpec, Unit
from captum_mfv.activations.capture import capture, guard
from captum_mfv.bench import Cell, Scenes, get_suite
from captum_mfv.images import Images, batches, image_at, read_image, to_pil
from captum_mfv.labels import (
    AppearanceNamer,
    ClassifierNamer,
    Label,
    Namer,
    concept_scores,
    labels_from_scores,
    word_scores,
)
from captum_mfv.metrics import shuffled
from captum_mfv.optvis.render import render_facets

SUITE = get_suite(Path(__file__).with_name("suite.json"))
N_CLASSES = 10
N_SHOWN = 20  # images of a word
N_BETWEEN = 5  # one of so many photographs of caltech101 is in the pool
DRAWS = 200  # of shuffled clusters


@dataclass(frozen=True)
class Bench:
    """Networks, namers and the pool of images."""

    data: Path
    out: Path

    @cached_property
    def scenes(self) -> Scenes:
        """The suite's networks, images and facets."""
        return Scenes(SUITE, self.data, self.out)

    @cached_property
    def network(self) -> tuple[torch.nn.Module, InputSpec]:
        """SqueezeNet, whose facets are labeled."""
        return self.scenes.network("SqueezeNet")

    @cached_property
    def namers(self) -> Mapping[str, Namer]:
        """The two namers whose labels are scored."""
        model, spec = self.scenes.network("Lite2")
        return {"class names": ClassifierNamer(model, input_spec=spec), "appearance": AppearanceNamer()}

    @cached_property
    def pool(self) -> tuple[Images, list[str]]:
        """Images of words, and each one's folder."""
        _, spec = self.network
        samples, photos = (ImageFolder(self.data / name, spec) for name in ("imagenet_sample", "caltech101"))
        some = [i for i in range(0, len(photos), N_BETWEEN) if photos.paths[i].suffix == ".jpg"]
        names = [path.parent.name for path in [*samples.paths, *(photos.paths[i] for i in some)]]
        return ConcatDataset([samples, Subset(photos, some)]), names

    def kept(self, name: str, compute: Any) -> dict[str, NDArray[Any]]:
        """Return arrays from a file, or compute and write them."""
        path = self.out / f"{name}.npz"
        if not path.exists():
            np.savez(path, **compute())
        with np.load(path) as file:
            return dict(file)

    def pool_scores(self) -> dict[str, NDArray[Any]]:
        """Return, of the pool, the scores by which images of a word are chosen, the network's codes and logits."""
        images, _ = self.pool
        judge, spec = self.scenes.network("MobileNet")

        def compute() -> dict[str, NDArray[Any]]:
            model, own_spec = self.network
            layers, found = [UNIT_CODE, SUITE.networks["SqueezeNet"].class_layer], {"codes": [], "logits": []}
            with guard(model), torch.no_grad(), capture(model, layers) as run:
                for _, batch in batches(images, 16):
                    outputs = run(own_spec.feed(model)(batch))
                    for name, layer in zip(found, layers, strict=True):
                        found[name].append(outputs[layer].mean((2, 3)).numpy())
            scores = {"class names": ClassifierNamer(judge, input_spec=spec), "appearance": AppearanceNamer()}
            arrays = {name: np.concatenate(parts) for name, parts in found.items()}
            return {**arrays, **{name: word_scores(namer, images, progress=True) for name, namer in scores.items()}}

        return self.kept("pool", compute)

    def drawn(self, cell: Cell, facets: FacetSet, images: Images) -> list[Tensor]:
        """Return the facets' synthesized images."""
        model, spec = self.network
        paths = [self.out / cell.name / f"facet_{k:02}.png" for k in range(len(facets))]
        if not all(path.exists() for path in paths):
            for one, path in zip(render_facets(model, facets, images, input_spec=spec), paths, strict=True):
                to_pil(one.image).save(path)
        return [read_image(path, replace(spec, crop_fraction=1.0)) for path in paths]


UNIT_CODE = "features.12"


def label(bench: Bench, cell: Cell) -> list[dict[str, Any]]:
    """Return a row for each facet and namer of a cell, and draw the contact sheets."""
    facets, (images, _) = bench.scenes.facets(cell), bench.scenes.images(cell)
    assert facets.code.layer == UNIT_CODE
    drawn, pool, (_, names) = bench.drawn(cell, facets, images), bench.pool_scores(), bench.pool
    others = np.array([name != cell.class_name for name in names])
    facet_scores = facets.head()(torch.from_numpy(pool["codes"])).log_softmax(1).numpy()
    rows = []
    for kind, namer in bench.namers.items():
        arrays = bench.kept(
            f"{cell.name}/{kind.replace(' ', '_')}",
            lambda namer=namer: {"real": word_scores(namer, images), "drawn": word_scores(namer, drawn)},
        )
        options = {"comparable": getattr(namer, "comparable", False)}
        found = labels_from_scores(facets, arrays["real"], namer.words, renderings=arrays["drawn"], **options)
        draw_sheet(bench.out / cell.name / f"{kind.replace(' ', '_')}.jpg", images, facets, found, drawn)
        false = fmean(
            one.text is not None
            for seed in range(DRAWS)
            for one in labels_from_scores(
                shuffled(facets, seed=seed), arrays["real"], namer.words, seed=seed, **options
            )
        )
        for one in found:
            row = {"cell": cell.name, "namer": kind, "size": len(facets[one.index]), "false": false, **asdict(one)}
            if one.text is not None:
                row |= scores_of(one, namer, arrays, pool, kind, others, facet_scores, cell.unit)
            rows.append(row)
    return rows


def scores_of(
    one: Label,
    namer: Namer,
    arrays: Mapping[str, NDArray[Any]],
    pool: Mapping[str, NDArray[Any]],
    kind: str,
    others: NDArray[np.bool_],
    facet_scores: NDArray[Any],
    unit: Unit,
) -> dict[str, Any]:
    """Return the scores of a label with real and synthesized images."""
    column = namer.words.index(one.text)
    shown = np.argsort(np.where(others, -pool[kind][:, column], np.inf), kind="stable")[:N_SHOWN]
    control = np.setdiff1d(np.flatnonzero(others), shown)
    measured = {"facet": facet_scores[:, one.index], "unit": pool["logits"][:, unit.index]}
    found = {name: asdict(concept_scores(values[shown], values[control])) for name, values in measured.items()}
    own, rest = arrays["drawn"][one.index, column], np.delete(arrays["drawn"][:, column], one.index)
    return {"cosy": found, "drawn": float((rest < own).mean()), "shown": shown.tolist()}


def draw_sheet(
    path: Path, images: Images, facets: FacetSet, labels: Sequence[Label], drawn: Sequence[Tensor], columns: int = 14
) -> None:
    """Draw a row for each facet: its synthesized image, its evidence, and members from the nearest to the farthest."""
    rows: list[Image.Image] = []
    for facet, one, picture in zip(facets, labels, drawn, strict=True):
        places = np.linspace(0, len(facet) - 1, columns - 5).round().astype(int)
        shown = [*one.evidence, *[None] * (4 - len(one.evidence)), *facet.members[places]]
        tiles = [picture, *(torch.ones_like(picture) if i is None else image_at(images, int(i)) for i in shown)]
        rows += [to_pil(tile).resize((112, 112), Image.Resampling.LANCZOS) for tile in tiles]
    sheet(rows, columns).save(path, quality=88)


def print_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the labels, and their means by namer."""
    print("| unit | facet | images | namer | label | auroc | agrees | drawn | facet AUC | facet MAD | unit AUC |")
    print("|---" * 11 + "|")
    for row in rows:
        named, score = row["text"] is not None, row["score"]
        text = row["text"] if named else f"none ({row['best']})"
        auroc = f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})" if score else ""
        more = ["", "", "", "", ""]
        if named:
            facet, unit = row["cosy"]["facet"], row["cosy"]["unit"]
            more = [
                "yes" if row["agrees"] else "no",
                f"{row['drawn']:.2f}",
                *(f"{facet['auc']['value']:.2f}", f"{facet['difference']:.2f}", f"{unit['auc']['value']:.2f}"),
            ]
        cells = [row["cell"], str(row["index"]), str(row["size"]), row["namer"], text, auroc, *more]
        print(f"| {' | '.join(cells)} |")
    for kind in dict.fromkeys(row["namer"] for row in rows):
        own = [row for row in rows if row["namer"] == kind]
        named = [row for row in own if row["text"] is not None]
        means = {
            "AUROC": fmean(row["score"]["value"] for row in named),
            "agrees": fmean(row["agrees"] for row in named),
            "drawn": fmean(row["drawn"] for row in named),
            "facet AUC": fmean(row["cosy"]["facet"]["auc"]["value"] for row in named),
            "facet MAD": fmean(row["cosy"]["facet"]["difference"] for row in named),
            "unit AUC": fmean(row["cosy"]["unit"]["auc"]["value"] for row in named),
            "shuffled clusters with a label": fmean(row["false"] for row in own),
        }
        figures = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        print(f"{kind}: {len(named)} of {len(own)} facets have a label; {figures}")


def main() -> None:
    """Label all cells and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    bench, rows = Bench(args.data, args.out), []
    cells = [cell for cell in SUITE.cells() if cell.network == "SqueezeNet" and cell.class_name]
    for cell in cells[: N_CLASSES + 1]:
        rows += label(bench, cell)
        print(f"{cell.class_name}: done", flush=True)
    (args.out / "labels.json").write_text(json.dumps(rows, indent=1))
    print_tables(rows)


if __name__ == "__main__":
    main()
