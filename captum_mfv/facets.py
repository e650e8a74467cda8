"""Facets: clusters of the images that activate a unit, found as the paper does or by your own clusterer."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits
from torch import nn

from captum_mfv.collect import Collection, View, collect
from captum_mfv.errors import FacetError, MFVWarning
from captum_mfv.files import tensor_file, write_whole
from captum_mfv.foreign import Header, check, inside, parse_json
from captum_mfv.images import Images, InputSpec
from captum_mfv.notebook import swatch, table
from captum_mfv.progress import waiting
from captum_mfv.separation import separate
from captum_mfv.stability import bounds, recoveries, stability
from captum_mfv.units import Code, Unit

__all__ = ["Facet", "FacetFinder", "FacetSet", "cluster", "find_facets", "nearest"]

Floats = NDArray[np.float32]

_FEW = 1000
_LARGEST = 1e15  # whose square float32 holds, and a sum of many
_ARRAYS = ("labels", "embedding", "codes", "activations")


class FacetFinder(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Codes to facets: PCA, t-SNE to two dimensions, k-means there (Algorithm 1 of arXiv 1602.03616).

    Centers are means in code space, since t-SNE maps nothing new. Facets are numbered by size, the
    largest first.

    With ``n_facets="auto"`` facets are as many as are separated among the reduced codes themselves, since
    t-SNE makes islands out of noise, against a null of the same covariance and size; one is an answer
    (`captum_mfv.separation`). They are found there too, and the embedding is a map to look at, unless a
    clusterer of yours is given, which is then asked for as many.

    Args:
        n_facets: number of clusters k, the paper's is 10; or ``"auto"``.
        reducer: a number of principal components, any scikit-learn transformer, or None.
        embedding: ``"tsne"``, any transformer, or None to cluster the reduced codes themselves.
        perplexity: t-SNE's, at most a third of the number of codes.
        clusterer: any scikit-learn clusterer, noise labelled -1; None: k-means, ten starts. One with a
            parameter ``n_clusters`` or ``n_components`` is given k, unless its ``distance_threshold`` is set, which
            finds their number.
        n_bootstraps: bootstrap samples for ``stability_``.
        random_state: seed or `numpy.random.RandomState`.

    Attributes:
        labels_: (n_samples,) facet of each code.
        embedding_: (n_samples, d) where the clusters were found.
        centers_: ``(n_facets_, n_features)`` mean code of each facet.
        n_facets_: number of facets found.
        stability_: ``(n_facets_,)`` in [0, 1], how well each facet is found again in bootstrap samples of the
            reduced codes (`captum_mfv.stability`); below .6 a facet is doubtful. NaN without samples.
        stability_interval_: ``(n_facets_, 2)`` between which values it lies in 95 % of these samples.
        p_value_: of the codes being one cluster; with ``n_facets="auto"`` alone.

    Example:
        >>> from captum_mfv.datasets import planted_codes
        >>> codes, truth = planted_codes(n_facets=3, n_codes=120, n_dimensions=16)
        >>> finder = FacetFinder(n_facets=3, random_state=0).fit(codes)
        >>> finder.labels_.shape, finder.centers_.shape, finder.stability_.round(1).tolist()
        ((119,), (3, 16), [1.0, 1.0, 1.0])
    """

    def __init__(
        self,
        n_facets: int | Literal["auto"] = 10,
        *,
        reducer: Any = 50,
        embedding: Any = "tsne",
        perplexity: float = 30.0,
        clusterer: Any = None,
        n_bootstraps: int = 20,
        random_state: Any = None,
    ) -> None:
        self.n_facets = n_facets
        self.reducer = reducer
        self.embedding = embedding
        self.perplexity = perplexity
        self.clusterer = clusterer
        self.n_bootstraps = n_bootstraps
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> FacetFinder:
        """Find the facets of codes.

        Args:
            X: (n_samples, n_features) codes, finite.
            y: ignored.

        Raises:
            FacetError: if there are fewer distinct codes than facets.
        """
        codes = validate_data(self, X, dtype=[np.float64, np.float32])
        self._check(codes)
        seed = check_random_state(self.random_state).randint(2**31)
        with threadpool_limits(1 if len(codes) < _FEW else None):  # threads cost few codes more than they save
            reduced = self._reduce(codes, seed)
            self.embedding_ = self._embed(reduced, seed)
            self.labels_ = _by_size(self._cluster(reduced, seed))
        self.n_facets_ = int(self.labels_.max()) + 1
        if self.n_facets_ < 1:
            raise FacetError("the clusterer called every image noise; there is no facet")
        self.stability_, self.stability_interval_ = self._stability(reduced, seed)
        self.centers_ = np.stack([codes[self.labels_ == k].mean(0) for k in range(self.n_facets_)])
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.intp]:
        """The facet of new codes, (n_samples,): the nearest center in code space."""
        check_is_fitted(self)
        codes = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return nearest(codes, self.centers_)

    def _check(self, codes: NDArray[Any]) -> None:
        k = self.n_facets
        if isinstance(k, str):
            if k != "auto":
                raise FacetError(f"n_facets must be an integer or 'auto', not {k!r}")
            return
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
            raise TypeError(f"n_facets must be an integer or 'auto', not {k!r}")
        if k < 1:
            raise FacetError(f"n_facets must be at least 1, not {k}")
        if len(codes) < k:
            raise FacetError(f"{k} facets can't be found in {len(codes)} images (n_samples={len(codes)})")
        if k > 1 and (distinct := len(np.unique(codes, axis=0))) < k:
            raise FacetError(f"{k} facets can't be found in {len(codes)} images with {distinct} distinct codes")

    def _reduce(self, codes: NDArray[Any], seed: int) -> NDArray[Any]:
        if self.reducer is None or len(codes) == 1:
            return codes
        if not isinstance(self.reducer, (int, np.integer)):
            return np.asarray(clone(self.reducer).fit_transform(codes))
        components = min(int(self.reducer), *codes.shape)
        return np.asarray(PCA(components, random_state=seed).fit_transform(codes))

    def _embed(self, reduced: NDArray[Any], seed: int) -> NDArray[Any]:
        if self.embedding is None:
            return reduced
        if not isinstance(self.embedding, str):
            return np.asarray(clone(self.embedding).fit_transform(reduced))
        if self.embedding != "tsne":
            raise FacetError(f"embedding must be 'tsne', a transformer or None, not {self.embedding!r}")
        if len(reduced) < 4:  # too few for neighbourhoods; the codes themselves then
            return reduced[:, :2]
        perplexity = min(self.perplexity, (len(reduced) - 1) / 3)
        init = "pca" if min(reduced.shape) >= 2 else "random"
        return np.asarray(TSNE(2, perplexity=perplexity, init=init, random_state=seed).fit_transform(reduced))

    def _cluster(self, reduced: NDArray[Any], seed: int) -> NDArray[Any]:
        if self.n_facets != "auto":
            return np.asarray(self._clusterer(self.n_facets, seed).fit_predict(self.embedding_))
        found = separate(reduced.astype(np.float64), seed)
        self.p_value_ = found.p_value
        if self.clusterer is None:
            return found.labels
        return np.asarray(self._clusterer(found.n_clusters, seed).fit_predict(self.embedding_))

    def _stability(self, reduced: NDArray[Any], seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not self.n_bootstraps:
            return np.full(self.n_facets_, np.nan), np.full((self.n_facets_, 2), np.nan)
        found = recoveries(reduced, self.labels_, self.n_bootstraps, seed)
        return stability(found), bounds(found)

    def _clusterer(self, n_facets: int, seed: int) -> Any:
        if self.clusterer is None:
            return KMeans(n_facets, n_init=10, random_state=seed)
        clusterer = clone(self.clusterer)
        taken = clusterer.get_params(deep=False)
        k = None if taken.get("distance_threshold") is not None else n_facets  # scikit-learn takes the one or the other
        given = {"n_clusters": k, "n_components": k, "random_state": seed}
        return clusterer.set_params(**{name: value for name, value in given.items() if name in taken})


def nearest(codes: NDArray[Any], centers: NDArray[Any]) -> NDArray[np.intp]:
    """Index of the nearest center, (N,), by Euclidean distance in code space."""
    return np.asarray((codes @ centers.T - (centers**2).sum(1) / 2).argmax(1))


def _by_size(labels: NDArray[Any]) -> NDArray[np.int64]:
    """The same clusters numbered from the largest to the smallest; noise stays -1."""
    found, first, counts = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    new = np.full(len(labels), -1, np.int64)
    for rank, k in enumerate(np.lexsort((first, -counts))):
        new[labels == found[k]] = rank
    return new


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
    def key(self) -> str:
        """A hash of the content: the same for the same unit, code, labels and codes, on any machine."""
        digest = hashlib.sha256(json.dumps([asdict(self.unit), asdict(self.code)]).encode())
        for array in (self.labels, self.codes):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def whole(self) -> FacetSet:
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
            check(header, Header, "header")
            found = cls(
                Unit(**header["unit"]),
                Code(**header["code"]),
                **_belonging(arrays),
                p_value=header["p_value"],
                stability=_tuples(header.get("stability")),
                stability_interval=_tuples(header.get("stability_interval")),
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


def _tuples(rows: Any) -> Any:
    return tuple(map(_tuples, rows)) if isinstance(rows, list) else rows


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
        if (np.abs(rows[there]) > _LARGEST).any():
            raise ValueError(f"{name} above {_LARGEST:g} leave distances without a meaning")
    if labels.min() < -1 or (labels[~seen] >= 0).any():
        raise ValueError("labels must be facets of images that can be read, or -1")
    return {"labels": labels, **floats}


def find_facets(
    model: nn.Module,
    unit: Unit,
    images: Images,
    *,
    n_facets: int | Literal["auto"] = 10,
    code: Code | str | View | None = None,
    finder: FacetFinder | None = None,
    input_spec: InputSpec | None = None,
    seed: int = 0,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> FacetSet:
    """The facets of a unit: the clusters of the images that activate it, told by their codes.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: the unit.
        images: the images that activate it: for a class unit, images of the class; for a hidden unit, its
            `top_images` (with their ``input_spec``).
        n_facets: how many, or ``"auto"``: as many as are separated, which may be one.
        code: which numbers describe an image; by default the last layer with positions before the
            unit, averaged over them. A function from images in [0, 1] to codes, (N, D), tells images
            apart by something else, such as attributions (`attr.AttributionCode`) or another network;
            centers are in the default code's space then, where images can be synthesised.
        finder: how codes become facets; by default `FacetFinder(n_facets, random_state=seed)`.
        input_spec: what turns images in [0, 1] into the model's input.
        seed: seed of the default finder.
        batch_size: images in one forward pass.
        store: a folder for activations and codes, with which a stopped call goes on, as in `collect`.
        progress: show a progress bar.

    Raises:
        UnitError: if the unit or the code isn't in the model, or is ambiguous.
        ImageError: if no image can be read.
        RunError: if the store holds something else.
        FacetError: if there are fewer (distinct) images than facets, or codes aren't finite.

    Warns:
        MFVWarning: if the unit is 0 on all images: their facets are not its own then.

    Example:
        >>> from captum_mfv.datasets import planted_images, planted_network
        >>> model, spec = planted_network()
        >>> images, colors = planted_images(n_each=30)
        >>> facets = find_facets(model, Unit("unit", 0), images, n_facets=4, input_spec=spec)
        >>> [len(facet) for facet in facets]
        [30, 30, 30, 30]
    """
    layer, view = (code, None) if code is None or isinstance(code, (Code, str)) else (None, code)
    collection = collect(
        model,
        unit,
        images,
        code=layer,
        view=view,
        input_spec=input_spec,
        batch_size=batch_size,
        store=store,
        progress=progress,
    )
    with waiting("facets", progress):
        return cluster(collection, finder or FacetFinder(n_facets, random_state=seed))


def cluster(collection: Collection, finder: FacetFinder) -> FacetSet:
    """The facets of collected codes, or of collected views where there are any."""
    rows = collection.indices
    told_by = (collection.codes if collection.views is None else collection.views)[rows]
    activations = collection.activations[rows]
    numbers = activations[:, None], collection.codes[rows], told_by
    usable = np.all([(abs(values) <= _LARGEST).all(1) for values in numbers], 0)  # NaN isn't
    if not usable.all():
        raise FacetError(
            f"the activations of {collection.code.layer} or {collection.unit} aren't finite on {(~usable).sum()} of "
            f"{len(rows)} images, or beyond {_LARGEST:g}; look for NaN in the weights, or take a wider type of numbers"
        )
    if not activations.any():
        message = f"{collection.unit} is 0 on all {len(rows)} images: it is dead, or they don't activate it"
        warnings.warn(message, MFVWarning, stacklevel=2)
    finder = clone(finder).fit(told_by)

    def spread(values: NDArray[Any], fill: float) -> NDArray[Any]:
        whole = np.full((len(collection.codes), *values.shape[1:]), fill, values.dtype)
        whole[rows] = values
        return whole

    return FacetSet(
        collection.unit,
        collection.code,
        spread(finder.labels_, -1),
        spread(finder.embedding_.astype(np.float32), np.nan),
        collection.codes,
        collection.activations,
        getattr(finder, "p_value_", None),
        tuple(finder.stability_.tolist()) if finder.n_bootstraps else None,
        tuple(map(tuple, finder.stability_interval_.tolist())) if finder.n_bootstraps else None,
    )
