"""Facets of a unit over a dataset, and their file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from captum_mfv.display.notebook import swatch, table
from captum_mfv.errors import FacetError
from captum_mfv.storage.files import tensor_file, write_whole
from captum_mfv.storage.identity import content_fingerprint, fingerprint
from captum_mfv.storage.schema import Integer, Number, Record, validate
from captum_mfv.storage.untrusted import inside, parse_json
from captum_mfv.units import Code, Unit

__all__ = ["LARGEST_CODE", "Facet", "FacetSet", "Header"]


Floats = NDArray[np.float32]


LARGEST_CODE = 1e15  # whose square float32 holds, and a sum of many


_ARRAYS = ("labels", "embedding", "codes", "activations")


@dataclass(frozen=True, eq=False)
class Facet:
    """One facet of a unit.

    Args:
        index: its number in the facet set.
        members: (n,) dataset indices of its images, nearest to the center first.
        distances: (n,) Euclidean distance of the members' codes to the center.
        activations: (n,) the unit's activation on the members.
        center: (D,) mean code of the members.
        centers: (n_facets, D) the same of all facets of the set.
        origin: (D,) mean code of all images, against which the center is read.
        peak: the unit's largest activation on any image.
        unit: the unit.
        code: the code.
        stability: how well it is found again in bootstrap samples, in [0, 1]; None if that wasn't tried.
        stability_interval: between which values that lies in 95 % of the samples; None if that isn't known.
    """

    index: int
    members: NDArray[np.int64]
    distances: Floats
    activations: Floats
    center: Floats
    centers: Floats
    origin: Floats
    peak: float
    unit: Unit
    code: Code
    stability: float | None = None
    stability_interval: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.members)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the facet's images depend on, the same on every machine."""
        arrays = self.members, self.activations, self.centers, self.origin
        content = content_fingerprint(*arrays)
        return fingerprint(index=self.index, unit=self.unit, code=self.code, peak=self.peak, content=content)


class _CodeRecord(Record):
    layer: str
    reduce: str
    channels: str | None = None


class _UnitRecord(_CodeRecord):
    index: Integer | list[Number]


class Header(Record):
    """What a facet set's file holds in addition to its arrays."""

    unit: _UnitRecord
    code: _CodeRecord
    p_value: Number | None
    stability: tuple[Number, ...] | None = None
    stability_interval: tuple[tuple[Number, Number], ...] | None = None


