"""Each score on codes with a known value, and its change under the corruption that the score should detect."""

import json
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import SPEC, fingerprint, same, small_cnn

from captum_mfv import Code, FacetSet, Unit
from captum_mfv.errors import FacetError
from captum_mfv.metrics import (
    CONTROLS,
    Estimate,
    Judge,
    JudgeOutput,
    LabeledOutput,
    confusion,
    diversity,
    draw_control,
    estimate,
    estimate_ratio,
    evaluate_images,
    halved,
    judge_scores,
    multifacetedness,
    naturalness,
    off_facet,
    predicts,
    real_off_facet,
    real_predicts,
    retained,
    same_over_seeds,
    score_images,
    shuffled,
    spread,
)
from captum_mfv.optvis.recipes import RECIPES, get_recipe

K, D = 4, 16


@pytest.fixture(scope="module")
def known():
    """Return codes of one image near each of four facets' centers, codes of real images, and labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), 25)
    axes = 6 * np.eye(K, D)
    real = axes[labels] + rng.normal(size=(len(labels), D))
    return axes + 0.5 * rng.normal(size=(K, D)), real, labels


def test_images_near_their_facets_are_retained_and_predict_the_real_images(known):
    made, real, labels = known
    for centered in (False, True):
        assert retained(made, real, labels, centered=centered).all()
        similar = confusion(made, real, labels, centered=centered)
        assert similar.shape == (K, K)
        assert (np.diag(similar) > 0.8).all()
        assert (np.abs(similar) <= 1 + 1e-9).all()
    assert predicts(made, real, labels).mean() > 0.95
    assert real_predicts(real, labels).mean() > 0.95


def test_swapped_images_are_not_retained_and_predict_wrong_facets(known):
    made, real, labels = known
    swapped = made[[1, 0, 2, 3]]
    assert retained(swapped, real, labels).tolist() == [False, False, True, True]
    assert predicts(swapped, real, labels).mean() == pytest.approx(0.5, abs=0.05)


def test_one_image_for_all_facets_is_at_chance(known):
    made, real, labels = known
    same = np.repeat(made.mean(0)[None], K, axis=0)
    assert retained(same, real, labels).mean() == 1 / K
    assert diversity(same) == pytest.approx(np.zeros(K), abs=1e-9)
    assert (diversity(made) > 0.8).all()
    assert diversity(np.eye(K)) == pytest.approx(np.ones(K))
    assert diversity(np.zeros((K, D))).tolist() == [0] * K
    assert diversity(made[:1]).tolist() == [0]


def test_an_offset_of_all_images_lowers_retention_but_not_centered_retention(known):
    made, real, labels = known
    style = np.zeros(D)
    style[[0, -1]] = 40, 200
    assert retained(made + style, real, labels).mean() == 1 / K
    assert retained(made + style, real, labels, centered=True).all()


def test_random_clusters_predict_held_out_images_at_chance(known):
    _, real, labels = known
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(40):
        mixed = rng.permutation(labels)
        half = rng.random(len(mixed)) < 0.5
        made = np.stack([real[half & (mixed == k)].mean(0) for k in range(K)])
        shares.append(predicts(made, real, np.where(half, -1, mixed)).mean())
    assert np.mean(shares) == pytest.approx(1 / K, abs=0.05)


def test_images_without_a_facet_are_left_out_and_a_facet_without_images_is_an_error(known):
    made, real, labels = known
    some = np.where(np.arange(len(labels)) % 2, -1, labels)
    assert predicts(made, real, some).shape == (50,) == real_predicts(real, some).shape
    with pytest.raises(FacetError, match="facet 1 has no real image"):
        retained(made, real, np.where(labels == 1, -1, labels))
    with pytest.raises(FacetError, match="facet 3 has no real image"):
        retained(made, real, np.where(labels == 3, -1, labels))
    with pytest.raises(FacetError, match="one image for each facet: 3 images, 4 facets"):
        retained(made[:3], real, labels)


def test_distance_and_precision_measure_realism_and_coverage_falls_with_collapse(known):
    _, real, labels = known
    rng = np.random.default_rng(2)
    near, far = real + 0.1 * rng.normal(size=real.shape), real + 20
    assert naturalness(near, real).distance.mean() < 0.5
    assert naturalness(near, real).precision.mean() > 0.95
    assert naturalness(near, real).covered.mean() > 0.95
    assert naturalness(far, real).distance.min() > 5
    assert not naturalness(far, real).precision.any()
    one = np.repeat(real[labels == 0], 4, axis=0) + 0.01 * rng.normal(size=real.shape)
    assert naturalness(one, real).precision.all()
    assert naturalness(one, real).covered.mean() < 0.3
    same = rng.normal(size=(400, 3))
    assert naturalness(rng.normal(size=(400, 3)), same).distance.mean() == pytest.approx(1, abs=0.15)


def test_precision_and_coverage_of_an_image_do_not_depend_on_the_number_of_images(known):
    made, real, _ = known
    every = naturalness(made, real)
    each = [naturalness(made[k : k + 1], real) for k in range(K)]
    assert [bool(one.precision[0]) for one in each] == every.precision.tolist()
    assert np.array_equal(np.any([one.covered for one in each], axis=0), every.covered)
    inside = naturalness(real[:1] + 1e-3, real)
    assert inside.precision.all()
    assert inside.covered.any()


def test_naturalness_of_duplicate_or_few_real_images_is_none_where_it_is_undefined(known):
    made, real, _ = known
    copies = np.repeat(300 + real[:2], 10, axis=0)
    found = naturalness(made, copies)
    assert found.distance is None
    assert not found.precision.any()
    assert naturalness(copies[:1], copies).precision.all()
    few = naturalness(made, real[:3])
    assert (few.precision, few.covered) == (None, None)
    assert naturalness(made, real[:1]).distance is None


def test_the_distance_across_facets_over_that_within_is_1_for_random_facets_and_larger_for_real_ones(known):
    _, real, labels = known
    assert estimate_ratio(*spread(real, labels)).low > 1.5
    mixed = estimate_ratio(*spread(real, np.random.default_rng(0).permutation(labels)))
    assert mixed.value == pytest.approx(1, abs=0.05)
    across, within = spread(np.array([[0.0], [2], [10], [13], [50]]), np.array([0, 0, 1, 1, 2]))
    assert within.tolist() == [2, 2, 3, 3]  # the last image is alone in its facet
    assert across.tolist() == [(10 + 13 + 50) / 3, (8 + 11 + 48) / 3, (10 + 8 + 40) / 3, (13 + 11 + 37) / 3]


def test_images_are_compared_with_images_of_another_seed():
    axes = np.eye(K, D)
    assert same_over_seeds(np.stack([axes, 3 * axes + 0.1])).all()
    swapped = same_over_seeds(np.stack([axes, axes[[1, 0, 2, 3]]]))
    assert swapped.shape == (2, 1, K)
    assert swapped[:, 0].tolist() == [[False, False, True, True]] * 2
    noise = np.random.default_rng(0).normal(size=(40, K, D))
    assert same_over_seeds(noise).mean() == pytest.approx(1 / K, abs=0.03)


def test_off_facet_is_the_share_of_the_activation_from_other_channels():
    real = np.array([[3.0, 1, 0, 0], [1, 3, 0, 0], [0, 0, 2, 2]])
    labels = np.array([0, 0, 1])
    own, half, other = [5.0, 5, 0, 0], [1.0, 1, 2, -7], [0.0, 0, 0, 9]
    assert off_facet(np.array([own, [0, 0, 4, 4]]), real, labels).tolist() == [0, 0]
    assert off_facet(np.array([half, own]), real, labels).tolist() == [0.5, 1]
    assert off_facet(np.array([other, other]), real, labels).tolist() == [1, 0.5]
    assert real_off_facet(real, labels).tolist() == [0.5, 0.5]  # the other facet has a single image
    assert off_facet(np.zeros((2, 4)), real, labels).tolist() == [0.5, 0.5]  # without contributions: uniform shares


def test_an_interval_contains_the_true_mean_in_95_percent_of_samples():
    rng = np.random.default_rng(0)
    found = [estimate(rng.normal(3, 1, size=40)) for _ in range(400)]
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


def test_intervals_of_one_or_equal_values_are_defined_and_memory_is_bounded():
    assert estimate(np.array([2.0])) == Estimate(2, 2, 2, 1)
    assert estimate(np.full(5, 0.25)) == Estimate(0.25, 0.25, 0.25, 5)
    one = estimate(np.array([True]))
    assert (one.value, one.low, one.high) == pytest.approx((1, 0.2065, 1), abs=1e-3)
    assert estimate_ratio(np.ones(3), np.zeros(3)) is None
    assert estimate_ratio(np.zeros(0), np.zeros(0)) is None
    assert np.isfinite(estimate_ratio(np.ones(3), np.array([0, 0, 2.0])).high)
    for values in ([], [np.nan, 1]):
        with pytest.raises(FacetError, match="at least one value"):
            estimate(np.array(values))
    tracemalloc.start()
    estimate(np.arange(20_000.0))
    assert tracemalloc.get_traced_memory()[1] < 4 * 8 * 2**20 + 2**23  # less than 2000 x 20,000 indices and values
    tracemalloc.stop()


def test_the_null_distribution_is_of_single_draws_not_of_their_mean(known):
    made, real, labels = known
    output = LabeledOutput(JudgeOutput(real), labels)
    null = evaluate_images(JudgeOutput(made), output).shuffled
    draws = [retained(made, real, np.random.default_rng(n).permutation(labels)).mean() for n in range(400)]
    assert null.value == pytest.approx(np.mean(draws), abs=0.06)
    assert (null.low, null.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.26)
    assert null.high - null.low >= 0.5  # of four images, one draw is 0, 1/4, 2/4 ...
    assert null.p_value < 0.05
    chance = evaluate_images(JudgeOutput(made[[1, 0, 2, 3]]), output).shuffled
    assert chance.p_value > 0.05


def test_the_two_directions_between_two_seeds_are_one_observation_per_facet(known):
    made, real, labels = known
    output = LabeledOutput(JudgeOutput(real), labels)
    found = evaluate_images(JudgeOutput(made), output, again=JudgeOutput(made + 0.1)).over_seeds
    assert (found.value, found.n) == (1, K)
    assert found == estimate(np.ones(K, bool))


def test_the_evaluation_of_duplicate_codes_can_be_written_as_json(known):
    _, real, labels = known
    copies = real[::25][labels]
    found = evaluate_images(JudgeOutput(copies[::25]), LabeledOutput(JudgeOutput(copies), labels))
    assert (found.scores.distance, found.separation) == (None, None)
    json.dumps(asdict(found), allow_nan=False)
    same = np.ones_like(real)
    json.dumps(
        asdict(evaluate_images(JudgeOutput(same[:K]), LabeledOutput(JudgeOutput(same), labels))), allow_nan=False
    )


def test_a_unit_of_few_distinct_codes_has_a_multifacetedness(known):
    _, real, labels = known
    for codes in (real[::25][labels], np.ones_like(real)):
        found = multifacetedness(FacetSet(Unit("x", 0), Code("x"), labels, codes, codes, np.ones(len(codes))))
        assert 0 <= found.score <= 1
        assert 0 <= found.p_value <= 1


def test_a_facet_of_one_image_cannot_be_halved(facets, planted):
    labels = facets.labels.copy()
    labels[facets[2].members[1:]] = -1
    single = replace(facets, labels=labels)
    with pytest.raises(FacetError, match="facet 2 has one image and can't be halved"):
        halved(single)
    recipe = get_recipe("facet").with_steps(1)
    for name in ("half of the images", "shuffled clusters"):
        with pytest.raises(FacetError, match="facet 2 has one image"):
            draw_control(name, small_cnn(), single, planted[0], recipe, input_spec=SPEC)


@pytest.mark.parametrize("seed", ["0", 0.5, -1])
def test_metrics_accept_integers_of_any_type_as_seeds_and_nothing_else(seed, facets, planted):
    recipe = get_recipe("facet").with_steps(1)
    (one, *_) = draw_control("noise start", small_cnn(), facets, planted[0], recipe, input_spec=SPEC, seed=np.int64(3))
    assert one.seed == 3
    assert estimate(np.arange(9), seed=np.int64(3)) == estimate(np.arange(9), seed=3)
    refused = [
        lambda: draw_control("noise start", small_cnn(), facets, planted[0], recipe, input_spec=SPEC, seed=seed),
        lambda: estimate(np.arange(9), seed=seed),
        lambda: shuffled(facets, seed=seed),
        lambda: multifacetedness(facets, seed=seed),
    ]
    for call in refused:
        with pytest.raises((TypeError, ValueError), match="seed must be an integer"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_a_half_precision_model_are_close_to_the_float32_models(dtype, facets, planted):
    images = [planted[0][facet.members[0]] for facet in facets]
    (full, kept), (half, kept_half) = (
        score_images(model, facets, images, images, planted[0], input_spec=SPEC)
        for model in (small_cnn(), small_cnn().to(dtype))
    )
    assert (kept, kept_half) == (1, 1)
    for one, other in zip(full, half, strict=True):
        assert other.activation == pytest.approx(one.activation, abs=0.01)
        assert other.off_facet == pytest.approx(one.off_facet, abs=0.05)
    full, half = (Judge(model, "fc:1", "relu2:max", SPEC)(planted[0]) for model in (small_cnn(), small_cnn().to(dtype)))
    assert np.allclose(full.probabilities, half.probabilities, atol=0.01)
    assert np.allclose(full.codes, half.codes, atol=0.05)


def test_controls_keep_sizes_and_halves_share_no_image(facets):
    mixed = shuffled(facets, seed=1)
    assert [len(facet) for facet in mixed] == [len(facet) for facet in facets]
    assert (mixed.labels != facets.labels).any()
    half, left = halved(facets)
    assert not ((half.labels >= 0) & (left >= 0)).any()
    assert ((half.labels >= 0) | (left >= 0)).all()
    for facet, kept in zip(facets, half, strict=True):
        assert set(kept.members) == set(facet.members[::2])


def test_a_judge_returns_codes_and_class_probabilities_and_is_unchanged(planted):
    model, images = small_cnn(), planted[0][:6]
    before = fingerprint(model)
    alone = Judge(model, input_spec=SPEC)(images)
    assert (alone.codes.shape, alone.probabilities, alone.top1) == ((6, 24), None, None)
    seen = Judge(model, Unit("fc", 2), input_spec=SPEC)(images)
    assert np.array_equal(seen.codes, alone.codes)
    wanted = model(SPEC(images)).softmax(1).detach().numpy()
    assert np.allclose(seen.probabilities, wanted[:, 2], atol=1e-6)
    assert seen.top1.tolist() == (wanted.argmax(1) == 2).tolist()
    assert len(seen[2:]) == 4
    after = fingerprint(model)
    assert [key for key in before if not same(before[key], after[key])] == []


@pytest.fixture(scope="module")
def judged(planted, facets):
    """Return a judge and its output for the real images."""
    judge = Judge(small_cnn(), Unit("fc", 1), input_spec=SPEC)
    return judge, LabeledOutput(judge(planted[0]), facets.labels)


def test_members_score_like_real_images_and_gray_starts_score_at_chance(facets, planted, judged):
    judge, real = judged
    members = [planted[0][facet.members[0]] for facet in facets]
    gray = judge([torch.full((3, 32, 32), 0.5)] * 3)
    found = evaluate_images(
        judge(members), real, controls={"start": (gray, facets.labels)}, again=judge(members[::-1]), held_out=real
    )
    scores = found.scores
    assert (scores.retention.value, scores.centered.value, found.chance) == (1, 1, pytest.approx(1 / 3))
    assert found.controls["start"].retention.value == pytest.approx(1 / 3)
    assert found.controls["start"].diversity.value == pytest.approx(0, abs=1e-6)
    assert found.controls["real image"].retention.value == 1
    assert found.controls["real image"].distance.value > 0  # compared with the other real images
    assert found.shuffled.low < 0.6
    assert found.scores.diversity is not None
    assert found.held_out == scores.predicts
    assert scores.predicts.value > 0.95
    assert scores.precision.value == 1
    assert found.separation.low > 1.5
    assert found.over_seeds.value == pytest.approx(1 / 3)  # only the middle image is unchanged


def test_one_facet_can_be_evaluated(planted, judged):
    real = LabeledOutput(judged[1].images, np.zeros(len(planted[0]), np.int64))
    found = evaluate_images(real.images[:1], real)
    assert (found.chance, found.scores.retention.value, found.separation) == (1, 1, None)
    assert found.scores.precision.value == 1  # the image is a real image
    assert found.scores.covered.value > 0
    assert found.scores.diversity is None


def test_scores_leave_out_images_that_cannot_be_read_or_have_no_facet(planted, judged):
    judge, real = judged
    members = judge([planted[0][np.flatnonzero(real.labels == k)[0]] for k in range(3)])
    torn = LabeledOutput(
        real.images[np.arange(len(real.labels))], np.where(np.arange(len(real.labels)) % 2, -1, real.labels)
    )
    torn.images.codes[0] = np.nan
    assert judge_scores(members, torn).predicts.n == (torn.labels >= 0).sum() - 1


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_renders_one_image_per_facet_and_returns_the_labels_to_compare_with(
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


def test_controls_change_only_the_named_part(facets, planted):
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
