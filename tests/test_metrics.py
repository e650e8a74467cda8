import numpy as np
import pytest
from conftest import SPEC, small_cnn

from captum_mfv.metrics import percentile, retention, score_images


def test_the_percentile_is_the_share_of_real_images_below():
    real = np.array([1.0, 2.0, 3.0, np.nan, 4.0])
    assert [percentile(x, real) for x in (0.0, 2.5, 9.0)] == [0, 0.5, 1]


def test_retention_counts_the_images_nearest_to_their_own_center(facets):
    assert retention(facets.centers, facets) == 1
    assert retention(facets.centers[[1, 2, 0]], facets) == 0
    assert retention(facets.centers[[0, 0, 0]], facets) == pytest.approx(1 / 3)


def test_real_members_score_as_members(facets, planted):
    images = [planted[0][facet.members[0]] for facet in facets]
    scores, retained = score_images(small_cnn(), facets, images, images, input_spec=SPEC)
    assert retained == 1
    for score, facet in zip(scores, facets, strict=True):
        assert score.activation == pytest.approx(facet.activations[0], rel=1e-4)
        assert score.start_distance == 0