@dataclass(frozen=True, eq=False)
class FacetSet(Sequence[Facet]):
    """The facets of a unit over a dataset; iterates and indexes as a sequence of `Facet`.

    Args:
        unit: the unit, its layer by name.
        code: the code in whose space the facets were found.
        labels: (n_images,) facet of each image of the dataset; -1: noise, or not readable.
        embedding: (n_images, d) where the clusters were found; NaN for images that can't be read.
        codes: (n_images, D) codes; NaN for images that can't be read.
        activations: (n_images,) the unit's activation; NaN for images that can't be read.
        p_value: of the images being one cluster, where the number of facets was chosen; else None.
        stability: of each facet, in [0, 1], where it was tried; else None.
        stability_interval: of each facet, between which values it lies in 95 % of bootstrap samples; or None.

    Raises:
        FacetError: if a facet has no members, or the arrays don't belong together.
    """

    unit: Unit
    code: Code
    labels: NDArray[np.int64]
    embedding: Floats
    codes: Floats
    activations: Floats
    p_value: float | None = None
    stability: tuple[float, ...] | None = None
    stability_interval: tuple[tuple[float, float], ...] | None = None
    facets: tuple[Facet, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len({len(array) for array in self.arrays().values()}) > 1:
            raise FacetError("labels, embedding, codes and activations must have a row for each image")
        if not len(self.labels) or self.labels.max() >= len(self.labels):  # counting them would fill the memory
            raise FacetError("there must be no more facets than images, and at least one")
        counts = np.bincount(self.labels[self.labels >= 0])
        if not len(counts) or not counts.all():
            raise FacetError("every facet must have at least one image")
        seen = np.isfinite(self.activations)
        origin, peak = self.codes[seen].mean(0), float(self.activations[seen].max())
        centers = np.stack([self.codes[self.labels == k].mean(0) for k in range(len(counts))])
        object.__setattr__(self, "facets", tuple(self._facet(k, centers, origin, peak) for k in range(len(counts))))

    def _facet(self, index: int, centers: Floats, origin: Floats, peak: float) -> Facet:
        members, center = np.flatnonzero(self.labels == index), centers[index]
        distances = np.linalg.norm(self.codes[members] - center, axis=1)
        order = np.argsort(distances, kind="stable")
        members = members[order]
        return Facet(
            index=index,
            members=members,
            distances=distances[order],
            activations=self.activations[members],
            center=center,
            centers=centers,
            origin=origin,
            peak=peak,
            unit=self.unit,
            code=self.code,
            stability=None if self.stability is None else self.stability[index],
            stability_interval=None if self.stability_interval is None else self.stability_interval[index],
        )

    def __len__(self) -> int:
        return len(self.facets)

    def __iter__(self) -> Iterator[Facet]:
        return iter(self.facets)

    @overload
    def __getitem__(self, index: int) -> Facet: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Facet, ...]: ...

    def __getitem__(self, index: int | slice) -> Facet | tuple[Facet, ...]:
        return self.facets[index]

    def _repr_html_(self) -> str:
        """A table for notebooks: each facet's size, activation and stability."""
        n_images = int(np.isfinite(self.activations).sum())
        rows = [
            [
                swatch(facet.index, str(facet.index)),
                str(len(facet)),
                f"{facet.activations.mean():.3g}",
                "" if facet.stability is None else f"{facet.stability:.2f}",
            ]
            for facet in self
        ]
        p_value = "" if self.p_value is None else f"; of one facet, p = {self.p_value:.2g}"
        caption = f"{len(self)} facets of {self.unit} in {n_images} images, told apart by {self.code.layer}{p_value}"
        return table(caption, ["facet", "images", "activation", "stability"], rows)

    @property
    def centers(self) -> Floats:
        """(n_facets, D) mean code of each facet."""
        return self.facets[0].centers

    @property
    def fingerprint(self) -> str:
        """Fingerprint of unit, code, labels and codes, the same on every machine."""
        return fingerprint(unit=self.unit, code=self.code, content=content_fingerprint(self.labels, self.codes))

    def as_one_facet(self) -> FacetSet:
        """The unit as one facet, of every image that could be read."""
        labels = np.where(np.isfinite(self.activations), 0, -1)
        return replace(self, labels=labels, p_value=None, stability=None, stability_interval=None)

    def head(self) -> nn.Linear:
        """The facets as a linear layer from code to facet logits, frozen.

        The largest logit is the nearest center's; the softmax is the posterior of equally likely
        spherical Gaussians with the variance that the codes have about their centers along a typical
        direction, tr(S²) / tr(S) with S the covariance within facets.
        """
        centers = torch.from_numpy(self.centers).double()
        variance = self._variance_within()
        head = nn.Linear(centers.shape[1], len(self), device="meta").to_empty(device="cpu")  # draws nothing
        with torch.no_grad():
            head.weight.copy_(centers / variance)
            head.bias.copy_(-centers.square().sum(1) / (2 * variance))
        return head.requires_grad_(False)

    def _variance_within(self) -> float:
        kept = self.labels >= 0
        residuals = self.codes[kept] - self.centers[self.labels[kept]]
        wide = residuals.shape[1] > residuals.shape[0]
        gram = residuals @ residuals.T if wide else residuals.T @ residuals
        trace = float(np.trace(gram))
        return float((gram.astype(np.float64) ** 2).sum()) / trace / len(residuals) if trace > 0 else 1.0

    def header(self) -> dict[str, str]:
        """Unit, code and p-value as JSON, by name."""
        return {
            "unit": json.dumps(asdict(self.unit)),
            "code": json.dumps(asdict(self.code)),
            "p_value": json.dumps(self.p_value),
            "stability": json.dumps(self.stability),
            "stability_interval": json.dumps(self.stability_interval),
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that, with unit and code, are all there is to it."""
        return {name: getattr(self, name) for name in _ARRAYS}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the facet set as one safetensors file, whole or not at all."""
        write_whole(Path(path), tensor_file(self.arrays(), self.header()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FacetSet:
        """Read what `save` wrote, or the facets of a run from its folder.

        Raises:
            FacetError: if that isn't a facet set.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(_file_of(Path(path)), framework="numpy") as file:
                header = {name: parse_json(text) for name, text in (file.metadata() or {}).items()}
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            valid = validate(Header, header, "header")
            found = cls(
                Unit(**header["unit"]),
                Code(**header["code"]),
                **_belonging(arrays),
                p_value=valid.p_value,
                stability=valid.stability,
                stability_interval=valid.stability_interval,
            )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise FacetError(f"{os.fspath(path)} isn't a facet set: {error}") from error
        return found


def _file_of(path: Path) -> Path:
    """The file of a facet set, in the run's folder if there is one; pipes and devices would block."""
    if path.is_dir():
        return inside(path, "tensors.safetensors")
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    return path


def _belonging(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays of a file as those of a facet set: numbers or NaN in whole rows, of the same images."""
    axes = {name: array.ndim for name, array in arrays.items()}
    if axes != {"labels": 1, "embedding": 2, "codes": 2, "activations": 1} or not all(a.size for a in arrays.values()):
        raise ValueError(f"arrays of shapes {', '.join(str(array.shape) for array in arrays.values())}")
    if arrays["labels"].dtype.kind != "i" or any(arrays[name].dtype.kind != "f" for name in _ARRAYS[1:]):
        raise ValueError("labels must be integers, all else floating-point numbers")
    with np.errstate(over="ignore"):
        floats = {name: arrays[name].astype(np.float32) for name in _ARRAYS[1:]}
    labels, seen = arrays["labels"].astype(np.int64), np.isfinite(floats["activations"])
    for name, array in floats.items():
        rows = array.reshape(len(array), -1)
        there = np.isfinite(rows).all(1)
        if not np.array_equal(there, seen) or not np.array_equal(there, ~np.isnan(rows).all(1)):
            raise ValueError(f"{name} must be finite, or NaN for images that can't be read")
        if (np.abs(rows[there]) > LARGEST_CODE).any():
            raise ValueError(f"{name} above {LARGEST_CODE:g} leave distances without a meaning")
    if labels.min() < -1 or (labels[~seen] >= 0).any():
        raise ValueError("labels must be facets of images that can be read, or -1")
    return {"labels": labels, **floats}
