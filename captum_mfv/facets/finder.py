"""Find facets: a scikit-learn estimator that clusters codes, its use on a unit, and the stability of clusters."""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits
from torch import nn

from captum_mfv.activations.codes import CodeFn, Collection, collect
from captum_mfv.display.progress import waiting
from captum_mfv.errors import FacetError, MFVWarning
from captum_mfv.facets.excess import Excess, excess
from captum_mfv.facets.facet_set import LARGEST_CODE, FacetSet, nearest
from captum_mfv.facets.separation import merge_clusters, separate
from captum_mfv.images import Images, InputSpec
from captum_mfv.storage.schema import check_integer, check_seed
from captum_mfv.units import Code, Unit

__all__ = ["STABLE", "FacetFinder", "cluster", "find_facets", "stability"]

Floats = NDArray[np.float64]

STABLE = 0.6
"""Smallest stability of a stable facet; below, a facet is "doubtful" (Hennig 2007)."""

_FEW = 1000
_LEVEL = 0.05  # significance level: clusters explain more of the codes than of one cloud
_DRAWS = 3  # of the null distributions of separated clusters


class FacetFinder(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Cluster codes into facets: PCA, t-SNE to two dimensions, k-means there (Algorithm 1 of arXiv 1602.03616).

    Centers are means in code space, because t-SNE cannot embed new codes. Facets are numbered by size, the largest
    first.

    With ``n_facets="auto"``, the facets are the separated clusters of the reduced codes, compared with a null
    distribution of the same covariance and size (`captum_mfv.facets.separation`). Where none are separated, but
    clusters explain more of the codes than they explain of one cloud (`captum_mfv.facets.excess`, p < .05), k-means
    divides the codes into the smallest number that explains about as much as any. Otherwise there is one facet. The
    embedding is then only for display, because t-SNE separates noise into islands. A given clusterer clusters the
    embedding into as many.

    Args:
        n_facets: number of facets, 10 in the paper; or ``"auto"``.
        reducer: number of principal components, any scikit-learn transformer, or None.
        embedding: ``"tsne"``, any scikit-learn transformer, or None to cluster the reduced codes.
        perplexity: perplexity of t-SNE, reduced to a third of the number of codes if larger.
        clusterer: any scikit-learn clusterer, which labels noise -1; None: k-means with ten starts. Its parameter
            ``n_clusters`` or ``n_components`` is set to the number of facets, unless ``distance_threshold`` is set.
        n_bootstraps: number of bootstrap samples for ``stability_``.
        max_facets: largest number of facets by ``"auto"``: the nearest clusters are merged.
        random_state: seed or `numpy.random.RandomState`.

    Attributes:
        labels_: (n_samples,) facet index of each code.
        embedding_: (n_samples, d) embedding in which the clusters were found.
        centers_: ``(n_facets_, n_features)`` mean code of each facet.
        n_facets_: number of facets found.
        stability_, stability_interval_: `stability` of the facets in the reduced codes; below .6 a facet is doubtful.
        p_value_: p-value of a single cluster; only with ``n_facets="auto"``.
        excess_: the `excess` of the codes where ``"auto"`` computed it, else None.

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
        max_facets: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_facets = n_facets
        self.reducer = reducer
        self.embedding = embedding
        self.perplexity = perplexity
        self.clusterer = clusterer
        self.n_bootstraps = n_bootstraps
        self.max_facets = max_facets
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> FacetFinder:
        """Cluster finite codes, (n_samples, n_features), into facets; ``y`` is ignored.

        Raises:
            FacetError: if there are fewer distinct codes than facets.
        """
        codes = validate_data(self, X, dtype=[np.float64, np.float32])
        self._check(codes)
        seed = check_random_state(self.random_state).randint(2**31)
        self.excess_: Excess | None = None
        with threadpool_limits(1 if len(codes) < _FEW else None):  # for few codes, threads cost more than they save
            reduced = self._reduce(codes, seed)
            self.embedding_ = self._embed(reduced, seed)
            self.labels_ = _by_size(self._cluster(codes, reduced, seed))
            self.n_facets_ = int(self.labels_.max()) + 1
            if self.n_facets_ < 1:
                raise FacetError("the clusterer labeled every image as noise (-1); there is no facet")
            self.stability_, self.stability_interval_ = stability(reduced, self.labels_, self.n_bootstraps, seed)
        self.centers_ = np.stack([codes[self.labels_ == k].mean(0, dtype=np.float64) for k in range(self.n_facets_)])
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.intp]:
        """Return the facet whose center is nearest to each code, (n_samples,)."""
        check_is_fitted(self)
        codes = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return nearest(codes, self.centers_)

    def _check(self, codes: NDArray[Any]) -> None:
        if self.n_facets == "auto":
            if self.max_facets is not None:
                check_integer(self.max_facets, "max_facets", 1, FacetError)
            return
        k = check_integer(self.n_facets, "n_facets, unless 'auto',", 1, FacetError)
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
        if len(reduced) < 4:  # too few for t-SNE
            return reduced[:, :2]
        perplexity = min(self.perplexity, (len(reduced) - 1) / 3)
        init = "pca" if min(reduced.shape) >= 2 else "random"
        return np.asarray(TSNE(2, perplexity=perplexity, init=init, random_state=seed).fit_transform(reduced))

    def _cluster(self, codes: NDArray[Any], reduced: NDArray[Any], seed: int) -> NDArray[Any]:
        k = self.n_facets
        if k == "auto":
            labels = self._count(codes.astype(np.float64), reduced.astype(np.float64), seed)
            if self.clusterer is None:
                return labels
            k = int(labels.max()) + 1
        clusterer = KMeans(n_init=10) if self.clusterer is None else clone(self.clusterer)
        taken = clusterer.get_params(deep=False)
        count = None if taken.get("distance_threshold") is not None else k  # mutually exclusive in scikit-learn
        given = {"n_clusters": count, "n_components": count, "random_state": seed}
        clusterer.set_params(**{name: value for name, value in given.items() if name in taken})
        return np.asarray(clusterer.fit_predict(self.embedding_))

    def _count(self, codes: Floats, reduced: Floats, seed: int) -> NDArray[np.int64]:
        """Return the separated clusters or, where there are no gaps, those that explain more than one cloud does."""
        labels, self.p_value_ = _separated(reduced, seed)
        if not labels.any():
            self.excess_ = found = excess(codes)
            self.p_value_ = found.p_value
            if found.p_value < _LEVEL:
                labels = KMeans(found.n_clusters, n_init=10, random_state=seed).fit_predict(reduced).astype(np.int64)
        return labels if self.max_facets is None else merge_clusters(reduced, labels, self.max_facets)


