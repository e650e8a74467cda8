"""Each figure on codes whose right answer is known, and each moved by the corruption that it is made for."""

import numpy as np
import pytest
import torch
from conftest import SPEC, fingerprint, same, small_cnn

from captum_mfv import Unit
from captum_mfv.errors import FacetError
from captum_mfv.metrics import (
    CONTROLS,
    Judge,
    Judged,
    confusion,
    diversity,
    draw_control,
    estimate,
    estimate_ratio,
    halved,
    judge_scores,
    naturalness,
    off_facet,
    predicts,
    real_off_facet,
    real_predicts,
    retained,
    same_over_seeds,
    shuffled,
    spread,
    verdict,
)
from captum_mfv.optvis.recipes import RECIPES, get_recipe

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
    assert diversity(same) == pytest.approx(np.zeros(K), abs=1e-9)
    assert (diversity(made) > 0.8).all()
    assert diversity(np.eye(K)) == pytest.approx(np.ones(K))
    assert diversity(np.zeros((K, D))).tolist() == [0] * K
    assert diversity(made[:1]).tolist() == [0]


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
    assert naturalness(near, real).distance.mean() < 0.5
    assert naturalness(near, real).precision.mean() > 0.95
    assert naturalness(near, real).recall.mean() > 0.95
    assert naturalness(far, real).distance.min() > 5
    assert not naturalness(far, real).precision.any()
    one = np.repeat(real[labels == 0], 4, axis=0) + 0.01 * rng.normal(size=real.shape)
    assert naturalness(one, real).precision.all()
    assert naturalness(one, real).recall.mean() < 0.3
    same = rng.normal(size=(400, 3))
    assert naturalness(rng.normal(size=(400, 3)), same).distance.mean() == pytest.approx(1, abs=0.15)
    with pytest.raises(FacetError, match="more than 3"):
        naturalness(real[:3], real)


def test_images_are_as_far_apart_across_facets_as_within_without_facets_and_further_with_them(seen):
    _, real, labels = seen
    assert estimate_ratio(*spread(real, labels)).low > 1.5
    mixed = estimate_ratio(*spread(real, np.random.default_rng(0).permutation(labels)))
    assert mixed.value == pytest.approx(1, abs=0.05)
    across, within = spread(np.array([[0.0], [2], [10], [13], [50]]), np.array([0, 0, 1, 1, 2]))
    assert within.tolist() == [2, 2, 3, 3]  # the last is alone in its facet
    assert across.tolist() == [(10 + 13 + 50) / 3, (8 + 11 + 48) / 3, (10 + 8 + 40) / 3, (13 + 11 + 37) / 3]


def test_images_of_another_seed_are_the_same_facets_or_not():
    axes = np.eye(K, D)
    assert same_over_seeds(np.stack([axes, 3 * axes + 0.1])).all()
    swapped = same_over_seeds(np.stack([axes, axes[[1, 0, 2, 3]]]))
    assert swapped.shape == (2, 1, K)
    assert swapped[:, 0].tolist() == [[False, False, True, True]] * 2
    noise = np.random.default_rng(0).normal(size=(40, K, D))
    assert same_over_seeds(noise).mean() == pytest.approx(1 / K, abs=0.03)


def test_off_facet_is_the_share_of_the_activation_that_comes_from_elsewhere():
    real = np.array([[3.0, 1, 0, 0], [1, 3, 0, 0], [0, 0, 2, 2]])
    labels = np.array([0, 0, 1])
    own, half, other = [5.0, 5, 0, 0], [1.0, 1, 2, -7], [0.0, 0, 0, 9]
    assert off_facet(np.array([own, [0, 0, 4, 4]]), real, labels).tolist() == [0, 0]
    assert off_facet(np.array([half, own]), real, labels).tolist() == [0.5, 1]
    assert off_facet(np.array([other, other]), real, labels).tolist() == [1, 0.5]
    assert real_off_facet(real, labels).tolist() == [0.5, 0.5]  # of the other facet there is one image
    assert off_facet(np.zeros((2, 4)), real, labels).tolist() == [0.5, 0.5]  # nothing drives it: evenly


