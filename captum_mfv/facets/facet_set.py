"""Facets of a unit over a dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.display.notebook import swatch, table
from captum_mfv.errors import FacetError
from captum_mfv.storage.files import tensor_file, write_whole
from captum_mfv.storage.identity import canonical, content_fingerprint, fingerprint, weights_fingerprint
from captum_mfv.storage.schema import Number, Record, validate
from captum_mfv.storage.untrusted import inside, parse_json
from captum_mfv.units import Code, Unit

__all__ = ["LARGEST_CODE", "Facet", "FacetHead", "FacetSet", "nearest"]

Floats = NDArray[np.float32]

LARGEST_CODE = 1e15
"""Largest magnitude of codes and activations; keeps sums of squares finite in float32."""

_ARRAYS = ("labels", "embedding", "codes", "activations")
_FIGURES = ("p_value", "stability", "stability_interval")


@dataclass(frozen=True, eq=False)
class Facet:
    """One facet of a unit.

    Args:
        index: index of the facet in the facet set.
        members: (n,) dataset indices of the facet's images, nearest to the center first.
        distances: (n,) Euclidean distance of the members' codes to the center.
        activations: (n,) the unit's activation on the members.
        center: (D,) mean code of the members.
        centers: (n_facets, D) centers of all facets of the set.
        groups: the ``members`` of all facets of the set.
        origin: (D,) mean code of all readable images.
        peak: the unit's largest activation on any image.
        unit: the unit.
        code: the code.
        stability, stability_interval: those of the facet in its `FacetSet`.
    """

    index: int
    members: NDArray[np.int64]
    distances: Floats
    activations: Floats
    center: Floats
    centers: Floats
    groups: tuple[NDArray[np.int64], ...]
    origin: Floats
    peak: float
    unit: Unit
    code: Code
    stability: float | None = None
    stability_interval: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def shifted(self, offset: int) -> Facet:
        """Return the facet with ``offset`` added to dataset indices, for a dataset that begins with other images."""
        return replace(self, members=self.members + offset, groups=tuple(group + offset for group in self.groups))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the facet's images depend on, the same on every machine."""
        content = content_fingerprint(*self.groups, self.activations, self.centers, self.origin)
        return fingerprint(index=self.index, unit=self.unit, code=self.code, peak=self.peak, content=content)


