import numpy as np
import pytest
import torch
from conftest import SPEC, small_cnn

from captum_mfv.errors import FacetError, UnitError
from captum_mfv.metrics import path_check


def nearest(planted, k):
    return planted[0][int(np.flatnonzero(planted[1] == k)[0])]


def test_real_images_that_were_left_out_score_one_on_average_and_others_zero(model, planted):
    images, labels = planted
    own, other = [], []
    for i in range(20):
        kept = np.arange(60) % 20 != i
        left = images[[i, 20 + i, 40 + i]]
        own.append(path_check(model, list(left), images[kept], labels[kept], input_spec=SPEC).scaled)
        check = path_check(model, list(left.roll(1, 0)), images[kept], labels[kept], input_spec=SPEC)
        other.append(check.scaled)
    last = -1
    assert np.mean(own, 0)[last] == pytest.approx(1, abs=0.05)
    assert np.mean(other, (0, 2))[last] == pytest.approx(0, abs=0.05)


def test_the_layers_are_those_with_positions_in_order_and_a_matrix_has_a_row_for_each(model, planted, unchanged):
    images, labels = planted
    made = [nearest(planted, k) for k in range(3)]
    found = path_check(model, made, images, labels, input_spec=SPEC)
    assert found.layers == ("conv1", "bn1", "relu1", "conv2", "relu2")
    assert found.similarity.shape == found.within.shape == found.between.shape == (5, 3)
    assert (found.within > found.between).all()
    one = path_check(model, made, images, labels, layers=["relu1"], input_spec=SPEC)
    assert np.array_equal(one.scaled[0], found.scaled[2])
    above, span = found.similarity - found.between, found.within - found.between
    assert [layer.n for layer in found.estimates] == [3] * 5
    assert [layer.value for layer in found.estimates] == pytest.approx(above.sum(1) / span.sum(1))


def test_noise_and_images_of_other_facets_score_lower_than_real_images(model, planted):
    images, labels = planted
    made = [nearest(planted, k) for k in range(3)]
    noise = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    real, mixed, other, random = (
        path_check(model, pictures, images, labels, layers=["relu2"], input_spec=SPEC).scaled.mean()
        for pictures in (made, [(a + b) / 2 for a, b in zip(made, noise, strict=True)], made[1:] + made[:1], noise)
    )
    assert real > mixed > max(other, random)
    assert real > 0.9
    assert other < 0.3


def test_a_layer_that_does_not_distinguish_a_facet_has_no_score(planted):
    images = planted[0][:20].repeat(2, 1, 1, 1)
    labels = np.arange(40) // 20  # two facets of the same images
    found = path_check(small_cnn(), [images[0], images[1]], images, labels, input_spec=SPEC)
    assert np.isnan(found.scaled).all()
    assert found.estimates == [None] * 5


def test_one_facet_is_compared_with_other_images(model, planted):
    images, labels = planted
    red, rest = images[labels == 0], images[labels != 0]
    made = [nearest(planted, 0)]
    with pytest.raises(FacetError, match="others="):
        path_check(model, made, red, np.zeros(20, int), input_spec=SPEC)
    alone = path_check(model, made, red, np.zeros(20, int), others=rest, input_spec=SPEC)
    among = path_check(model, [nearest(planted, k) for k in range(3)], images, labels, input_spec=SPEC)
    assert np.allclose(alone.scaled[:, 0], among.scaled[:, 0])


def test_misuse_is_an_error_in_one_sentence(model, planted):
    images, labels = planted
    made = [nearest(planted, k) for k in range(3)]
    for pictures, facets, message in (
        (made, labels[:-1], "one entry for each of the 60"),
        (made[:2], labels, "one image and real images for each facet"),
        (made, np.minimum(labels, 1), "one image and real images for each facet"),
    ):
        with pytest.raises(FacetError, match=message):
            path_check(model, pictures, images, facets, input_spec=SPEC)
    with pytest.raises(UnitError, match="conv9"):
        path_check(model, made, images, labels, layers=["conv9"], input_spec=SPEC)
