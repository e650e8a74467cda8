"""The number of clusters: planted clusters are counted, and one cluster of any shape is counted as one."""

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import adjusted_rand_score

from captum_mfv import FacetFinder
from captum_mfv.errors import FacetError
from captum_mfv.facets.clouds import log_scatter
from captum_mfv.facets.excess import excess
from captum_mfv.facets.separation import separate

ONE = {
    "round": lambda rng, n, d: rng.normal(size=(n, d)),
    "elongated": lambda rng, n, d: rng.normal(size=(n, d)) * np.r_[10, 5, np.ones(d - 2)],
    "correlated": lambda rng, n, d: rng.normal(size=(n, 5)) @ rng.normal(size=(5, d)) + rng.normal(size=(n, d)),
    "heavy-tailed": lambda rng, n, d: rng.normal(size=(n, d)) / np.sqrt(rng.chisquare(3, size=(n, 1)) / 3),
    "heavy-tailed in each axis": lambda rng, n, d: rng.standard_t(3, size=(n, d)),
    "skewed": lambda rng, n, d: rng.exponential(size=(n, d)),
    "rectified": lambda rng, n, d: np.maximum(rng.normal(size=(n, 8)) @ rng.normal(size=(8, d)), 0),
}


@pytest.mark.parametrize("kind", ONE)
@pytest.mark.parametrize(("n", "d", "seed"), [(150, 50, 0), (150, 50, 1), (400, 20, 0)])
def test_one_cluster_of_any_shape_is_counted_as_one(kind, n, d, seed):
    assert separate(ONE[kind](np.random.default_rng(seed), n, d), seed)[0].max() == 0


@pytest.mark.parametrize("kind", [kind for kind in ONE if kind != "rectified"])  # a few rectified factors have corners
@pytest.mark.parametrize(("n", "d"), [(100, 512), (150, 50)])
def test_one_cluster_of_any_shape_is_not_explained_better_by_several(kind, n, d):
    assert min(excess(ONE[kind](np.random.default_rng(seed), n, d), seed).p_value for seed in range(2)) > 0.05


def test_clusters_without_gaps_between_them_are_divided():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=120)
    codes = 3 * np.eye(3, 8)[labels] + rng.normal(size=(120, 8))
    assert not separate(codes, 0)[0].any()
    finder = FacetFinder("auto", embedding=None, random_state=0).fit(codes)
    assert finder.n_facets_ == 3
    assert adjusted_rand_score(labels, finder.labels_) > 0.8
    assert finder.p_value_ < 0.01
    assert FacetFinder("auto", embedding=None, max_facets=2, random_state=0).fit(codes).n_facets_ == 2


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_planted_clusters_of_unequal_size_and_spread_are_counted(k):
    rng = np.random.default_rng(k)
    centers = rng.normal(size=(k, 40))
    centers *= 9 / np.linalg.norm(centers, axis=1, keepdims=True)
    labels = np.repeat(np.arange(k), 20 + 8 * np.arange(k))
    codes = centers[labels] + rng.uniform(0.6, 1.4, size=k)[labels, None] * rng.normal(size=(len(labels), 40))
    finder = FacetFinder("auto", embedding=None, random_state=0).fit(codes)
    assert abs(finder.n_facets_ - k) <= 1
    assert adjusted_rand_score(labels, finder.labels_) > 0.9
    assert finder.p_value_ < 0.01


def test_the_number_of_facets_can_be_one():
    codes = np.random.default_rng(0).normal(size=(80, 30))
    finder = FacetFinder("auto", random_state=0).fit(codes)
    assert (finder.n_facets_, set(finder.labels_)) == (1, {0})
    assert finder.p_value_ == excess(codes).p_value > 0.05, "as multifacetedness says"
    assert np.allclose(finder.centers_, codes.mean(0))


def test_a_clusterer_is_given_the_number_of_separated_clusters():
    labels = np.repeat([0, 1, 2], 40)
    codes = 8 * np.eye(3, 30)[labels] + np.random.default_rng(0).normal(size=(120, 30))
    finder = FacetFinder("auto", embedding=None, clusterer=AgglomerativeClustering()).fit(codes)
    assert adjusted_rand_score(labels, finder.labels_) == 1


def test_clusters_are_seen_where_most_codes_are_equal():
    codes = np.zeros((60, 8))
    codes[40:] = [3.0, *np.ones(7)]
    assert excess(codes).p_value < 0.01
    assert not excess(np.zeros((60, 8))).score


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_or_equal_codes_are_one_cluster(n):
    assert FacetFinder("auto", random_state=0).fit(np.random.default_rng(0).normal(size=(n, 5))).n_facets_ == 1
    assert not separate(np.zeros((30, 4)), 0)[0].any()


def test_the_result_depends_on_the_seed_and_other_words_than_auto_are_an_error():
    codes = np.random.default_rng(1).normal(size=(100, 10))
    assert np.array_equal(separate(codes, 5)[0], separate(codes, 5)[0])
    with pytest.raises(TypeError, match="'auto'"):
        FacetFinder("many").fit(codes)


def test_at_most_so_many_facets_are_found_and_the_nearest_clusters_are_merged():
    rng = np.random.default_rng(0)
    centers = np.array([[0, 0], [0, 3], [30, 0], [30, 40]])  # the first two are nearest; then the third to both
    codes = np.repeat(centers, 12, axis=0) + 0.1 * rng.normal(size=(48, 2))
    truth = np.repeat(range(4), 12)

    def fitted(most):
        finder = FacetFinder("auto", embedding=None, max_facets=most, random_state=0).fit(codes)
        return {frozenset(truth[finder.labels_ == k].tolist()) for k in range(finder.n_facets_)}, finder.p_value_

    (found_of_all, *_, found_of_one) = found = [fitted(most) for most in (None, 4, 3, 2, 1)]
    assert [groups for groups, _ in found] == [
        {frozenset({0}), frozenset({1}), frozenset({2}), frozenset({3})},
        {frozenset({0}), frozenset({1}), frozenset({2}), frozenset({3})},
        {frozenset({0, 1}), frozenset({2}), frozenset({3})},
        {frozenset({0, 1, 2}), frozenset({3})},
        {frozenset({0, 1, 2, 3})},
    ]
    assert found_of_one[1] == found_of_all[1], "the p-value is that of the codes, not of the merged clusters"
    with pytest.raises(FacetError, match="max_facets must be at least 1, not 0"):
        fitted(0)


def test_the_scatter_within_clusters_is_that_of_k_means_in_each_cloud():
    rng = np.random.default_rng(0)
    clouds = rng.normal(size=(3, 60, 4)) + 6 * np.eye(3, 4)[rng.integers(3, size=(3, 60))]
    clouds -= clouds.mean(1, keepdims=True)
    found = log_scatter(clouds, [2, 3], 10, rng)
    for number, row in zip([2, 3], found, strict=True):
        within = [KMeans(number, n_init=10, random_state=0).fit(cloud).inertia_ for cloud in clouds]
        total = clouds.var(1).sum(1) * 60
        assert row == pytest.approx(np.log(within / total), abs=1e-3)


def test_equal_codes_have_no_scatter_within_as_many_clusters_as_there_are_distinct_codes():
    clouds = np.repeat(np.array([[[3.0, 0], [0, 3], [-3, -3]], [[1.0, 1], [2, 0], [-3, -1]]]), 20, axis=1)
    found = log_scatter(clouds, [1, 3, 5], 4, np.random.default_rng(0))  # with 5, centers are equally near
    assert found[0].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (found[1:] < -20).all()
