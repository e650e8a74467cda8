#!/usr/bin/env python
"""Measure the accuracy of n_facets="auto": python benchmarks/count_facets.py [--draws 100] [--jobs 2]

Prints, over random draws with 150 to 5000 codes of 64 to 512 dimensions: for planted facets, k = 1 … 10, how often
the number is within one of k, and how often the adjusted Rand index is at least .9, compared with k-means with the
true k; for one cluster in seven shapes, how often one facet is found; and the multifacetedness of both kinds of codes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from captum_mfv import FacetFinder
from captum_mfv.datasets import planted_codes
from captum_mfv.facets.excess import excess

Codes = NDArray[np.float64]


def tailed_codes(k: int, n: int, d: int, *, separation: float, seed: int) -> tuple[Codes, NDArray[np.int64]]:
    """Draw k facets with Student-t noise (5 degrees of freedom); each facet has .8 of the previous one's codes."""
    rng = np.random.default_rng(seed)
    shares = 0.8 ** np.arange(k)
    sizes = np.maximum((shares / shares.sum() * n).astype(int), 10)
    centers = rng.normal(size=(k, d))
    centers *= separation / np.linalg.norm(centers, axis=1, keepdims=True)
    labels = np.repeat(np.arange(k), sizes)
    return centers[labels] + rng.standard_t(5, size=(len(labels), d)) / np.sqrt(5 / 3), labels


ONE: dict[str, Callable[[np.random.Generator, int, int], Codes]] = {
    "round": lambda rng, n, d: rng.normal(size=(n, d)),
    "elongated": lambda rng, n, d: rng.normal(size=(n, d)) * np.r_[10, 5, np.ones(d - 2)],
    "correlated": lambda rng, n, d: rng.normal(size=(n, 5)) @ rng.normal(size=(5, d)) + rng.normal(size=(n, d)) / 2,
    "t3, elliptical": lambda rng, n, d: rng.normal(size=(n, d)) / np.sqrt(rng.chisquare(3, size=(n, 1)) / 3),
    "t3, each axis": lambda rng, n, d: rng.standard_t(3, size=(n, d)),
    "exponential": lambda rng, n, d: rng.exponential(size=(n, d)),
    "rectified": lambda rng, n, d: np.maximum(
        rng.normal(size=(n, 20)) @ rng.normal(size=(20, d)) + rng.normal(size=(n, d)), 0
    ),
}


def shape(seed: int) -> tuple[int, int]:
    """Draw the number of codes, log-uniform, and the number of dimensions."""
    rng = np.random.default_rng(10_000 + seed)
    return int(np.exp(rng.uniform(np.log(150), np.log(5000)))), int(rng.choice([64, 128, 256, 512]))


def finder(seed: int) -> FacetFinder:
    """Return a finder that clusters in code space; the embedding would be for display only."""
    return FacetFinder("auto", embedding=None, random_state=seed)


def count_planted(make: Callable[..., tuple[Codes, NDArray[np.int64]]], seed: int) -> tuple[int, float, float]:
    """Return the error of the number of facets, and the adjusted Rand index of the facets and of k-means with k."""
    k = 1 + seed % 10
    codes, labels = make(k, *shape(seed), seed=seed)
    found = finder(seed).fit(codes)
    given_k = KMeans(k, n_init=10, random_state=seed).fit_predict(codes)
    return found.n_facets_ - k, adjusted_rand_score(labels, found.labels_), adjusted_rand_score(labels, given_k)


def count_one(kind: str, seed: int) -> int:
    """Return the number of facets found in one cluster."""
    return int(finder(seed).fit(ONE[kind](np.random.default_rng(seed), *shape(seed))).n_facets_)


def score(codes: Codes, seed: int) -> tuple[float, float]:
    """Return multifacetedness and its p-value."""
    found = excess(codes, seed)
    return found.score, found.p_value


def score_one(kind: str, seed: int) -> tuple[float, float]:
    """Return the score of one cluster."""
    return score(ONE[kind](np.random.default_rng(seed), *shape(seed)), seed)


def score_planted(separation: float, seed: int) -> tuple[float, float]:
    """Return the score of 2 to 10 planted facets."""
    return score(planted_codes(2 + seed % 9, *shape(seed), separation=separation, seed=seed)[0], seed)


def print_scores(name: str, rows: list[tuple[float, float]]) -> None:
    """Print a row of the last table."""
    values, p_values = np.array(rows).T
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    print(f"  {name:28}{middle:8.3f} ({low:.3f} to {high:.3f}){(p_values < 0.05).mean():10.2f}", flush=True)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    run = Parallel(args.jobs)
    print(f"{'planted facets':32} within 1   exact  ARI ≥ .9  (k-means with k)    seconds/draw")
    for name, make, separation in (
        ("planted_codes", planted_codes, 9.0),
        ("planted_codes", planted_codes, 7.0),
        ("Student-t tails", tailed_codes, 10.0),
    ):
        began = time.perf_counter()
        rows = run(delayed(count_planted)(partial(make, separation=separation), s) for s in range(args.draws))
        errors, index, given_k = (np.array(column) for column in zip(*rows, strict=True))
        spent = (time.perf_counter() - began) * args.jobs / args.draws
        print(
            f"{f'{name}, separation {separation:g}':32} {(abs(errors) <= 1).mean():8.2f}{(errors == 0).mean():8.2f}"
            f"{(index >= 0.9).mean():10.2f}{(given_k >= 0.9).mean():18.2f}{spent:16.1f}",
            flush=True,
        )
    print("one cluster: share of draws with one facet")
    for kind in ONE:
        counts = run(delayed(count_one)(kind, seed) for seed in range(args.draws))
        print(f"  {kind:18}{np.mean(np.array(counts) == 1):6.2f}   largest number {max(counts)}", flush=True)
    print("multifacetedness: median (5 % to 95 %), share with p < .05")
    for kind in ONE:
        print_scores(kind, run(delayed(score_one)(kind, seed) for seed in range(args.draws)))
    for separation in (3.0, 5.0, 7.0, 9.0):
        rows = run(delayed(score_planted)(separation, seed) for seed in range(args.draws))
        print_scores(f"2 to 10 facets, separation {separation:g}", rows)


if __name__ == "__main__":
    main()
