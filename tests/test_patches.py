import captum.attr as ca
import numpy as np
import pytest
import torch

from captum_mfv import FacetFinder, Unit, find_facets
from captum_mfv.attr import FacetAttribution, FacetModel
from captum_mfv.datasets import PLANTED_SPEC, planted_images, planted_network
from captum_mfv.errors import FacetError
from captum_mfv.metrics import patch_swap


def brightness(x):
    """Return the sum of the first channel's pixels and that of the second's."""
    return x.flatten(2).sum(2)


def spots(*places, channel=0, size=8):
    """Return black images of two channels with a square of 2 x 2 white pixels at each place."""
    images = torch.zeros(len(places), 2, size, size)
    for image, (row, column) in zip(images, places, strict=True):
        image[channel, row : row + 2, column : column + 2] = 1
    return images


def test_the_gain_is_that_of_the_pasted_pixels_at_the_place_of_the_largest_attribution():
    images, hosts = spots((1, 5), (4, 2)), torch.zeros(3, 2, 8, 8)
    hosts[2] += 0.25
    found = patch_swap(brightness, images, images, hosts, 0, side=2)
    assert found.places.tolist() == [[1, 5], [4, 2]]
    assert found.gains.tolist() == [[4, 4, 3]] * 2
    assert found.estimate.value == pytest.approx(11 / 3)
    assert set(found.controls) == {"random place", "host"}
    assert np.array_equal(found.controls["host"], np.zeros((2, 3)))  # hosts are uniform


def test_another_targets_patch_has_its_own_attribution_and_the_place_of_the_image():
    images = torch.cat([spots((1, 5)), spots((4, 2), channel=1)])
    found = patch_swap(brightness, images, images, torch.zeros(2, 2, 8, 8), [0, 1], side=2)
    assert found.gains.tolist() == [[4, 4]] * 2
    assert found.controls["another target"].tolist() == [[0, 0]] * 2
    assert found.differences["another target"].value == 4
    same = patch_swap(brightness, images, images, torch.zeros(2, 2, 8, 8), [0, 1], side=2, others=[0, 1])
    assert same.differences["another target"].value == 0


def test_the_gain_falls_with_corrupted_attributions_to_that_of_a_random_place():
    rng = np.random.default_rng(0)
    images = spots(*rng.integers(7, size=(40, 2)).tolist())
    noise = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    hosts = torch.zeros(3, 2, 8, 8)
    right, wrong = (patch_swap(brightness, images, maps, hosts, 0, side=2) for maps in (images, noise))
    assert right.differences["random place"].low > 2
    assert wrong.differences["random place"].low < 0 < wrong.differences["random place"].high


def test_a_facets_patch_drives_the_unit_and_the_facet_more_than_the_controls():
    network, (scene, _) = planted_network()[0], planted_images(distractor=8)
    finder = FacetFinder(4, embedding=None, random_state=0)
    facets = find_facets(network, Unit("unit", 0), scene, finder=finder, input_spec=PLANTED_SPEC)
    explain = FacetAttribution(ca.IntegratedGradients, FacetModel(network, facets, "gated"))
    members = torch.stack([scene[int(i)] for facet in facets for i in facet.members[:3]])
    targets = [facet.index for facet in facets for _ in range(3)]
    attributions = explain.attribute(members, target=targets, n_steps=20)
    hosts = 0.2 * torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # the unit is 0 on them
    found = patch_swap(explain.forward_func, members, attributions, hosts, targets, side=9)
    assert found.estimate.low > 0
    assert set(found.differences) == {"random place", "another target", "host"}
    assert min(difference.low for difference in found.differences.values()) > 0
    again = patch_swap(explain.forward_func, members, attributions, hosts, targets, side=9)
    assert np.array_equal(found.controls["random place"], again.controls["random place"])


def test_misuse_is_an_error_in_one_sentence():
    images, hosts = spots((1, 5), (4, 2)), torch.zeros(3, 2, 8, 8)
    for maps, onto, options, message in (
        (images[:1], hosts, {"side": 2}, "same rows and pixels"),
        (images, hosts[:, :, 1:], {"side": 2}, "hosts of the shape"),
        (images, hosts, {"side": 8}, "smaller than an image of 8 x 8"),
        (images, hosts, {"side": 0}, "side"),
        (images * np.nan, hosts, {"side": 2}, "finite"),
        (images, hosts, {"side": 2, "others": [0]}, "for each of the 2 images"),
        (images, hosts, {"side": 2, "target": [0]}, "one for each of the 2 images"),
    ):
        with pytest.raises(FacetError, match=message):
            patch_swap(brightness, images, maps, onto, **{"target": 0, **options})
