"""Neuron Eval's two tests (Oikarinen et al. 2025): which figures fall when facets' labels are missing or wrong."""

from functools import cache

import numpy as np
import pytest
from test_metrics import as_facets

from captum_mfv.datasets import planted_codes
from captum_mfv.facets.excess import Excess
from captum_mfv.facets.finder import stability
from captum_mfv.metrics import Multifacetedness, predicts, retained, spread

SEEDS = range(3)
NO_EXCESS = Excess(0.0, 1.0, 1)  # coverage does not depend on it


def missing(labels, rng):
    """Remove the labels of half of each facet's images."""
    wrong = labels.copy()
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        wrong[members[: len(members) // 2]] = -1
    return np.arange(len(labels)), wrong


def extra(labels, rng):
    """Add as many images of other facets to each facet as it has, if there are so many."""
    added = [rng.permutation(np.flatnonzero(labels != k))[: (labels == k).sum()] for k in np.unique(labels)]
    repeated = [np.full(len(rows), k) for k, rows in enumerate(added)]
    return np.concatenate([np.arange(len(labels)), *added]), np.concatenate([labels, *repeated])


def figures(codes, labels, made):
    across, within = spread(codes, labels)
    stable = stability(codes[labels >= 0], labels[labels >= 0], seed=0)[0]
    return {
        "retention": retained(made, codes, labels).mean(),
        "predicts": predicts(made, codes, labels).mean(),
        "separation": across.mean() / within.mean(),
        "stability": stable.mean(),
        "coverage": Multifacetedness.of(as_facets(codes, labels, stability=tuple(stable)), NO_EXCESS).coverage,
    }


@cache
def changes(corrupt):
    found = []
    for seed in SEEDS:
        codes, labels = planted_codes(4, 160, 32, separation=7, seed=seed)
        made = np.stack([codes[labels == k].mean(0) for k in range(4)])
        rows, wrong = corrupt(labels, np.random.default_rng(seed))
        right, found_wrong = figures(codes, labels, made), figures(codes[rows], wrong, made)
        found.append({name: found_wrong[name] - right[name] for name in right})
    return {name: np.array([row[name] for row in found]) for name in found[0]}


@pytest.mark.parametrize("figure", ["predicts", "separation", "stability", "coverage"])
def test_extra_labels_lower_every_figure_but_retention(figure):
    assert (changes(extra)[figure] < -0.1).all()


def test_retention_compares_centers_which_wrong_labels_at_random_leave_nearest():
    assert (changes(extra)["retention"] == 0).all()


def test_only_coverage_falls_with_missing_labels():
    found = changes(missing)
    assert (found["coverage"] < -0.4).all()
    for name in ("retention", "predicts", "separation", "stability"):
        assert abs(found[name].mean()) < 0.03
