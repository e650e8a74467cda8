"""Separation: how many clusters codes have, told against codes of the same covariance that have none.

k-means finds k clusters in anything, and t-SNE makes islands out of noise. Here the number of clusters is
found among the codes themselves, and one is an answer:

1. *Over-cluster*: k-means with more cells than there can be clusters.
2. *Merge* neighbouring cells, by Ward's criterion, until every pair is separated. Two cells are separated if
   there is a valley between them (fewer codes about the middle than about the emptier center: a binomial
   test, which heavy tails, skew and elongation pass as one cluster), and if they lie further apart, for
   their spread along the line between their centers, than the halves that 2-means makes of Gaussian codes
   with the same covariance and size.
3. *Confirm* from the whole downwards: a set of cells is split only if k-means explains more of it than of
   Gaussian codes with the same covariance and size. This takes out what cells of pure noise show in many
   dimensions, where any two look separated.

Steps 2 and 3 draw on SigClust's null (Liu et al. 2008, "Statistical significance of clustering for
high-dimension, low-sample size data") and the gap statistic's comparison of within-cluster scatter
(Tibshirani et al. 2001); the valley is Hartigan's idea of a mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm
from sklearn.cluster import KMeans

__all__ = ["Excess", "Separation", "excess", "separate"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_MAX_CELLS = 25
_CODES_PER_CELL = 6
_PAIR_LEVEL = 0.01  # of "no further apart than a Gaussian's halves"
_VALLEY_LEVEL = 0.05  # of "no emptier in the middle"
_WHOLE_LEVEL = 0.01  # of "no better explained than a Gaussian"
_VALLEY_WIDTH = 0.2  # of the distance between two centers, to either side
_PAIR_DRAWS, _WHOLE_DRAWS = 25, 12
_PAIR_CODES, _WHOLE_CODES = 150, 500  # more codes than these are sampled
_COMPONENTS = 50
_EXCESS_CLUSTERS, _EXCESS_DRAWS = (2, 3, 5, 8, 12), 20
_ALLOWED = 0.05  # that one cluster of another shape than a Gaussian's may show


@dataclass(frozen=True, eq=False)
class Separation:
    """The clusters found.

    Args:
        labels: (n,) cluster of each code.
        p_value: of the codes being one cluster, at the first test that could say so; 1 if no two cells
            are separated.
    """

    labels: NDArray[np.int64]
    p_value: float

    @property
    def n_clusters(self) -> int:
        """How many clusters; 1 if nothing tells the codes from one."""
        return int(self.labels.max()) + 1


def separate(codes: Array, seed: int) -> Separation:
    """The clusters of codes, (n, d), as many as are there; at most 25, and one for each six codes.

    Args:
        codes: finite, best reduced to their principal components: the time grows with d.
        seed: of k-means and of the null's draws.
    """
    rng = np.random.default_rng(seed)
    codes = codes - codes.mean(0)
    cells = _merged(codes, _cells(codes, rng), rng)
    leaves, p_value = _confirmed(codes, cells, rng)
    labels = np.zeros(len(codes), np.int64)
    if len(leaves) > 1:
        centers = np.stack([codes[leaf].mean(0) for leaf in leaves])
        labels[:] = KMeans(len(leaves), init=centers, n_init=1).fit(codes).labels_
    return Separation(labels, p_value)


def _cells(codes: Array, rng: np.random.Generator) -> list[Indices]:
    n_cells = max(1, min(_MAX_CELLS, len(codes) // _CODES_PER_CELL, len(np.unique(codes, axis=0))))
    labels = KMeans(n_cells, n_init=4, random_state=int(rng.integers(2**31))).fit(codes).labels_
    return [np.flatnonzero(labels == k) for k in np.unique(labels)]


def _merged(codes: Array, cells: list[Indices], rng: np.random.Generator) -> list[Indices]:
    """Merge neighbours until every pair of them is separated."""
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
        cells = _joined(cells, min(together, key=lambda pair: cost[pair]))
    return cells


def _confirmed(codes: Array, cells: list[Indices], rng: np.random.Generator) -> tuple[list[Indices], float]:
    """Split from the whole downwards, by Ward's tree, as long as the null explains less."""
    leaves: list[Indices] = []
    todo, p_value = [cells], 1.0
    while todo:
        group = todo.pop()
        whole = np.concatenate(group)
        p = _whole_p_value(codes[whole], len(group), rng) if len(group) > 1 else 1.0
        p_value = p if group is cells else p_value
        if p < _WHOLE_LEVEL:
            todo += _halves(codes, group)
        else:
            leaves.append(whole)
    return leaves, p_value