@dataclass(frozen=True, eq=False)
class FacetSet(Sequence[Facet]):
    """The facets of a unit over a dataset; iterates and indexes as a sequence of `Facet`.

    Args:
        unit: the unit, its layer by name.
        code: the code; centers and distances are in its space.
        labels: (n_images,) facet index of each image of the dataset; -1 for noise and unreadable images.
        embedding: (n_images, d) embedding in which the clusters were found; NaN for unreadable images.
        codes: (n_images, D) codes; NaN for unreadable images.
        activations: (n_images,) the unit's activation; NaN for unreadable images.
        p_value: p-value of a single cluster, with ``n_facets="auto"``; otherwise None.
        stability: mean recovery of each facet in bootstrap samples, in [0, 1]; None if not computed.
        stability_interval: 2.5th and 97.5th percentile of each facet's recovery; None if not computed.

    Raises:
        FacetError: if a facet has no members, or the arrays differ in length.
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
        if not len(self.labels) or self.labels.max() >= len(self.labels):  # bincount would allocate that many
            raise FacetError("a facet set must have at least one facet, and no more facets than images")
        counts = np.bincount(self.labels[self.labels >= 0])
        if not len(counts) or not counts.all():
            raise FacetError("every facet must have at least one image")
        object.__setattr__(self, "facets", self._assemble(len(counts)))

    def _assemble(self, n_facets: int) -> tuple[Facet, ...]:
        readable, groups, distances = np.isfinite(self.activations), [], []
        origin, peak = _mean(self.codes[readable]), float(self.activations[readable].max())
        centers = np.stack([_mean(self.codes[self.labels == k]) for k in range(n_facets)])
        for k, center in enumerate(centers):
            members = np.flatnonzero(self.labels == k)
            far = np.linalg.norm(self.codes[members] - center, axis=1)
            order = np.argsort(far, kind="stable")
            groups.append(members[order])
            distances.append(far[order])
        return tuple(
            Facet(
                index=k,
                members=members,
                distances=distances[k],
                activations=self.activations[members],
                center=centers[k],
                centers=centers,
                groups=tuple(groups),
                origin=origin,
                peak=peak,
                unit=self.unit,
                code=self.code,
                stability=None if self.stability is None else self.stability[k],
                stability_interval=None if self.stability_interval is None else self.stability_interval[k],
            )
            for k, members in enumerate(groups)
        )

    def __len__(self) -> int:
        return len(self.facets)

    @overload
    def __getitem__(self, index: int) -> Facet: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Facet, ...]: ...

    def __getitem__(self, index: int | slice) -> Facet | tuple[Facet, ...]:
        return self.facets[index]

    def _repr_html_(self) -> str:
        """Return an HTML table for notebooks: size, mean activation and stability of each facet."""
        rows = []
        for facet in self:
            stability = "" if facet.stability is None else f"{facet.stability:.2f}"
            name, activation = swatch(facet.index, str(facet.index)), f"{facet.activations.mean():.3g}"
            rows.append([name, str(len(facet)), activation, stability])
        return table(self._summary(), ["facet", "images", "activation", "stability"], rows)

    def __repr__(self) -> str:
        return f"FacetSet({self._summary()})"

    def _summary(self) -> str:
        n_images = int(np.isfinite(self.activations).sum())
        p_value = "" if self.p_value is None else f", one facet: p = {self.p_value:.2g}"
        agreement = f"{self.agreement:.1%} nearest to their own center"
        return f"{len(self)} facets of {self.unit} in {n_images} images, code {self.code.layer}, {agreement}{p_value}"

    @property
    def centers(self) -> Floats:
        """Mean code of each facet, (n_facets, D)."""
        return self.facets[0].centers

    @property
    def fingerprint(self) -> str:
        """Fingerprint of unit, code, labels and codes, the same on every machine."""
        return fingerprint(unit=self.unit, code=self.code, content=content_fingerprint(self.labels, self.codes))

    def as_one_facet(self) -> FacetSet:
        """Return a facet set of one facet that has every readable image."""
        labels = np.where(np.isfinite(self.activations), 0, -1)
        return replace(self, labels=labels, p_value=None, stability=None, stability_interval=None)

    @property
    def agreement(self) -> float:
        """Share of the images with a facet whose nearest center in code space is their own facet's, in [0, 1].

        Below 1 where clusters were found in an embedding, such as t-SNE, or in other numbers than the codes.
        `attr.FacetModel` and `evaluate` assign images to the nearest center: this is how often they return `labels`.
        """
        kept = self.labels >= 0
        return float((nearest(self.codes[kept], self.centers) == self.labels[kept]).mean())

    def head(self) -> FacetHead:
        """Return the facets as a classifier; its variance is tr(S²) / tr(S), S the covariance within facets."""
        kept = self.labels >= 0
        residuals = self.codes[kept] - self.centers[self.labels[kept]].astype(np.float64)
        wide = residuals.shape[1] > residuals.shape[0]
        gram = residuals @ residuals.T if wide else residuals.T @ residuals
        trace = float(np.trace(gram))
        variance = float((gram**2).sum()) / trace / len(residuals) if trace > 0 else 1.0
        return FacetHead(self.centers, variance)

    def header(self) -> dict[str, str]:
        """Return unit, code, p-value and stability as JSON texts by name; an encoder as its fingerprint."""
        values = canonical({"unit": self.unit, "code": self.code})
        values |= {name: getattr(self, name) for name in _FIGURES}
        return {name: json.dumps(value) for name, value in values.items()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return labels, embedding, codes and activations by name."""
        return {name: getattr(self, name) for name in _ARRAYS}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the facet set atomically as one safetensors file."""
        write_whole(Path(path), tensor_file(self.arrays(), self.header()))

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: nn.Module | None = None) -> FacetSet:
        """Read a facet set from a file that `save` wrote, or from the folder of a run.

        Args:
            path: the file or the folder.
            encoder: the encoder of the unit, a latent; the file holds only the encoder's fingerprint.

        Raises:
            FacetError: if the file holds no facet set, or the encoder isn't that of its unit.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(_file_of(Path(path)), framework="numpy") as file:
                texts = {name: parse_json(text) for name, text in (file.metadata() or {}).items()}
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            header = validate(_Header, texts, "header")
            unit, code = Unit(**header.unit), Code(**header.code)
            figures = {name: getattr(header, name) for name in _FIGURES}
            found = cls(unit, code, **_validated(arrays), **figures)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise FacetError(f"{os.fspath(path)} isn't a facet set: {error}") from error
        return found if encoder is None else replace(found, unit=_with_encoder(unit, encoder))


