import numpy as np
import pytest
from scipy.stats import kendalltau

from captum_mfv.errors import FacetError
from captum_mfv.metrics import two_choice


def unit_and_codes(n=4000, n_facets=3, noise=0.5, seed=0):
    """Return directions of a unit's facets, codes, and activations: the largest projection on a facet, and noise."""
    rng = np.random.default_rng(seed)
    facets = np.eye(12)[:n_facets]
    codes = rng.normal(size=(n, 12))
    return facets, codes, (codes @ facets.T).max(1) + noise * rng.normal(size=n)


def test_references_of_the_units_facets_are_chosen_right_and_the_opposite_wrong():
    codes = np.random.default_rng(0).normal(size=(2000, 6))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    codes -= codes.mean(0)
    similar = codes[:, 0] / np.linalg.norm(codes, axis=1)  # the cosine to the first axis
    right = two_choice(np.eye(6)[:1], codes, similar)
    wrong = two_choice(-np.eye(6)[:1], codes, similar)
    assert right.estimate.value == 1
    assert right.estimate.low == pytest.approx(0.99, abs=0.001)
    assert wrong.estimate.value == 0


def test_references_without_relation_to_the_unit_are_at_chance():
    _, codes, activations = unit_and_codes()
    chance = two_choice(np.eye(12)[9:], codes, activations)
    assert chance.estimate.low < 0.5 < chance.estimate.high


def test_the_expected_share_is_that_of_kendalls_rank_correlation():
    facets, codes, activations = unit_and_codes()
    origin = codes.mean(0)
    cosines = (codes - origin) / np.linalg.norm(codes - origin, axis=1, keepdims=True)
    references = facets - origin
    similar = (cosines @ (references / np.linalg.norm(references, axis=1, keepdims=True)).T).max(1)
    expected = (1 + kendalltau(similar, activations).statistic) / 2
    found = two_choice(facets, codes, activations, n_pairs=2000).estimate
    assert found.low < expected < found.high
    assert expected > 0.7


def test_one_facet_or_the_mean_of_all_facets_is_a_poorer_reference_than_one_image_for_each_facet():
    facets, codes, activations = unit_and_codes()
    shares = [
        two_choice(references, codes, activations, n_pairs=2000).estimate.value
        for references in (facets, facets.mean(0, keepdims=True), facets[:1])
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[2] > 0.05


def test_the_share_falls_with_corrupted_references():
    facets, codes, activations = unit_and_codes()
    rng = np.random.default_rng(0)
    shares = [
        two_choice(facets + noise * rng.normal(size=facets.shape), codes, activations, n_pairs=2000).estimate.value
        for noise in (0, 0.3, 1, 10)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] > 0.1


def test_no_image_is_in_two_pairs_until_all_were_drawn_and_pairs_come_from_all_quantiles():
    facets, codes, activations = unit_and_codes(n=1001)
    found = two_choice(facets, codes, activations, n_pairs=500)
    assert len(np.unique(found.pairs)) == 1000
    assert (activations[found.pairs[:, 0]] > activations[found.pairs[:, 1]]).all()
    assert found.gaps.min() < 0.01
    assert found.gaps.max() > 0.9
    assert found.gaps.mean() == pytest.approx(1 / 3, abs=0.04)  # of two quantiles at random
    more = two_choice(facets, codes, activations, n_pairs=1200)
    assert more.pairs.shape == (1200, 2)
    assert np.array_equal(more.pairs[:500], found.pairs)


def test_the_share_rises_with_the_gap():
    facets, codes, activations = unit_and_codes()
    found = two_choice(facets, codes, activations, n_pairs=2000)
    small, medium, large = found.by_gap()
    assert small.value < medium.value < large.value
    assert small.n + medium.n + large.n == 2000
    assert found.by_gap([0, 1])[0] == found.estimate
    assert found.by_gap([1, 2]) == [None]


def test_ties_of_the_activation_are_left_out_and_ties_of_the_similarity_are_decided_at_random():
    codes = np.random.default_rng(0).normal(size=(2000, 4))
    activations = np.zeros(2000)
    activations[:100] = 1
    found = two_choice(np.eye(4), codes, activations)
    assert (found.pairs[:, 0] < 100).all()
    assert (found.pairs[:, 1] >= 100).all()
    same = np.tile(np.arange(4.0), (2000, 1))
    coin = two_choice(np.eye(4), same, np.arange(2000)).estimate
    assert coin.low < 0.5 < coin.high


def test_the_pairs_are_the_same_for_all_references_and_unreadable_images_are_in_none():
    facets, codes, activations = unit_and_codes(n=1000)
    codes[::2] = np.nan
    a, b = (two_choice(references, codes, activations, seed=3) for references in (facets, facets[:1]))
    assert np.array_equal(a.pairs, b.pairs)
    assert (a.pairs % 2 == 1).all()
    assert not np.array_equal(a.pairs, two_choice(facets, codes, activations, seed=4).pairs)


def test_misuse_is_an_error_in_one_sentence():
    facets, codes, activations = unit_and_codes(n=20)
    for references, real, values, message in (
        (facets, codes, activations[:-1], r"\(m, D\), \(n, D\) and \(n,\), not"),
        (facets[:, :-1], codes, activations, "length 12"),
        (facets[:0], codes, activations, "at least one"),
        (facets * np.nan, codes, activations, "finite"),
        (facets, codes, np.ones(20), "two different finite values"),
    ):
        with pytest.raises(FacetError, match=message):
            two_choice(references, real, values)
    with pytest.raises(FacetError, match="n_pairs"):
        two_choice(facets, codes, activations, n_pairs=0)
