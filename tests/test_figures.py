import io

import matplotlib
import numpy as np
import pytest
import torch
from conftest import SPEC, fingerprint, same, small_cnn
from matplotlib.figure import Figure
from PIL import Image

from captum_mfv import FacetFinder, Unit, find_facets
from captum_mfv.attr import facet_maps
from captum_mfv.datasets import PLANTED_SPEC, planted_images, planted_network
from captum_mfv.errors import FacetError
from captum_mfv.figures import overlay_png, plot_attributions


@pytest.fixture(scope="module")
def scene():
    network, images = planted_network()[0], planted_images(distractor=8)[0]
    finder = FacetFinder(4, embedding=None, random_state=0)
    return network, images, find_facets(network, Unit("unit", 0), images, finder=finder, input_spec=PLANTED_SPEC)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")  # Captum, of DeepLift
@pytest.mark.parametrize("method", [None, "IntegratedGradients", "InputXGradient", "LayerGradCam", "DeepLift"])
def test_the_map_of_a_facet_lies_on_what_shows_it(method, scene):
    network, images, facets = scene
    before = fingerprint(network)
    members = [images[facet.members[0]] for facet in facets]
    maps = facet_maps(network, facets, members, range(4), method=method, input_spec=PLANTED_SPEC)
    assert maps.shape == (4, 32, 32)
    for k, (image, found) in enumerate(zip(members, maps, strict=True)):
        drives = network[:2](image[None])[0, network[:2](image[None])[0].mean((1, 2))[:4].argmax()] > 0
        mass = found.clamp_min(0)
        assert mass[drives].sum() > 0.9 * mass.sum(), k
    after = fingerprint(network)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_the_default_map_shares_out_the_facets_score_against_the_others_exactly(facets, planted):
    model = small_cnn()
    x = planted[0][[0, 25, 45]]
    maps = facet_maps(model, facets, x, [0, 1, 2], input_spec=SPEC)
    head = facets.head()
    codes = torch.from_numpy(facets.codes[[0, 25, 45]])
    scores = codes @ head.weight.T
    against = [scores[k, k] - (scores[k].sum() - scores[k, k]) / 2 for k in range(3)]
    coarse = facet_maps(model, facets, x, [0, 1, 2], method="LayerGradientXActivation", input_spec=SPEC)
    assert torch.equal(maps, coarse)
    assert torch.allclose(maps.mean((1, 2)) * 64, torch.stack(against), rtol=1e-4)  # 64 positions, spread evenly


def test_a_method_that_there_is_not_or_that_has_no_positions_is_refused(facets, planted):
    for name in ("Grad", "NeuronGradient", "visualization"):
        with pytest.raises(FacetError, match="IntegratedGradients"):
            facet_maps(small_cnn(), facets, planted[0][:1], [0], method=name, input_spec=SPEC)


def image_and_map():
    return torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0)), torch.randn(2, 1, 5, 6)


def test_attributions_are_drawn_on_the_callers_axes_and_pyplot_is_left_alone():
    figure = Figure()
    axes = figure.subplots(1, 2)
    images, maps = image_and_map()
    backend = matplotlib.get_backend()
    drawn = plot_attributions(images, maps, axes, sign="all", titles=["a", "b <b>"])
    assert list(drawn) == list(axes)
    assert [axis.get_title() for axis in drawn] == ["a", "b <b>"]
    assert [len(axis.images) for axis in drawn] == [2, 2]
    assert matplotlib.get_backend() == backend
    assert matplotlib._pylab_helpers.Gcf.figs == {}


def test_without_axes_there_is_a_figure_of_its_own():
    images, maps = image_and_map()
    drawn = plot_attributions(images, maps[:, 0])
    assert drawn.shape == (2,)
    assert isinstance(drawn[0].figure, Figure)


@pytest.mark.parametrize("sign", ["positive", "negative", "absolute_value", "all"])
def test_nothing_to_show_and_tiny_values_are_drawn_without_a_warning(sign):
    images, _ = image_and_map()
    for maps in (torch.zeros(2, 20, 30), torch.full((2, 20, 30), 1e-12), torch.full((2, 20, 30), -1e-12)):
        plot_attributions(images[:, :1], maps, sign=sign)


def test_an_overlay_has_the_images_size_and_is_the_same_each_time():
    images, maps = image_and_map()
    maps = torch.nn.functional.interpolate(maps, (20, 30))
    png = overlay_png(images[0], maps[0, 0])
    assert png == overlay_png(images[0], maps[0, 0])
    assert Image.open(io.BytesIO(png)).size == (30, 20)
    grey = np.asarray(Image.open(io.BytesIO(overlay_png(images[0], torch.zeros(20, 30)))).convert("RGB")).astype(int)
    assert np.abs(grey[..., 0] - grey[..., 1]).max() <= 1


@pytest.mark.parametrize("wrong", [{"titles": ["one"]}, {"axes": Figure().subplots(1, 3)}])
def test_as_many_of_each_as_images(wrong):
    images, maps = image_and_map()
    with pytest.raises(ValueError, match="2 images need"):
        plot_attributions(images, maps, **wrong)
