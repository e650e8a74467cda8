import numpy as np
import pytest

from captum_mfv.datasets import planted_codes
from captum_mfv.errors import FacetError
from captum_mfv.metrics import clarity, polysemanticity, redundancy


def test_examples_of_one_direction_are_clear_and_opposite_ones_are_not():
    same = np.outer([1, 2, 3, 4], [1, 1, 0])
    assert clarity(same) == pytest.approx(1)
    assert clarity(np.array([[1, 0], [-1, 0]])) == pytest.approx(-1)
    assert clarity(np.eye(5)) == pytest.approx(0)


def test_two_orthogonal_groups_are_polysemantic_and_one_direction_is_not():
    groups = np.repeat(np.eye(3)[:2], 5, axis=0)
    assert polysemanticity(groups) == pytest.approx(1)
    assert clarity(groups) == pytest.approx(4 / 9)
    assert polysemanticity(np.concatenate([groups[:5], -groups[:5]])) == pytest.approx(2)
    assert polysemanticity(np.outer(np.arange(1, 9), [1, 1, 0])) == pytest.approx(0)
    assert polysemanticity(np.ones((5, 3))) == pytest.approx(0)


def test_a_cluster_of_one_example_does_not_make_a_unit_polysemantic():
    codes = np.concatenate([np.tile([1.0, 0, 0], (9, 1)), [[0, 9.0, 0]]])
    mean = np.array([0.9, 0.9, 0])
    assert polysemanticity(codes) == pytest.approx(1 - 0.9 / np.linalg.norm(mean))


def test_redundant_units_have_the_same_mean():
    means = np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 1.0, 0], [0, 1.0, 1.0]])
    assert redundancy(means) == pytest.approx([1, 1, 0.5**0.5, 0.5**0.5])


def test_planted_facets_lower_clarity_and_noise_does_not_change_who_is_redundant():
    scores = [clarity(planted_codes(k, 200, 64, seed=1)[0]) for k in (1, 2, 5, 10)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("wrong", [np.ones((1, 3)), np.ones(3), np.full((4, 3), np.nan)])
def test_misuse_is_an_error_in_one_sentence(wrong):
    for score in (clarity, polysemanticity, redundancy):
        with pytest.raises(FacetError, match="at least 2"):
            score(wrong)
