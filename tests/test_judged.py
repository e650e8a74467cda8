"""Each figure on codes whose right answer is known, and each moved by the corruption that it is made for."""

import numpy as np
import pytest
import torch
from conftest import SPEC, fingerprint, same, small_cnn

from captum_mfv import Unit
from captum_mfv.errors import FacetError
from captum_mfv.metrics import (
    Judge,
    confusion,
    diversity,
    estimate,
    halved,
    naturalness,
    predicts,
    real_predicts,
    retained,
    separation_ratio,
    shuffled,
    verdict,
)

K, D = 4, 16


@pytest.fixture(scope="module")
def seen():
    """Real images in four directions, and one image for each, near its facet's center."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), 25)
    axes = 6 * np.eye(K, D)
    real = axes[labels] + rng.normal(size=(len(labels), D))
    return axes + 0.5 * rng.normal(size=(K, D)), real, labels


def test_images_of_their_facets_are_retained_and_tell_the_real_ones(seen):
    made, real, labels = seen
    for centered in (False, True):
        assert retained(made, real, labels, centered=centered).all()
        similar = confusion(made, real, labels, centered=centered)
        assert similar.shape == (K, K)
        assert (np.diag(similar) > 0.8).all()
        assert (np.abs(similar) <= 1 + 1e-9).all()
    assert predicts(made, real, labels).mean() > 0.95
    assert real_predicts(real, labels).mean() > 0.95


def test_swapped_images_are_not_retained_and_mislead(seen):
    made, real, labels = seen
    swapped = made[[1, 0, 2, 3]]
    assert retained(swapped, real, labels).tolist() == [False, False, True, True]
    assert predicts(swapped, real, labels).mean() == pytest.approx(0.5, abs=0.05)


def test_one_image_for_all_facets_is_at_chance(seen):
    made, real, labels = seen
    same = np.repeat(made.mean(0)[None], K, axis=0)
    assert retained(same, real, labels).mean() == 1 / K
    assert diversity(same) == pytest.approx(0, abs=1e-9)
    assert diversity(made) > 0.8


def test_images_that_share_something_no_real_image_has_are_retained_once_it_is_removed(seen):
    made, real, labels = seen
    style = np.zeros(D)
    style[[0, -1]] = 40, 200
    assert retained(made + style, real, labels).mean() == 1 / K
    assert retained(made + style, real, labels, centered=True).all()


def test_clusters_that_mean_nothing_are_at_chance_held_out(seen):
    _, real, labels = seen
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(40):
        mixed = rng.permutation(labels)
        half = rng.random(len(mixed)) < 0.5
        made = np.stack([real[half & (mixed == k)].mean(0) for k in range(K)])
        shares.append(predicts(made, real, np.where(half, -1, mixed)).mean())
    assert np.mean(shares) == pytest.approx(1 / K, abs=0.05)


def test_images_without_a_facet_do_not_count_and_a_facet_without_images_is_refused(seen):
    made, real, labels = seen
    some = np.where(np.arange(len(labels)) % 2, -1, labels)
    assert predicts(made, real, some).shape == (50,) == real_predicts(real, some).shape
    with pytest.raises(FacetError, match="at least one image"):
        retained(made, real, np.where(labels == 1, -1, labels))


def test_naturalness_falls_with_distance_precision_too_and_recall_with_collapse(seen):
    _, real, labels = seen
    rng = np.random.default_rng(2)
    near, far = real + 0.1 * rng.normal(size=real.shape), real + 20
    assert naturalness(near, real).distance < 0.5
    assert naturalness(near, real).precision > 0.95
    assert naturalness(near, real).recall > 0.95
    assert naturalness(far, real).distance > 5
    assert naturalness(far, real).precision == 0
    one = np.repeat(real[labels == 0], 4, axis=0) + 0.01 * rng.normal(size=real.shape)
    assert naturalness(one, real).precision == 1
    assert naturalness(one, real).recall < 0.3
    same = rng.normal(size=(400, 3))
    assert naturalness(rng.normal(size=(400, 3)), same).distance == pytest.approx(1, abs=0.15)
    with pytest.raises(FacetError, match="more than 3"):
        naturalness(real[:3], real)


def test_separation_is_one_without_facets_and_more_with_them(seen):
    _, real, labels = seen
    assert separation_ratio(real, labels) > 1.5
    assert separation_ratio(real, np.random.default_rng(0).permutation(labels)) == pytest.approx(1, abs=0.05)


def test_an_interval_holds_the_true_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    found = [estimate(rng.normal(3, 1, size=40), n_samples=400) for _ in range(200)]
    assert np.mean([one.low < 3 < one.high for one in found]) == pytest.approx(0.95, abs=0.04)
    assert estimate(np.ones(10)) == estimate(np.ones(10), seed=3)
    assert (estimate(np.array([True, False])).value, estimate(np.array([True, False])).n) == (0.5, 2)
    wide, narrow = (estimate(rng.normal(size=n)) for n in (10, 1000))
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_controls_keep_sizes_and_halves_share_no_image(facets):
    mixed = shuffled(facets, seed=1)
    assert [len(facet) for facet in mixed] == [len(facet) for facet in facets]
    assert (mixed.labels != facets.labels).any()
    half, left = halved(facets)
    assert not ((half.labels >= 0) & (left >= 0)).any()
    assert ((half.labels >= 0) | (left >= 0)).all()
    for facet, kept in zip(facets, half, strict=True):
        assert set(kept.members) == set(facet.members[::2])


def test_a_judge_gives_codes_and_with_a_unit_the_class_and_is_left_as_it_was(planted):
    model, images = small_cnn(), planted[0][:6]
    before = fingerprint(model)
    alone = Judge(model, input_spec=SPEC)(images)
    assert (alone.codes.shape, alone.probabilities, alone.called) == ((6, 24), None, None)
    seen = Judge(model, Unit("fc", 2), input_spec=SPEC)(images)
    assert np.array_equal(seen.codes, alone.codes)
    wanted = model(SPEC(images)).softmax(1).detach().numpy()
    assert np.allclose(seen.probabilities, wanted[:, 2], atol=1e-6)
    assert seen.called.tolist() == (wanted.argmax(1) == 2).tolist()
    assert len(seen[2:]) == 4
    after = fingerprint(model)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_a_verdict_on_members_is_that_on_real_images_and_on_starts_alone_its_control(facets, planted):
    judge = Judge(small_cnn(), Unit("fc", 1), input_spec=SPEC)
    members = [planted[0][facet.members[0]] for facet in facets]
    grey = [torch.full((3, 32, 32), 0.5)] * 3
    found = verdict(
        judge(members), judge(grey), judge(planted[0]), facets.labels, held_out=(judge(planted[0]), facets.labels)
    )
    assert (found.retention.value, found.centered.value, found.chance) == (1, 1, pytest.approx(1 / 3))
    assert found.controls["start"].value == pytest.approx(1 / 3)
    assert found.controls["shuffled clusters"].low < 0.6
    assert found.held_out == found.predicts
    assert found.predicts.value > 0.95
    assert found.naturalness.precision == 1
    assert found.separation > 1.5
