#!/usr/bin/env python
"""Which scores tell one facet from several? On planted facets: python benchmarks/planted_scores.py [--draws 20]

Compares `captum_mfv.metrics.multifacetedness` with Semantic Lens's scores (`captum_mfv.metrics.examples`) on 200
codes of 64 to 512 dimensions: facets of `datasets.planted_codes`, 1 to 10, and one cluster of other shapes. Semantic
Lens's scores are cosines, so that the origin matters: one cluster has the same distance from the origin and the same
scatter as one planted facet, and the second table repeats the first with a common part added to all codes, five times
as long as the root mean square of the codes, as codes after a ReLU have one.

The last row of the first two tables is the probability that the score of a draw of 2 to 10 facets exceeds that of a
draw of one cluster of any shape (AUROC; .5: the score does not tell them apart). The last table has the redundancy of
20 units, of which two have the same planted facets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np
from count_facets import ONE, tailed_codes
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from captum_mfv.datasets import planted_codes
from captum_mfv.facets.excess import excess
from captum_mfv.metrics import clarity, polysemanticity, redundancy

Codes = NDArray[np.float64]
N_CODES, SEPARATION, COMMON = 200, 9.0, 5.0


def score(codes: Codes, seed: int) -> dict[str, float]:
    """Return all scores of a unit's codes; larger for more facets."""
    found = excess(codes, seed)  # what `multifacetedness` returns
    semantic_lens = {"polysemanticity": polysemanticity(codes, seed=seed), "1 - clarity": 1 - clarity(codes)}
    return {"multifacetedness": found.score, "its 1 - p": 1 - found.p_value, **semantic_lens}


def dimensions(seed: int) -> int:
    """Draw the length of a code."""
    return int(np.random.default_rng(20_000 + seed).choice([64, 128, 256, 512]))


def facets(k: int, separation: float, seed: int) -> Codes:
    """Draw codes of k facets."""
    return planted_codes(k, N_CODES, dimensions(seed), separation=separation, seed=seed)[0]


def tailed(k: int, separation: float, seed: int) -> Codes:
    """Draw codes of k facets with Student-t noise."""
    return tailed_codes(k, N_CODES, dimensions(seed), separation=separation, seed=seed)[0]


def one(shape: str, seed: int) -> Codes:
    """Draw one cluster of another shape, with the scatter and the distance from the origin of one planted facet."""
    rng, d = np.random.default_rng(seed), dimensions(seed)
    codes = ONE[shape](rng, N_CODES, d)
    codes -= codes.mean(0)
    codes *= np.sqrt(np.exp(-np.linspace(0, 3, d)).sum() / np.square(codes).sum(1).mean())
    center = rng.normal(size=d)
    return codes + SEPARATION * center / np.linalg.norm(center)


CLOUDS: Mapping[str, tuple[bool, Callable[[int], Codes]]] = {
    "1 facet": (False, lambda seed: facets(1, SEPARATION, seed)),
    **{f"one cluster: {shape}": (False, lambda seed, shape=shape: one(shape, seed)) for shape in ONE},
    **{f"{k} facets": (True, lambda seed, k=k: facets(k, SEPARATION, seed)) for k in range(2, 11)},
    "2 to 10 facets, separation 7": (True, lambda seed: facets(2 + seed % 9, 7.0, seed)),
    "2 to 10 facets, separation 5": (True, lambda seed: facets(2 + seed % 9, 5.0, seed)),
    "2 to 10 facets, Student-t tails, separation 10": (True, lambda seed: tailed(2 + seed % 9, 10.0, seed)),
}


def with_common_part(codes: Codes) -> Codes:
    """Add the same number to all codes, along all axes."""
    d = codes.shape[1]
    return codes + COMMON * np.sqrt(np.square(codes).sum(1).mean()) / np.sqrt(d)


def compare(change: Callable[[Codes], Codes], n_draws: int) -> None:
    """Print the scores of each kind of codes."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, (_, draw) in CLOUDS.items():
        for seed in range(n_draws):
            for key, value in score(change(draw(seed)), seed).items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
    keys = list(found["1 facet"])
    print(f"\n| codes | {' | '.join(keys)} |\n|{'---|' * (len(keys) + 1)}")
    for name, scores in found.items():
        cells = [
            f"{m:.3f} ({a:.3f} to {b:.3f})" for a, m, b in (np.quantile(v, [0.05, 0.5, 0.95]) for v in scores.values())
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    several = [CLOUDS[name][0] for name in found for _ in range(n_draws)]
    areas = [roc_auc_score(several, np.concatenate([found[name][key] for name in found])) for key in keys]
    print(f"| AUROC: several facets against one | {' | '.join(f'{area:.2f}' for area in areas)} |", flush=True)


def print_redundancy(n_draws: int) -> None:
    """Print the redundancy of 20 units of three facets, of which two have the same facets."""
    pairs, others, nearest = [], [], []
    for seed in range(n_draws):
        drawn = [planted_codes(3, N_CODES, 128, separation=SEPARATION, seed=100 * seed + unit)[0] for unit in range(19)]
        shared = np.random.default_rng(seed).permutation(drawn.pop())
        means = np.stack([codes.mean(0) for codes in (*drawn, shared[::2], shared[1::2])])
        found = redundancy(means)
        pairs.append(found[18:].mean())
        others.append(found[:18].mean())
        nearest.append(found[18] == found[19] == found.max())
    print("\n| units | redundancy |\n|---|---|")
    print(f"| two of the same facets | {np.mean(pairs):.2f} |\n| 18 of other facets | {np.mean(others):.2f} |")
    print(f"The two have the largest redundancy in {np.mean(nearest):.2f} of the draws")


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    args = parser.parse_args()
    compare(lambda codes: codes, args.draws)
    compare(with_common_part, args.draws)
    print_redundancy(args.draws)


if __name__ == "__main__":
    main()
