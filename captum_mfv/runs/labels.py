"""``labels.json`` in the folder of a run or of an atlas: its declaration, and a checked read of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

from captum_mfv.errors import RunError
from captum_mfv.labels import Label
from captum_mfv.storage.schema import Integer, Record, Seed, validate
from captum_mfv.storage.untrusted import inside, read_json

__all__ = ["LABELS", "AtlasLabels", "Labeling", "RunLabels", "UnitLabels", "read_labels"]

LABELS = "labels.json"
"""File of the labels of facets, in the folder of a run or of an atlas."""


def _sound(label: Label) -> Label:
    """Return a label if its score is an AUROC in its interval, and its text the word that was tested."""
    score = label.score
    if score is not None and not 0 <= score.low <= score.value <= score.high <= 1:
        raise ValueError("the score of a label must be an AUROC from 0 to 1, in its interval")
    if label.text is not None and (score is None or label.text != label.best):
        raise ValueError("the text of a label must be its best word, with a score")
    return label


def _in_order(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    if [label.index for label in labels] != list(range(len(labels))):
        raise ValueError("labels must be of facets 0, 1, 2 …, in this order")
    return labels


_Label = Annotated[Label, AfterValidator(_sound)]
_Labels = Annotated[tuple[_Label, ...], AfterValidator(_in_order)]


class Labeling(Record):
    """How facets were labeled: the namer's name, the number of its words, and the seed of the halves."""

    namer: str
    n_words: Integer
    seed: Seed


class RunLabels(Labeling):
    """``labels.json`` of a run: the label of each facet."""

    facets: _Labels


class UnitLabels(Record):
    """The labels of one unit of an atlas.

    ``unit`` is contrasted with images of the layer's other units, and so is a unit's only facet. Several facets are
    contrasted with each other. ``key`` is that of the unit's record, so that labels of a unit that was redone are left
    out.
    """

    key: str
    unit: _Label
    facets: _Labels


class AtlasLabels(Labeling):
    """``labels.json`` of an atlas: the labels of each unit that is done, by the unit's name."""

    units: dict[str, UnitLabels]

    def other_unit(self, units: Sequence[Mapping[str, Any]], facets: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the first unit whose labels aren't those in the rows of both tables; None if there is none."""
        texts = {row["unit"]: [row.get("label")] for row in units}
        for row in facets:
            texts.setdefault(row["unit"], []).append(row.get("label"))
        own = {name: [label.text for label in (its.unit, *its.facets)] for name, its in self.units.items()}
        return next((name for name in own if texts.get(name) != own[name]), None)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for the label of each unit, whose index is None, and of each facet."""
        of_units: list[tuple[str, int | None, Label]] = [(name, None, its.unit) for name, its in self.units.items()]
        return [
            {
                "unit": name,
                "index": index,
                "label": label.text,
                "best": label.best,
                "agrees": label.agrees,
                **{"auroc" if k == "value" else k: v for k, v in (vars(label.score) if label.score else {}).items()},
            }
            for name, index, label in [
                *of_units,
                *((name, one.index, one) for name, its in self.units.items() for one in its.facets),
            ]
        ]


T = TypeVar("T", RunLabels, AtlasLabels)


def read_labels(folder: Path, kind: type[T]) -> T | None:
    """Read the labels in a folder; None if there are none.

    Raises:
        RunError: if the file can't be read.
    """
    try:
        path = inside(folder, LABELS)
        return validate(kind, read_json(path)) if path.exists() else None
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: {LABELS} can't be read: {error}; remove it, and label again") from error