def test_an_interval_holds_the_true_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    found = [estimate(rng.normal(3, 1, size=40), n_samples=400) for _ in range(200)]
    assert np.mean([one.low < 3 < one.high for one in found]) == pytest.approx(0.95, abs=0.04)
    assert estimate(np.ones(10)) == estimate(np.ones(10), seed=3)
    assert (estimate(np.array([True, False])).value, estimate(np.array([True, False])).n) == (0.5, 2)
    wide, narrow = (estimate(rng.normal(size=n)) for n in (10, 1000))
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)
    right = rng.random((2000, 10)) < 0.8
    assert np.mean([one.low < 0.8 < one.high for one in map(estimate, right)]) == pytest.approx(0.95, abs=0.04)
    none, every = estimate(np.zeros(10, bool)), estimate(np.ones(10, bool))
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, 0.278), abs=1e-3)  # as tabulated
    assert (every.value, every.low, every.high) == pytest.approx((1, 0.722, 1), abs=1e-3)
    assert estimate_ratio(np.array([2, 6]), np.array([1, 3])) == estimate(np.array([2, 2]))


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


@pytest.fixture(scope="module")
def judged(planted, facets):
    """A judge, and what it sees in the real images."""
    judge = Judge(small_cnn(), Unit("fc", 1), input_spec=SPEC)
    return judge, Judged(judge(planted[0]), facets.labels)


def test_a_verdict_on_members_is_that_on_real_images_and_on_starts_alone_its_control(facets, planted, judged):
    judge, real = judged
    members = [planted[0][facet.members[0]] for facet in facets]
    grey = judge([torch.full((3, 32, 32), 0.5)] * 3)
    found = verdict(
        judge(members), real, controls={"start": (grey, facets.labels)}, again=judge(members[::-1]), held_out=real
    )
    scores = found.scores
    assert (scores.retention.value, scores.centered.value, found.chance) == (1, 1, pytest.approx(1 / 3))
    assert found.controls["start"].retention.value == pytest.approx(1 / 3)
    assert found.controls["start"].diversity.value == pytest.approx(0, abs=1e-6)
    assert found.controls["real image"].retention.value == 1
    assert found.controls["real image"].distance.value > 0  # judged by the others, not by itself
    assert found.shuffled.low < 0.6
    assert found.held_out == scores.predicts
    assert scores.predicts.value > 0.95
    assert scores.precision.value == 1
    assert found.separation.low > 1.5
    assert found.over_seeds.value == pytest.approx(1 / 3)  # only the middle one is where it was


def test_of_one_facet_there_is_a_verdict_too(planted, judged):
    real = Judged(judged[1].images, np.zeros(len(planted[0]), np.int64))
    found = verdict(real.images[:1], real)
    assert (found.chance, found.scores.retention.value, found.separation) == (1, 1, None)


def test_scores_leave_out_images_that_cannot_be_read_or_have_no_facet(planted, judged):
    judge, real = judged
    members = judge([planted[0][np.flatnonzero(real.labels == k)[0]] for k in range(3)])
    torn = Judged(real.images[np.arange(len(real.labels))], np.where(np.arange(len(real.labels)) % 2, -1, real.labels))
    torn.images.codes[0] = np.nan
    assert judge_scores(members, torn).predicts.n == (torn.labels >= 0).sum() - 1


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_draws_one_image_for_each_facet_and_says_which_images_judge_it(
    name, model, unchanged, facets, planted
):
    recipe = get_recipe("facet").with_steps(2)
    drawn = draw_control(name, model, facets, planted[0], recipe, input_spec=SPEC, seed=3)
    assert [one.facet.index for one in drawn] == [0, 1, 2]
    assert {one.seed for one in drawn} == {4 if name == "another seed" else 3}
    _, labels = CONTROLS[name].facets(facets, 3)
    shown = np.concatenate([one.facet.members for one in drawn])
    both = np.intersect1d(shown, np.flatnonzero(labels >= 0))
    assert len(both) == (0 if name in ("half of the images", "shuffled clusters") else len(labels))


def test_controls_take_away_what_they_say(facets, planted):
    def start(name):
        drawn = draw_control(name, small_cnn(), facets, planted[0], get_recipe("facet").with_steps(1), input_spec=SPEC)
        return torch.stack([one.start for one in drawn])

    own = start("another seed")
    assert torch.allclose(start("another facet's start"), own[[2, 0, 1]])
    assert torch.allclose(start("one start for all"), own.mean(0).expand(3, -1, -1, -1), atol=1e-6)
    assert not torch.allclose(start("noise start"), own, atol=0.1)
    for recipe in RECIPES.values():
        weights = [phase.weights for phase in CONTROLS["unit alone"].recipe(recipe).phases]
        assert {name for its in weights for name in its} <= {"unit", "capped_unit", "probability"}
    with pytest.raises(FacetError, match="no control 'start'; there are another facet's start"):
        draw_control("start", small_cnn(), facets, planted[0], get_recipe("facet"), input_spec=SPEC)