def _separated(codes: Floats, seed: int) -> tuple[NDArray[np.int64], float]:
    """Return the separated clusters if each of a few draws finds any, of the draw of middle number; otherwise one."""
    found = []
    for draw in range(_DRAWS):
        found.append(separate(codes, seed + draw))
        if not found[-1][0].any():
            return found[-1]
    return sorted(found, key=lambda one: int(one[0].max()))[_DRAWS // 2]


def stability(codes: NDArray[Any], labels: NDArray[Any], n_samples: int = 20, seed: int = 0) -> tuple[Floats, Floats]:
    """Return the mean recovery of each cluster in bootstrap samples of the codes, in [0, 1], and its 95 % interval.

    k-means clusters each sample into the same number of clusters; the recovery of a cluster is its largest Jaccard
    index with one of them, 1 if the cluster is found again unchanged. The codes are resampled rather than their
    embedding, so that islands that only t-SNE separates are not stable.

    Args:
        codes: (n, d) codes.
        labels: (n,) cluster index of each code; noise, -1, is left out.
        n_samples: number of bootstrap samples; with 0, all results are NaN.
        seed: seed of samples and k-means.

    Returns:
        (n_clusters,) and (n_clusters, 2); 0, and 0 to 1, for a cluster that is in no sample.

    Source: Hennig 2007, "Cluster-wise assessment of cluster stability", Computational Statistics & Data
    Analysis 52.
    """
    k = int(labels.max()) + 1
    if not n_samples:
        return np.full(k, np.nan), np.full((k, 2), np.nan)
    means, intervals = np.zeros(k), np.tile([0.0, 1.0], (k, 1))
    for cluster, column in enumerate(_recoveries(codes[labels >= 0], labels[labels >= 0], n_samples, seed).T):
        found = column[np.isfinite(column)]
        if len(found):
            means[cluster], intervals[cluster] = found.mean(), np.percentile(found, [2.5, 97.5])
    return means, intervals


def _recoveries(codes: NDArray[Any], labels: NDArray[Any], n_samples: int, seed: int) -> Floats:
    """Return recoveries, (n_samples, n_clusters); NaN where a sample has no code of a cluster."""
    k, rng = int(labels.max()) + 1, np.random.default_rng(seed)
    if k == 1:
        return np.ones((n_samples, 1))
    found = np.full((n_samples, k), np.nan)
    _, equal = np.unique(codes, axis=0, return_inverse=True)
    for sample in found:
        drawn = rng.integers(len(codes), size=len(codes))
        distinct, first = np.unique(drawn, return_index=True)
        n_clusters = min(k, len(np.unique(equal.ravel()[distinct])))
        again = KMeans(n_clusters, n_init=2, random_state=int(rng.integers(2**31))).fit(codes[drawn])
        table = np.zeros((k, n_clusters))
        np.add.at(table, (labels[distinct], again.labels_[first]), 1)
        union = table.sum(1, keepdims=True) + table.sum(0) - table
        present = table.any(1)
        sample[present] = (table / np.maximum(union, 1)).max(1)[present]
    return found


def _by_size(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return the labels with clusters numbered from the largest to the smallest; noise stays -1."""
    found, first, counts = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    new = np.full(len(labels), -1, np.int64)
    for rank, k in enumerate(np.lexsort((first, -counts))):
        new[labels == found[k]] = rank
    return new


def find_facets(
    model: nn.Module,
    unit: Unit | str,
    images: Images,
    *,
    n_facets: int | Literal["auto"] = 10,
    code: Code | str | nn.Module | CodeFn | None = None,
    finder: FacetFinder | None = None,
    input_spec: InputSpec | None = None,
    seed: int = 0,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    key: str | None = None,
    progress: bool = False,
) -> FacetSet:
    """Find the facets of a unit: clusters of the codes of the images that activate the unit.

    Args:
        model: any PyTorch vision model; its state is not changed.
        unit: the unit, or ``"layer:index"``.
        images: the images that activate the unit: for a class unit, images of the class; for a hidden unit, its
            `top_images` (with their ``input_spec``).
        n_facets: number of facets; or ``"auto"``, the number of clusters, which may be one.
        code: the code that describes an image, as in `collect`. Or a function from images in [0, 1] to codes, (N, D),
            which describes images by something else, such as attributions (`attr.AttributionCode`) or another network;
            centers are then in the default code's space, in which images can be synthesized.
        finder: clusters the codes; by default `FacetFinder(n_facets, random_state=seed)`.
        input_spec, batch_size, store, key, progress: as in `collect`.
        seed: seed of the default finder, an integer from 0 to 2**32 - 1.

    Raises:
        FacetError: if there are fewer distinct codes than facets, or codes aren't finite.
        TypeError, ValueError: if the seed is not an integer from 0 to 2**32 - 1.
        TypeError, UnitError, ImageError, RunError: those of `collect`.

    Warns:
        MFVWarning: if the unit is 0 on all images.

    Example:
        >>> from captum_mfv.datasets import planted_images, planted_network
        >>> model, spec = planted_network()
        >>> images, colors = planted_images(n_each=30)
        >>> facets = find_facets(model, Unit("unit", 0), images, n_facets=4, input_spec=spec)
        >>> [len(facet) for facet in facets]
        [30, 30, 30, 30]
    """
    seed = check_seed(seed)
    is_function = callable(code) and not any(module is code for module in model.modules())
    layer, code_fn = (None, cast(CodeFn, code)) if is_function else (cast("Code | str | nn.Module | None", code), None)
    arguments: dict[str, Any] = {"input_spec": input_spec, "batch_size": batch_size, "store": store, "key": key}
    collection = collect(model, unit, images, code=layer, code_fn=code_fn, progress=progress, **arguments)
    with waiting("facets", progress):
        return cluster(collection, FacetFinder(n_facets, random_state=seed) if finder is None else clone(finder))


def cluster(collection: Collection, finder: FacetFinder) -> FacetSet:
    """Fit a finder to collected codes, or to the codes of a function if the collection has them; return the facets.

    Raises:
        FacetError: if activations or codes aren't finite, or there are fewer distinct codes than facets.
    """
    rows = collection.indices
    clustered = (collection.codes if collection.fn_codes is None else collection.fn_codes)[rows]
    activations = collection.activations[rows]
    numbers = activations[:, None], collection.codes[rows], clustered
    usable = np.all([(abs(values) <= LARGEST_CODE).all(1) for values in numbers], 0)  # False for NaN
    if not usable.all():
        raise FacetError(
            f"the activations of {collection.code.layer} or {collection.unit} aren't finite on {(~usable).sum()} of "
            f"{len(rows)} images, or beyond {LARGEST_CODE:g}; look for NaN in the weights, or use a wider dtype"
        )
    if not activations.any():
        message = f"{collection.unit} is 0 on all {len(rows)} images: the unit is dead, or the images don't activate it"
        warnings.warn(message, MFVWarning, stacklevel=2)
    finder.fit(clustered)

    def for_all_images(values: NDArray[Any], fill: float) -> NDArray[Any]:
        whole = np.full((len(collection.codes), *values.shape[1:]), fill, values.dtype)
        whole[rows] = values
        return whole

    return FacetSet(
        collection.unit,
        collection.code,
        for_all_images(finder.labels_, -1),
        for_all_images(finder.embedding_.astype(np.float32), np.nan),
        collection.codes,
        collection.activations,
        getattr(finder, "p_value_", None),
        tuple(finder.stability_.tolist()) if finder.n_bootstraps else None,
        tuple(map(tuple, finder.stability_interval_.tolist())) if finder.n_bootstraps else None,
    )