def nearest(codes: NDArray[Any], centers: NDArray[Any]) -> NDArray[np.intp]:
    """Return the index of the center, (n_facets, D), nearest to each code, (N, D), by Euclidean distance, (N,).

    The centers' mean is subtracted in float64 first, so that codes far from zero keep their precision.
    """
    origin = centers.mean(0, dtype=np.float64)
    codes, centers = codes - origin, centers - origin
    return np.asarray(((centers**2).sum(1) / 2 - codes @ centers.T).argmin(1))


class FacetHead(nn.Module):
    """Linear classifier from codes, (N, D), to facet logits, (N, n_facets); frozen.

    The largest logit is that of the nearest center. The softmax is the posterior of equally likely spherical
    Gaussians around the centers. ``origin``, the mean of the centers, is subtracted from codes before the layer
    ``linear``: folded into the bias, it would cost float32 the precision of codes far from zero. Logits of a single
    facet are therefore 0.

    Args:
        centers: (n_facets, D) facet centers.
        variance: variance of the Gaussians along each direction.
    """

    origin: Tensor

    def __init__(self, centers: NDArray[Any], variance: float) -> None:
        super().__init__()
        self.register_buffer("origin", torch.from_numpy(centers.mean(0, dtype=np.float64)).float())
        offsets = torch.from_numpy(centers).double() - self.origin.double()
        n_facets, n_features = offsets.shape
        linear = nn.Linear(n_features, n_facets, device="meta")  # draws no random numbers
        self.linear = linear.to_empty(device="cpu")
        with torch.no_grad():
            self.linear.weight.copy_(offsets / variance)
            self.linear.bias.copy_(-offsets.square().sum(1) / (2 * variance))
        self.requires_grad_(False)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits, (N, n_facets), in the dtype of the head."""
        logits: Tensor = self.linear(codes.to(self.origin.dtype) - self.origin)
        return logits


class _Header(Record):
    unit: dict[str, Any]
    code: dict[str, Any]
    p_value: Number | None
    stability: tuple[Number, ...] | None = None
    stability_interval: tuple[tuple[Number, Number], ...] | None = None


def _with_encoder(unit: Unit, encoder: nn.Module) -> Unit:
    """Return a unit that was read from a file, with its encoder in place of the encoder's fingerprint."""
    if unit.encoder is None:
        raise FacetError(f"{unit} is no latent, and takes no encoder")
    if unit.encoder != weights_fingerprint(encoder):
        raise FacetError(f"the encoder isn't that of {unit}: its weights, settings or modules differ")
    return replace(unit, encoder=encoder)


def _file_of(path: Path) -> Path:
    """Return the file of a facet set; refuse pipes and devices, which would block."""
    if path.is_dir():
        return inside(path, "tensors.safetensors")
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    return path


def _validated(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the arrays as int64 and float32; raise ValueError if shapes, types or values are wrong."""
    axes = {name: array.ndim for name, array in arrays.items()}
    if axes != {"labels": 1, "embedding": 2, "codes": 2, "activations": 1} or not all(a.size for a in arrays.values()):
        raise ValueError(f"arrays of shapes {', '.join(str(array.shape) for array in arrays.values())}")
    if arrays["labels"].dtype.kind != "i" or any(arrays[name].dtype.kind != "f" for name in _ARRAYS[1:]):
        raise ValueError("labels must be integers, all other arrays floating-point numbers")
    with np.errstate(over="ignore"):
        floats = {name: arrays[name].astype(np.float32) for name in _ARRAYS[1:]}
    labels, readable = arrays["labels"].astype(np.int64), np.isfinite(floats["activations"])
    for name, array in floats.items():
        rows = array.reshape(len(array), -1)
        finite = np.isfinite(rows).all(1)
        if not np.array_equal(finite, readable) or not np.array_equal(finite, ~np.isnan(rows).all(1)):
            raise ValueError(f"{name} must be finite, or NaN for unreadable images")
        if (np.abs(rows[finite]) > LARGEST_CODE).any():
            raise ValueError(f"{name} above {LARGEST_CODE:g} would make distances overflow")
    if labels.min() < -1 or (labels[~readable] >= 0).any():
        raise ValueError("labels must be facet numbers of readable images, or -1")
    return {"labels": labels, **floats}


def _mean(codes: Floats) -> Floats:
    """Return the mean of rows in float32, computed in float64."""
    return np.asarray(codes.mean(0, dtype=np.float64), np.float32)
