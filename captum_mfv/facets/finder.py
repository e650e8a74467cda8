"""Scikit-learn estimator that clusters codes into facets."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from captum_mfv.errors import FacetError
from captum_mfv.facets.head import nearest
from captum_mfv.facets.separation import separate
from captum_mfv.facets.stability import bounds, recoveries, stability

__all__ = ["FacetFinder"]

_FEW = 1000


class FacetFinder(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Cluster codes into facets: PCA, t-SNE to two dimensions, k-means there (Algorithm 1 of arXiv 1602.03616).

    Centers are means in code space, because t-SNE cannot embed new codes. Facets are numbered by size, the largest
    first.

    With ``n_facets="auto"``, the number of facets is that of the separated clusters of the reduced codes, compared
    with a null distribution of the same covariance and size; it may be 1 (`captum_mfv.facets.separation`). These
    clusters are the facets, and the embedding is only for display, because t-SNE separates noise into islands. A given
    clusterer clusters the embedding into as many.

    Args:
        n_facets: number of facets, 10 in the paper; or ``"auto"``.
        reducer: number of principal components, any scikit-learn transformer, or None.
        embedding: ``"tsne"``, any scikit-learn transformer, or None to cluster the reduced codes.
        perplexity: perplexity of t-SNE, reduced to a third of the number of codes if larger.
        clusterer: any scikit-learn clusterer, which labels noise -1; None: k-means with ten starts. Its parameter
            ``n_clusters`` or ``n_components`` is set to the number of facets, unless ``distance_threshold`` is set.
        n_bootstraps: number of bootstrap samples for ``stability_``.
        random_state: seed or `numpy.random.RandomState`.

    Attributes:
        labels_: (n_samples,) facet index of each code.
        embedding_: (n_samples, d) embedding in which the clusters were found.
        centers_: ``(n_facets_, n_features)`` mean code of each facet.
        n_facets_: number of facets found.
        stability_: ``(n_facets_,)`` mean recovery of each facet in bootstrap samples of the reduced codes, in [0, 1]
            (`captum_mfv.facets.stability`); below .6 a facet is doubtful. NaN without samples.
        stability_interval_: ``(n_facets_, 2)`` 2.5th and 97.5th percentile of that recovery.
        p_value_: p-value of a single cluster; only with ``n_facets="auto"``.

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
        """Cluster codes into facets.

        Args:
            X: (n_samples, n_features) codes, finite.
            y: ignored.

        Raises:
            FacetError: if there are fewer distinct codes than facets.
        """
        codes = validate_data(self, X, dtype=[np.float64, np.float32])
        self._check(codes)
        seed = check_random_state(self.random_state).randint(2**31)
        with threadpool_limits(1 if len(codes) < _FEW else None):  # for few codes, threads cost more than they save
            reduced = self._reduce(codes, seed)
            self.embedding_ = self._embed(reduced, seed)
            self.labels_ = _by_size(self._cluster(reduced, seed))
        self.n_facets_ = int(self.labels_.max()) + 1
        if self.n_facets_ < 1:
            raise FacetError("the clusterer labeled every image as noise (-1); there is no facet")
        self.stability_, self.stability_interval_ = self._stability(reduced, seed)
        self.centers_ = np.stack([codes[self.labels_ == k].mean(0, dtype=np.float64) for k in range(self.n_facets_)])
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.intp]:
        """Return the facet whose center is nearest to each code, (n_samples,)."""
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
        if len(reduced) < 4:  # too few for t-SNE
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
        k = None if taken.get("distance_threshold") is not None else n_facets  # mutually exclusive in scikit-learn
        given = {"n_clusters": k, "n_components": k, "random_state": seed}
        return clusterer.set_params(**{name: value for name, value in given.items() if name in taken})


def _by_size(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return the labels with clusters numbered from the largest to the smallest; noise stays -1."""
    found, first, counts = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    new = np.full(len(labels), -1, np.int64)
    for rank, k in enumerate(np.lexsort((first, -counts))):
        new[labels == found[k]] = rank
    return new
