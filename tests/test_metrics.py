import numpy as np
import pytest
from conftest import SPEC, small_cnn

from captum_mfv import Code, FacetSet, Unit
from captum_mfv.datasets import planted_codes
from captum_mfv.metrics import multifacetedness, percentile, score_images


def test_the_percentile_is_the_share_of_real_images_with_smaller_activations():
    real = np.array([1.0, 2.0, 3.0, np.nan, 4.0])
    assert [percentile(x, real) for x in (0.0, 2.5, 9.0)] == [0, 0.5, 1]


def test_retention_counts_the_images_nearest_to_their_own_center(facets, planted):
    members = [planted[0][facet.members[0]] for facet in facets]
    for order, share in (([1, 2, 0], 0), ([0, 0, 0], 1 / 3)):
        images = [members[k] for k in order]
        scores, retained = score_images(small_cnn(), facets, images, images, planted[0], input_spec=SPEC)
        assert [score.nearest_facet for score in scores] == order
        assert retained == pytest.approx(share)


def test_real_members_score_as_members(facets, planted):
    images = [planted[0][facet.members[0]] for facet in facets]
    scores, retained = score_images(small_cnn(), facets, images, images, planted[0], input_spec=SPEC)
    assert retained == 1
    for score, facet in zip(scores, facets, strict=True):
        assert score.activation == pytest.approx(facet.activations[0], rel=1e-4)
        assert score.start_distance == 0
        assert 0 <= score.off_facet < 2 * score.real_off_facet < 1


def as_facets(codes, labels, activations=None, stability=None):
    return FacetSet(
        Unit("layer", 0),
        Code("layer"),
        np.asarray(labels, np.int64),
        np.zeros((len(codes), 2), np.float32),
        np.asarray(codes, np.float32),
        np.ones(len(codes), np.float32) if activations is None else np.asarray(activations, np.float32),
        stability=stability,
    )


ONE = {
    "round": lambda rng: rng.normal(size=(200, 64)),
    "elongated": lambda rng: rng.normal(size=(200, 64)) * np.r_[10, 5, np.ones(62)],
    "heavy-tailed": lambda rng: rng.normal(size=(200, 64)) / np.sqrt(rng.chisquare(3, size=(200, 1)) / 3),
    "skewed": lambda rng: rng.exponential(size=(200, 64)),
    "rectified": lambda rng: np.maximum(rng.normal(size=(200, 20)) @ rng.normal(size=(20, 64)), 0),
}


@pytest.mark.parametrize("shape", ONE)
def test_one_facet_of_any_shape_scores_low(shape):
    codes = ONE[shape](np.random.default_rng(0))
    found = multifacetedness(as_facets(codes, np.zeros(200)))
    assert found.score < 0.08
    assert found.p_value > 0.05


def test_units_are_ranked_by_the_separation_of_their_facets():
    scores = [
        multifacetedness(as_facets(*planted_codes(4, 200, 64, separation=separation, seed=1)))
        for separation in (0, 4, 6, 9)
    ]
    assert [score.score for score in scores] == sorted(score.score for score in scores)
    assert scores[0].p_value > 0.05
    assert all(score.p_value < 0.01 for score in scores[1:])


def test_multifacetedness_does_not_depend_on_the_requested_number_of_facets():
    codes, labels = planted_codes(4, 200, 64, seed=1)
    assert multifacetedness(as_facets(codes, labels)) == multifacetedness(as_facets(codes, labels > 1))


def test_coverage_is_the_share_of_activation_in_stable_facets():
    codes, labels = np.eye(6), [0, 0, 1, 1, 2, -1]
    activations = [10, 8, 6, -3, 5, 7]
    found = multifacetedness(as_facets(codes, labels, activations, stability=(0.9, 0.7, 0.2))).coverage
    assert found == pytest.approx((10 + 8 + 6) / (10 + 8 + 6 + 5 + 7))
    assert multifacetedness(as_facets(codes, labels, activations)).coverage is None
    assert multifacetedness(as_facets(codes, labels, stability=(0.9, 0.7, 0.2))).coverage == pytest.approx(4 / 6)
