"""Number of separated clusters of codes, compared with codes of the same covariance that have no clusters.

k-means finds k clusters in any data, and t-SNE separates noise into islands. Here, the number of clusters is found
in the codes themselves, and may be 1:

1. *Over-cluster*: k-means with more cells than clusters are expected.
2. *Merge* neighboring cells by Ward's criterion until every pair is separated. Two cells are separated if there is
   a valley between them (a binomial test of fewer codes around the middle than around the emptier center, in which
   heavy-tailed, skewed and elongated clusters are not split), and if, relative to their spread along the line between
   their centers, they are further apart than the halves that 2-means makes of Gaussian codes of the same covariance
   and size.
3. *Confirm* top-down: a set of cells is split only if k-means explains more of its scatter than of Gaussian codes of
   the same covariance and size. In many dimensions, cells of pure noise look separated in pairs; this step joins them.

Sources: the null distribution of SigClust (Liu et al. 2008, "Statistical significance of clustering for
high-dimension, low-sample size data"); the gap statistic (Tibshirani et al. 2001); the valley follows Hartigan's
definition of a mode.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr
from sklearn.cluster import KMeans

from captum_mfv.facets.clouds import Array, gaussian, log_scatter, lower_tail, principal, sample

__all__ = ["merge_clusters", "separate"]

Indices = NDArray[np.intp]

_MAX_CELLS = 25
_CODES_PER_CELL = 6
_PAIR_LEVEL = 0.01  # significance level: further apart than the halves of a Gaussian
_VALLEY_LEVEL = 0.05  # significance level: fewer codes in the middle
_WHOLE_LEVEL = 0.01  # significance level: better explained by clusters than a Gaussian
_VALLEY_WIDTH = 0.2  # to either side, as a share of the distance between two centers
_PAIR_DRAWS, _WHOLE_DRAWS = 25, 12
_PAIR_CODES, _WHOLE_CODES = 150, 500  # larger numbers of codes are sampled
_MAX_ITERATIONS = 20  # of 2-means


def separate(codes: Array, seed: int) -> tuple[NDArray[np.int64], float]:
    """Return the separated clusters of codes: at most 25, and at most one per six codes.

    Args:
        codes: (n, d) finite codes; reduce them to principal components first, because the time grows with d.
        seed: seed of k-means and of the null distribution's draws.

    Returns:
        (n,) cluster index of each code, and the p-value of a single cluster; 1 if no two cells are separated.
    """
    rng = np.random.default_rng(seed)
    codes = codes - codes.mean(0)
    cells = _merged(codes, _cells(codes, rng), rng)
    leaves, p_value = _confirmed(codes, cells, rng)
    labels = np.zeros(len(codes), np.int64)
    if len(leaves) > 1:
        centers = np.stack([codes[leaf].mean(0) for leaf in leaves])
        labels[:] = KMeans(len(leaves), init=centers, n_init=1).fit(codes).labels_
    return labels, p_value


def merge_clusters(codes: Array, labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return (n,) labels of at most so many clusters, after merging the nearest by Ward's criterion; -1 stays."""
    groups = _joined(codes, [np.flatnonzero(labels == k) for k in range(labels.max() + 1)], most)
    merged = np.full_like(labels, -1)
    for k, group in enumerate(groups):
        merged[np.concatenate(group)] = k
    return merged


