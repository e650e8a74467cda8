"""Labels of the units and facets of an atlas: each image is scored once, and scoring resumes where it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.activations.codes import Store
from captum_mfv.display.progress import Progress
from captum_mfv.errors import RunError
from captum_mfv.images import Images, batches
from captum_mfv.jobs.atlas.crops import read_crops
from captum_mfv.labels import Namer, labels_from_scores, word_scores
from captum_mfv.report import atlas as page
from captum_mfv.runs.atlas import AtlasFolder
from captum_mfv.runs.atlas_writer import AtlasWriter
from captum_mfv.runs.labels import AtlasLabels, UnitLabels
from captum_mfv.storage.files import remove
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.schema import check_seed
from captum_mfv.storage.untrusted import within

__all__ = ["label_atlas"]

Scores = NDArray[np.float32]

_SCORES = ".scores"  # folder from which an interrupted labeling resumes
_BATCH = 32  # images
_OTHERS = 1000  # images of the layer's other units, at most, with which a unit is contrasted


def label_atlas(
    folder: AtlasFolder, namer: Namer, *, namer_name: str, images: Images | None, seed: int, progress: bool
) -> AtlasLabels:
    """Label the units and facets of a finished atlas; arguments and errors are those of `jobs.label`."""
    began = perf_counter()
    writer, groups = AtlasWriter(folder.path, folder.manifest), read_crops(folder, images)
    keys = {row["unit"]: writer.read_key(row["unit"]) for row in folder.units if row["status"] == "done"}
    scoring = _Scoring(writer, namer, keys, progress)
    drawn = dict(scoring.renderings())
    found = dict[str, UnitLabels]()
    for group in groups:
        scores = scoring.scores(group, f"crops-{group.side}")
        labeling = _Labeling(writer, namer, scores, group.rows, drawn, seed)
        with Progress(group.rows, "labels", unit="unit", disable=not progress) as units:
            found |= {unit: labeling.unit(unit, keys[unit]) for unit in units}
    labels = AtlasLabels(
        namer=namer_name, n_words=len(namer.words), seed=seed, units={unit: found[unit] for unit in keys}
    )
    writer.write_labels(labels)
    page.build(writer)
    remove(writer.path / _SCORES)
    writer.add_timings({"labels": perf_counter() - began})
    return labels


@dataclass(frozen=True, eq=False)
class _Renderings:
    """Dataset of the synthesized images of some facets, rows of ``facets.json``."""

    folder: AtlasFolder
    rows: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.folder.read_image(self.rows[index]["unit"], self.rows[index]["index"])


@dataclass(frozen=True, eq=False)
class _Scoring:
    """A namer's scores of an atlas's images; ``keys`` are those of the units' records."""

    folder: AtlasWriter
    namer: Namer
    keys: Mapping[str, str]
    progress: bool

    def renderings(self) -> Iterator[tuple[str, Scores]]:
        """Yield each unit and the scores of its synthesized images, (n_facets, n_words)."""
        layers = {row["unit"]: row["layer"] for row in self.folder.units}
        found: dict[str, list[int]] = {}
        for row in self.folder.facets:
            found.setdefault(row["unit"], []).append(row["index"])
        if found != {row["unit"]: list(range(row["n_facets"])) for row in self.folder.units if row["status"] == "done"}:
            raise RunError(f"{self.folder.path}: facets.json isn't of the units in units.json")
        for number, layer in enumerate(dict.fromkeys(layers[unit] for unit in self.keys)):
            rows = [row for row in self.folder.facets if layers[row["unit"]] == layer]
            scores = self.scores(_Renderings(self.folder, rows), f"renderings-{number}")
            names = np.array([row["unit"] for row in rows])
            yield from ((str(name), scores[names == name]) for name in dict.fromkeys(names))

    def scores(self, images: Images, part: str) -> Scores:
        """Return the scores of a dataset, (n, n_words), a part of the atlas's images; resume if they were begun."""
        store = Store(len(images), {"part": part}, self._place(part))
        start = store.n_done if store.n_done == len(images) else store.n_done - store.n_done % _BATCH
        with Progress(total=len(images), initial=start, desc=part, unit="image", disable=not self.progress) as bar:
            for places, batch in batches(images, _BATCH, start):
                store.write(places, {"scores": word_scores(self.namer, batch)})
                bar.update(places[-1] + 1 - bar.n)
        store.finish()
        return store.arrays["scores"]

    def _place(self, part: str) -> Path | None:
        """Return the folder of the scores of a part; None for a namer without a fingerprint: scores are not kept."""
        own = getattr(self.namer, "fingerprint", None)
        if own is None:
            return None
        name = fingerprint(namer=own, units=self.keys)
        try:
            for other in within(self.folder.path, _SCORES).glob("*"):
                if other.name != name:  # of another namer, or of units that were redone
                    remove(other)
            return within(self.folder.path, f"{_SCORES}/{name}/{part}")
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder.path}: {error}") from error


@dataclass(frozen=True, eq=False)
class _Labeling:
    """Labels of units whose images are of one size.

    Args:
        folder: the atlas.
        namer: the namer.
        scores: (n, n_words) scores of the units' images, each image once.
        rows: the rows of ``scores`` of each unit's images, by the unit's name.
        drawn: (n_facets, n_words) scores of the synthesized images of each unit.
        seed: seed of the halves, and of the sample of other units' images.
    """

    folder: AtlasWriter
    namer: Namer
    scores: Scores
    rows: Mapping[str, NDArray[np.int64]]
    drawn: Mapping[str, Scores]
    seed: int

    @cached_property
    def samples(self) -> dict[str, NDArray[np.int64]]:
        """Rows of a random sample of the images of each layer, in random order."""
        found: dict[str, list[NDArray[np.int64]]] = {}
        for unit, rows in self.rows.items():
            found.setdefault(unit.rpartition(":")[0], []).append(rows)
        rng = np.random.default_rng(check_seed(self.seed))
        return {layer: rng.permutation(np.unique(np.concatenate(rows))) for layer, rows in found.items()}

    def unit(self, name: str, key: str) -> UnitLabels:
        """Return the labels of a unit and of its facets."""
        facets, rows, drawn = self.folder.read_facets(name), self.rows[name], self.drawn[name]
        scores, others = self.scores[rows], self.samples[name.rpartition(":")[0]]
        others = others[~np.isin(others, rows)][:_OTHERS]
        alone, words = len(facets) == 1, self.namer.words
        options: dict[str, Any] = {"comparable": getattr(self.namer, "comparable", False), "seed": self.seed}
        (whole,) = labels_from_scores(
            facets.as_one_facet(),
            scores,
            words,
            others=self.scores[others] if len(others) else None,
            renderings=drawn if alone else None,
            **options,
        )
        own = [whole] if alone else labels_from_scores(facets, scores, words, renderings=drawn, **options)
        return UnitLabels(key=key, unit=whole, facets=tuple(own))
