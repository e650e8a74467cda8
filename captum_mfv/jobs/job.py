"""The settings of one unit's run."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """What to do for one unit.

    Args:
        model: what `models.load` takes.
        unit: the unit, as ``layer:index``.
        images: folder of images that activate it; with ``top_k``, of any images.
        weights: weights file, or None for the model's own.
        top_k: only the images that activate it most, this many; of a channel that is read at its peak,
            the crops that show what the peak sees.
        reduce: how the unit reads positions; None: ``max`` with ``top_k`` where there are maps, else ``mean``.
        channels: ``last`` if its layer returns (N, H, W, C).
        facets: number of facets, or ``auto``.
        code: layer whose output describes an image, as ``layer`` or ``layer:reduce``; None: the last
            layer with positions before the unit.
        recipe: name of the recipe, or path of its ``.json``.
        steps: number of steps, or None for the recipe's.
        size: side of the synthesised images in pixels, or None for what the model sees.
        input_size: side of the model's input in pixels, or None for the model's own.
        device: where the model runs, such as ``cuda``; None: a GPU if there is one.
        attribution: which of `captum.attr`'s methods shows where images show their facet, as `attr.facet_maps`
            takes it; None: its default.
        dtype: precision of the model under autocast while images are synthesised, such as ``bfloat16``, or
            None for its own.
        labels: JSON table of image path in the folder → known group: adds the adjusted Rand index of the facets
            against them to the metrics.
        seed: seed of everything random.
    """

    model: str
    unit: str
    images: str
    weights: str | None = None
    top_k: int | None = None
    reduce: str | None = None
    channels: str | None = None
    facets: int | Literal["auto"] = 10
    code: str | None = None
    recipe: str = "facet"
    steps: int | None = None
    size: int | None = None
    input_size: int | None = None
    attribution: str | None = None
    device: str | None = None
    dtype: str | None = None
    labels: str | None = None
    seed: int = 0

    def given(self) -> dict[str, str | int]:
        """The options that have a value, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def command(self, out: str) -> str:
        """The command that does this."""
        options = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in self.given().items()]
        return " ".join(["captum-mfv run", *options, f"--out {shlex.quote(out)}"])