def _cells(codes: Array, rng: np.random.Generator) -> list[Indices]:
    n_cells = max(1, min(_MAX_CELLS, len(codes) // _CODES_PER_CELL, len(np.unique(codes, axis=0))))
    labels = KMeans(n_cells, n_init=4, random_state=int(rng.integers(2**31))).fit(codes).labels_
    return [np.flatnonzero(labels == k) for k in np.unique(labels)]


def _merged(codes: Array, cells: list[Indices], rng: np.random.Generator) -> list[Indices]:
    """Merge neighboring cells until every pair of neighbors is separated."""
    known: dict[tuple[tuple[int, int], ...], bool] = {}

    def apart(one: Indices, other: Indices) -> bool:
        key = tuple(sorted((int(cell[0]), len(cell)) for cell in (one, other)))
        if key not in known:
            known[key] = _pair_is_separated(codes[one], codes[other], rng)
        return known[key]

    while len(cells) > 1:
        cost = _ward(codes, cells)
        near = {(min(i, int(j)), max(i, int(j))) for i in range(len(cells)) for j in cost[i].argsort()[:3] if i != j}
        together = [pair for pair in sorted(near) if not apart(cells[pair[0]], cells[pair[1]])]
        if not together:
            break
        i, j = min(together, key=lambda pair: cost[pair])
        cells = [cell for c, cell in enumerate(cells) if c not in (i, j)] + [np.concatenate([cells[i], cells[j]])]
    return cells


def _confirmed(codes: Array, cells: list[Indices], rng: np.random.Generator) -> tuple[list[Indices], float]:
    """Split all cells top-down by Ward's tree while the split is significant; return clusters and the first p-value."""
    leaves: list[Indices] = []
    todo, p_value = [cells], 1.0
    while todo:
        group = todo.pop()
        whole = np.concatenate(group)
        p = _whole_p_value(codes[whole], len(group), rng) if len(group) > 1 else 1.0
        p_value = p if group is cells else p_value
        if p < _WHOLE_LEVEL:
            todo += _joined(codes, group, 2)
        else:
            leaves.append(whole)
    return leaves, p_value


def _ward(codes: Array, cells: list[Indices]) -> Array:
    """Return the increase of scatter within cells by each merge, (n_cells, n_cells); infinite on the diagonal."""
    centers = np.stack([codes[cell].mean(0) for cell in cells])
    sizes = np.array([len(cell) for cell in cells])
    squared = ((centers[:, None] - centers) ** 2).sum(2)
    cost: Array = squared * sizes[:, None] * sizes / (sizes[:, None] + sizes)
    np.fill_diagonal(cost, np.inf)
    return cost


def _joined(codes: Array, cells: list[Indices], n_groups: int) -> list[list[Indices]]:
    """Return the groups of cells that Ward's tree joins last."""
    groups = [[cell] for cell in cells]
    while len(groups) > n_groups:
        cost = _ward(codes, [np.concatenate(group) for group in groups])
        i, j = np.unravel_index(cost.argmin(), cost.shape)
        rest = [group for g, group in enumerate(groups) if g not in (i, j)]
        groups = [*rest, groups[i] + groups[j]]
    return groups


def _pair_is_separated(one: Array, other: Array, rng: np.random.Generator) -> bool:
    sizes = min(_PAIR_CODES, 3 * len(other)), min(_PAIR_CODES, 3 * len(one))
    one, other = sample(one, sizes[0], rng), sample(other, sizes[1], rng)
    if min(len(one), len(other)) < 3 or _valley_p_value(one, other) > _VALLEY_LEVEL:
        return False
    codes, spread = principal(np.concatenate([one, other]))
    [found] = _spread_between_halves(codes[None], (np.arange(len(codes)) < len(one))[None])
    clouds = gaussian(_PAIR_DRAWS, len(codes), spread, rng)
    shares = (len(other) / len(codes), len(one) / len(codes))
    ends = [np.quantile(clouds[draw::2, :, 0], shares[draw], axis=1) for draw in range(2)]
    start = [clouds[draw, :, 0] > ends[draw % 2][draw // 2] for draw in range(_PAIR_DRAWS)]
    return lower_tail(found, _spread_between_halves(clouds, np.stack(start))) < _PAIR_LEVEL


def _valley_p_value(one: Array, other: Array) -> float:
    """Return the p-value of as many codes around the middle of the line between two centers as around an end."""
    centers = one.mean(0), other.mean(0)
    axis = centers[0] - centers[1]
    middle = (centers[0] + centers[1]) @ axis / 2
    places = (np.concatenate([one, other]) @ axis - middle) / max(axis @ axis, 1e-30)  # centers at ± 1/2
    ends = [int((abs(places - end) < _VALLEY_WIDTH).sum()) for end in (0.5, -0.5)]
    between = int((abs(places) < _VALLEY_WIDTH).sum())
    return float(bdtr(between, between + min(ends), 0.5))  # cumulative probability of the binomial distribution


def _spread_between_halves(clouds: Array, side: NDArray[np.bool_]) -> Array:
    """Return the log share of the variance along the line between two centers that is within the halves of 2-means.

    Clouds of one size, (n_clouds, n, d), are divided at once, from sides, (n_clouds, n); as `log_scatter` does.
    """
    for _ in range(_MAX_ITERATIONS):
        one, other = _means(clouds, side), _means(clouds, ~side)
        axis = one - other
        new = _along(clouds, axis) > ((one + other) * axis).sum(1, keepdims=True) / 2
        new = np.where(side.all(1, keepdims=True) | ~side.any(1, keepdims=True), side, new)
        if (new == side).all():
            break
        side = new
    places = _along(clouds, _means(clouds, side) - _means(clouds, ~side))
    within = _scatter(places, side) + _scatter(places, ~side)
    share = within / np.maximum(places.var(1) * places.shape[1], 1e-300)
    return np.where(np.minimum(side.sum(1), (~side).sum(1)) < 2, 0.0, np.log(share + 1e-9))


def _means(clouds: Array, side: NDArray[np.bool_]) -> Array:
    """Return the mean of each cloud's codes of one side, (n_clouds, d); 0 if there are none."""
    sums = (side[:, None].astype(np.float64) @ clouds)[:, 0]
    return np.asarray(sums / np.maximum(side.sum(1, keepdims=True), 1))


def _along(clouds: Array, axis: Array) -> Array:
    """Return the places of each cloud's codes along an axis, (n_clouds, n)."""
    return np.asarray((clouds @ axis[:, :, None])[:, :, 0])


def _scatter(places: Array, side: NDArray[np.bool_]) -> Array:
    """Return the sum of squares of one side's places around their mean, (n_clouds,)."""
    mean = (places * side).sum(1, keepdims=True) / np.maximum(side.sum(1, keepdims=True), 1)
    return np.asarray((np.square(places - mean) * side).sum(1))


def _whole_p_value(codes: Array, n_clusters: int, rng: np.random.Generator) -> float:
    """Return the p-value of k-means explaining as much as of Gaussian codes of the same covariance and size."""
    codes, spread = principal(sample(codes, _WHOLE_CODES, rng))
    n_clusters = min(n_clusters, len(codes) // 3)
    if n_clusters < 2:
        return 1.0
    null = gaussian(_WHOLE_DRAWS, len(codes), spread, rng)
    [[found]] = log_scatter(codes[None], [n_clusters], 4, rng)
    return lower_tail(found, log_scatter(null, [n_clusters], 2, rng)[0])