def _ward(codes: Array, cells: list[Indices]) -> Array:
    """By how much each merge would raise the scatter within cells; infinite for a cell with itself."""
    centers = np.stack([codes[cell].mean(0) for cell in cells])
    sizes = np.array([len(cell) for cell in cells])
    squared = ((centers[:, None] - centers) ** 2).sum(2)
    cost: Array = squared * sizes[:, None] * sizes / (sizes[:, None] + sizes)
    np.fill_diagonal(cost, np.inf)
    return cost


def _joined(cells: list[Indices], pair: tuple[int, int]) -> list[Indices]:
    rest = [cell for i, cell in enumerate(cells) if i not in pair]
    return [*rest, np.concatenate([cells[pair[0]], cells[pair[1]]])]


def _halves(codes: Array, cells: list[Indices]) -> list[list[Indices]]:
    """The two groups of cells that Ward's tree joins last."""
    groups = [[cell] for cell in cells]
    while len(groups) > 2:
        cost = _ward(codes, [np.concatenate(group) for group in groups])
        i, j = np.unravel_index(cost.argmin(), cost.shape)
        rest = [group for g, group in enumerate(groups) if g not in (i, j)]
        groups = [*rest, groups[i] + groups[j]]
    return groups


def _pair_is_separated(one: Array, other: Array, rng: np.random.Generator) -> bool:
    one, other = (
        _sample(one, min(_PAIR_CODES, 3 * len(other)), rng),
        _sample(other, min(_PAIR_CODES, 3 * len(one)), rng),
    )
    if min(len(one), len(other)) < 3 or _valley_p_value(one, other) > _VALLEY_LEVEL:
        return False
    codes, spread = _principal(np.concatenate([one, other]))
    found = _spread_between(codes, _two_means(codes, np.arange(len(codes)) < len(one)))
    shares = (len(other) / len(codes), len(one) / len(codes))
    null = []
    for draw in range(_PAIR_DRAWS):
        gaussian = _gaussian(len(codes), spread, rng)
        start = gaussian[:, 0] > np.quantile(gaussian[:, 0], shares[draw % 2])
        null.append(_spread_between(gaussian, _two_means(gaussian, start)))
    return _lower_tail(found, null) < _PAIR_LEVEL


def _valley_p_value(one: Array, other: Array) -> float:
    """Of no fewer codes about the middle of the line between two centers than about the emptier end."""
    axis = one.mean(0) - other.mean(0)
    middle = (one.mean(0) + other.mean(0)) @ axis / 2
    places = (np.concatenate([one, other]) @ axis - middle) / max(axis @ axis, 1e-30)  # centers at ± 1/2
    ends = [int((abs(places - end) < _VALLEY_WIDTH).sum()) for end in (0.5, -0.5)]
    between = int((abs(places) < _VALLEY_WIDTH).sum())
    return float(binom.cdf(between, between + min(ends), 0.5))


def _spread_between(codes: Array, side: NDArray[np.bool_]) -> float:
    """Log share of the variance along the line between two centers that is within the two sides."""
    if min(side.sum(), (~side).sum()) < 2:
        return 0.0
    places = codes @ (codes[side].mean(0) - codes[~side].mean(0))
    within = places[side].var() * side.sum() + places[~side].var() * (~side).sum()
    return float(np.log(within / (places.var() * len(places)) + 1e-9))


def _two_means(codes: Array, side: NDArray[np.bool_]) -> NDArray[np.bool_]:
    for _ in range(20):
        if side.all() or not side.any():
            break
        one, other = codes[side].mean(0), codes[~side].mean(0)
        new = codes @ (one - other) > (one + other) @ (one - other) / 2
        if (new == side).all():
            break
        side = new
    return side


