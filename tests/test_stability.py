"""Stable facets are recovered in bootstrap samples; parts of one cluster, split by k-means or t-SNE, are not."""

import numpy as np
import pytest

from captum_mfv import FacetFinder
from captum_mfv.datasets import planted_codes
from captum_mfv.facets.finder import STABLE, stability


def stable(codes, labels):
    return stability(codes, labels)[0]


def test_planted_facets_are_stable_and_a_split_facet_is_not():
    codes, labels = planted_codes(4, 300, 64, seed=2)
    assert (stable(codes, labels) > 0.95).all()
    largest = np.bincount(labels).argmax()
    split = np.where((labels == largest) & (codes[:, 0] > np.median(codes[labels == largest, 0])), 4, labels)
    found = stable(codes, split)
    assert (found[[k for k in range(4) if k != largest]] > STABLE).all()
    assert (found[[largest, 4]] < STABLE).all()


@pytest.mark.parametrize("embedding", ["tsne", None])
def test_facets_of_noise_are_not_stable_even_if_the_embedding_has_islands(embedding):
    codes = np.random.default_rng(0).normal(size=(150, 50))
    found = FacetFinder(8, embedding=embedding, random_state=0).fit(codes)
    assert found.stability_.shape == (8,)
    assert (found.stability_ < 0.5).all()


def test_stability_is_in_its_interval_and_stable_facets_have_narrower_ones():
    codes, labels = planted_codes(4, 300, 64, seed=2)
    largest = np.bincount(labels).argmax()
    split = np.where((labels == largest) & (codes[:, 0] > np.median(codes[labels == largest, 0])), 4, labels)
    means, intervals = stability(codes, split)
    low, high = intervals.T
    assert ((low >= 0) & (low <= means) & (means <= high) & (high <= 1)).all()
    assert (high - low)[[largest, 4]].min() > 0.1
    assert stability(codes, labels)[1].tolist() == [[1, 1]] * 4


def test_a_facet_in_no_sample_has_stability_0_and_an_interval_from_0_to_1():
    codes = np.vstack([np.random.default_rng(0).normal(size=(30, 4)), np.full((1, 4), 9.0)])
    labels = np.r_[np.zeros(30, int), 1]
    seed = next(seed for seed in range(9) if 30 not in np.random.default_rng(seed).integers(31, size=31))
    means, intervals = stability(codes, labels, 1, seed)
    assert (means[1], intervals[1].tolist()) == (0, [0, 1])
    assert means[0] > 0


def test_a_single_facet_has_stability_1():
    assert stable(np.random.default_rng(0).normal(size=(20, 3)), np.zeros(20, int)).tolist() == [1.0]


def test_noise_is_left_out_of_stability():
    codes, labels = planted_codes(3, 200, 64, seed=0)
    far = np.vstack([codes, np.full((5, 64), 1e3)])
    assert np.array_equal(stable(far, np.r_[labels, [-1] * 5]), stable(codes, labels))


def test_a_facet_of_one_image_and_identical_images_have_a_stability():
    codes = np.vstack([np.zeros((30, 4)), np.ones((1, 4))])
    found = stable(codes, np.r_[np.zeros(30, int), 1])
    assert found[0] > 0.9
    assert 0 <= found[1] <= 1


def test_stability_can_be_left_out():
    codes, _ = planted_codes(3, 100, 64)
    assert np.isnan(FacetFinder(3, n_bootstraps=0, random_state=0).fit(codes).stability_).all()
