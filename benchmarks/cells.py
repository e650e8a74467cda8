"""Units of three networks on which recipes and other methods are compared by `suite.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from captum_mfv import InputSpec, Unit, models

TUNING = {"accordion": 401, "dragonfly": 319, "schooner": 780}
"""Categories on which recipes are tuned, and their ImageNet classes; the next are those that are reported."""

REPORTED = {
    "bell pepper": 945,
    "Leopards": 288,
    "crayfish": 124,
    "dalmatian": 251,
    "electric_guitar": 546,
    "hawksbill": 33,
    "llama": 355,
    "pizza": 963,
    "revolver": 763,
    "rooster": 7,
    "scorpion": 71,
    "soccer_ball": 805,
    "trilobite": 69,
}


@dataclass(frozen=True)
class Network:
    """A network, its class layer and its hidden units; ``weights`` and a file in ``source`` are in the data folder."""

    source: str
    classes: str
    hidden: tuple[str, ...]
    weights: str | None = None
    gray: tuple[float, float] | None = None  # mean and standard deviation, where the source doesn't return them

    def load(self, data: Path) -> tuple[torch.nn.Module, InputSpec]:
        """Return the model and its preprocessing."""
        source = str(data / self.source) if ".py:" in self.source else self.source
        model, spec = models.load(source, None if self.weights is None else data / self.weights)
        if self.gray is not None:
            spec = replace(spec, mean=(self.gray[0],) * 3, std=(self.gray[1],) * 3)
        return model, spec


NETWORKS: Mapping[str, Network] = {
    "SqueezeNet": Network(
        "squeezenet1_0",
        "classifier.1",
        ("features.9:3", "features.9:100", "features.12:3", "features.12:410"),
        weights="squeezenet1_0_imagenet.safetensors",
    ),
    "MobileNet": Network(
        "mobilenet_v1.py:mobilenet_v1_075",
        "classifier",
        ("features.16:7", "features.16:100", "features.22:7", "features.22:100"),
        gray=(0.5, 0.5),
    ),
    "Lite2": Network(
        "efficientnet_lite2.py:efficientnet_lite2",
        "classifier",
        ("features.15:7", "features.15:50", "features.20:7", "features.20:100"),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A unit of a network: a class unit of a category's images, or a hidden unit, whose category is None."""

    network: str
    category: str | None
    unit: Unit
    n_facets: int = 4

    @property
    def name(self) -> str:
        """Name of the cell's folders."""
        return f"{self.network}-{self.category or self.unit}".replace(" ", "_").replace(":", "_")

    @property
    def cluster(self) -> str:
        """Return the name of the cluster that intervals resample: the class, or the hidden unit."""
        return self.category or self.name


def all_cells(tuning: bool) -> list[Cell]:
    """Return the tuning cells, or the reported ones: bell pepper, hidden units, then the other classes."""
    classes = TUNING if tuning else REPORTED
    cells = [
        Cell(name, category, Unit(network.classes, index), 10 if category == "bell pepper" else 4)
        for category, index in classes.items()
        for name, network in NETWORKS.items()
    ]
    hidden = zip(*(network.hidden for network in NETWORKS.values()), strict=True)
    more = [Cell(name, None, hidden_unit(text)) for texts in hidden for name, text in zip(NETWORKS, texts, strict=True)]
    return cells if tuning else cells[: len(NETWORKS)] + more + cells[len(NETWORKS) :]


def hidden_unit(text: str) -> Unit:
    """Return a unit read at its peak."""
    return replace(Unit.parse(text), reduce="max")