def _whole_p_value(codes: Array, n_clusters: int, rng: np.random.Generator) -> float:
    """Of k-means explaining no more than it does of Gaussian codes of the same covariance and size."""
    codes, spread = _principal(_sample(codes, _WHOLE_CODES, rng))
    n_clusters = min(n_clusters, len(codes) // 3)
    if n_clusters < 2:
        return 1.0
    found = _log_scatter(codes, n_clusters, 4, rng)
    null = [_log_scatter(_gaussian(len(codes), spread, rng), n_clusters, 2, rng) for _ in range(_WHOLE_DRAWS)]
    return _lower_tail(found, null)


def _log_scatter(codes: Array, n_clusters: int, n_init: int, rng: np.random.Generator) -> float:
    """Log share of the variance that k-means leaves within its clusters."""
    fitted = KMeans(n_clusters, n_init=n_init, max_iter=30, random_state=int(rng.integers(2**31))).fit(codes)
    return float(np.log(fitted.inertia_ / (codes**2).sum() + 1e-30))


@dataclass(frozen=True)
class Excess:
    """How much better clusters explain codes than they explain codes that have none.

    Args:
        value: share of the scatter that the null's clusters leave and the codes' clusters explain, in
            [0, 1]: 0 for one cluster of any shape, towards 1 for clusters far apart.
        p_value: of its being no more than a twentieth.
    """

    value: float
    p_value: float


def excess(codes: Array, seed: int) -> Excess:
    """How clustered codes are, (n, d), beyond one elliptical cloud with the same covariance and size.

    The largest gap between the logarithms of the two within-cluster scatters (the gap statistic), over 2 to
    12 clusters, in the first 50 principal components. The cloud's codes lie as far out for the covariance
    as the codes do, those beyond the median drawn in to it, so that heavy tails aren't taken for clusters.
    No real codes are elliptical: hence the twentieth that the p-value allows for; it is corrected for the
    choice of the number of clusters.
    """
    rng = np.random.default_rng(seed)
    codes, _ = _principal(_sample(codes, _WHOLE_CODES, rng))
    codes, spread = _principal(_drawn_in(codes[:, :_COMPONENTS]))
    numbers = [k for k in _EXCESS_CLUSTERS if 3 * k <= len(codes)]
    if not numbers or not len(spread):
        return Excess(0.0, 1.0)
    found = _log_scatters(codes, numbers, rng)
    radii = np.linalg.norm(codes / spread, axis=1)
    null = np.stack([_log_scatters(_elliptical(radii, spread, rng), numbers, rng) for _ in range(_EXCESS_DRAWS)])
    deviation = null.std(0, ddof=1) + 1e-12
    largest = ((null.mean(0) - null) / deviation).max(1)
    beyond = ((null.mean(0) - found + np.log(1 - _ALLOWED)) / deviation).max()
    p_value = norm.sf((beyond - largest.mean()) / (largest.std(ddof=1) + 1e-12))
    return Excess(float(max(0.0, 1 - np.exp((found - null.mean(0)).min()))), float(p_value))


def _log_scatters(codes: Array, numbers: list[int], rng: np.random.Generator) -> Array:
    return np.array([_log_scatter(codes, k, 2, rng) for k in numbers])


def _elliptical(radii: Array, spread: Array, rng: np.random.Generator) -> Array:
    """Draws in random directions, at the given distances by the covariance."""
    draws: Array = rng.normal(size=(len(radii), len(spread)))
    draws *= (rng.permutation(radii) / np.linalg.norm(draws, axis=1))[:, None] * spread
    draws -= draws.mean(0)
    return draws


def _drawn_in(codes: Array) -> Array:
    """Codes whose distance from the mean, by the covariance, is above the median's, brought to it."""
    axes, spread = _principal(codes)
    if not len(spread):
        return axes
    distance = np.linalg.norm(axes / spread, axis=1, keepdims=True)
    shrunk: Array = axes * np.minimum(1, np.median(distance) / np.maximum(distance, 1e-30))
    return shrunk


def _lower_tail(found: float, null: list[float]) -> float:
    """How likely so small a value is, had it been drawn with the null's; normal tails, few draws."""
    return float(norm.cdf((found - np.mean(null)) / (np.std(null, ddof=1) + 1e-12)))


def _principal(codes: Array) -> tuple[Array, Array]:
    """Codes about their mean in their principal axes, and the standard deviation along each."""
    codes = codes - codes.mean(0)
    left, sizes, _ = np.linalg.svd(codes, full_matrices=False)
    kept = sizes > 1e-6 * sizes.max(initial=1e-30)
    axes: Array = (left * sizes)[:, kept]
    return axes, sizes[kept] / np.sqrt(len(codes))


def _gaussian(n_codes: int, spread: Array, rng: np.random.Generator) -> Array:
    draws: Array = rng.normal(size=(n_codes, len(spread))) * spread
    draws -= draws.mean(0)
    return draws


def _sample(codes: Array, n_codes: int, rng: np.random.Generator) -> Array:
    return codes if len(codes) <= n_codes else codes[rng.choice(len(codes), n_codes, replace=False)]
