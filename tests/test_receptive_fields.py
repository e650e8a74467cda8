"""Receptive fields measured by gradient, compared with computed fields; and crops that preserve the activation."""

import math

import pytest
import torch
from conftest import small_cnn
from torch import nn

from captum_mfv import InputSpec
from captum_mfv.activations import capture, guard
from captum_mfv.activations.receptive_fields import Axis, receptive_field

SPEC = InputSpec(96)


def conv(kernel, stride=1, padding=0, dilation=1):
    return nn.Conv2d(3, 3, kernel, stride, padding, dilation)


def by_arithmetic(layers):
    """Return size, stride and start of a chain's field (Araujo et al. 2019, "Computing receptive fields of CNNs")."""
    size, stride, start = 1, 1, 0
    for layer in layers:
        kernel, step, padding, dilation = (
            value[0] if isinstance(value, tuple) else value
            for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        )
        start -= padding * stride
        size += dilation * (kernel - 1) * stride
        stride *= step
    return Axis(size, stride, start)


CHAINS = {
    "one convolution": [conv(5)],
    "padded": [conv(3, 1, 1), conv(3, 1, 1)],
    "strided and padded": [conv(7, 2, 3), conv(3, 2, 1), conv(3, 1, 1)],
    "pooled": [conv(3), nn.MaxPool2d(3, 2, ceil_mode=True), conv(3, 1, 1), nn.MaxPool2d(2)],
    "dilated": [conv(3, 2), conv(3, 1, 2, 2), conv(3, 1, 4, 4)],
    "one by one": [conv(1), conv(1)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_fields_measured_by_gradient_equal_computed_fields(name):
    torch.manual_seed(0)
    chain = CHAINS[name]
    model = nn.Sequential(*(module for layer in chain for module in (layer, nn.LeakyReLU(0.1))))
    found = receptive_field(model, str(2 * len(chain) - 1), SPEC)
    wanted = by_arithmetic(chain)
    assert (found.vertical, found.horizontal) == (wanted, wanted)


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [("squeezenet1_0", "features.12", 155), ("alexnet", "features.10", 163), ("resnet18", "layer2", 99)],
)
def test_fields_of_known_networks_are_measured_correctly(name, layer, size):
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None).eval()
    found = receptive_field(model, layer, InputSpec())
    assert (found.vertical.size, found.horizontal.size) == (size, size)


def test_height_and_width_can_have_different_fields():
    model = nn.Sequential(nn.Conv2d(3, 4, (1, 7)), nn.Conv2d(4, 4, (3, 1)))
    found = receptive_field(model, "1", SPEC)
    assert (found.vertical.size, found.horizontal.size) == (3, 7)
    assert found.crop_size == 7


def test_a_layer_that_depends_on_the_whole_image_has_no_field():
    model = small_cnn()
    assert receptive_field(model, "fc", InputSpec(32)) is None
    assert receptive_field(model, "pool", InputSpec(32)) is None
    everywhere = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4))
    assert receptive_field(everywhere, "1", SPEC) is None


@pytest.mark.usefixtures("unchanged")
def test_measuring_fields_does_not_change_the_model(model):
    assert receptive_field(model, "conv2", InputSpec(32)).vertical == Axis(9, 4, -4)


@pytest.mark.parametrize("name", CHAINS)
def test_an_activation_is_the_same_in_its_crop_as_in_the_whole_image(name):
    torch.manual_seed(0)
    chain = CHAINS[name]
    model = nn.Sequential(*(module for layer in chain for module in (layer, nn.LeakyReLU(0.1))))
    layer = str(2 * len(chain) - 1)
    field = receptive_field(model, layer, SPEC)
    image = torch.rand(1, 3, 96, 96)
    with guard(model), torch.no_grad(), capture(model, [layer]) as run:
        whole = run(image)[layer]
        side = field.crop_size
        for row, column in [(0, 0), (0, 5), (7, 3), (whole.shape[2] // 2, 2), (whole.shape[2] - 1, whole.shape[3] - 1)]:
            top, left = field.corner(row, column)
            assert 0 <= top <= 96 - side
            assert 0 <= left <= 96 - side
            crop = run(image[:, :, top : top + side, left : left + side])[layer]
            inside = crop[0, 0, row - top // field.vertical.stride, column - left // field.horizontal.stride]
            assert math.isclose(float(inside), float(whole[0, 0, row, column]), abs_tol=1e-5)
