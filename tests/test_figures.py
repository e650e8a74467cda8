import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from conftest import SPEC, fingerprint, same, small_cnn
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from captum_mfv import FacetFinder, Unit, find_facets
from captum_mfv.attr import facet_maps
from captum_mfv.datasets import PLANTED_SPEC, planted_images, planted_network
from captum_mfv.display.palette import facet_color, facet_marker
from captum_mfv.errors import FacetError, RunError
from captum_mfv.figures import plot_attributions, plot_embedding, plot_facets, plot_history
from captum_mfv.jobs.steps import overlay_png
from captum_mfv.optvis.render import Rendering
from captum_mfv.runs.writer import RunWriter


@pytest.fixture(scope="module")
def scene():
    network, images = planted_network()[0], planted_images(distractor=8)[0]
    finder = FacetFinder(4, embedding=None, random_state=0)
    return network, images, find_facets(network, Unit("unit", 0), images, finder=finder, input_spec=PLANTED_SPEC)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")  # Captum's DeepLift
@pytest.mark.parametrize("method", [None, "IntegratedGradients", "InputXGradient", "LayerGradCam", "DeepLift"])
def test_the_map_of_a_facet_is_on_the_facets_object(method, scene):
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


def test_the_default_map_sums_to_the_facets_score_against_the_others(facets, planted):
    model = small_cnn()
    x = planted[0][[0, 25, 45]]
    maps = facet_maps(model, facets, x, [0, 1, 2], input_spec=SPEC)
    head = facets.head()
    codes = torch.from_numpy(facets.codes[[0, 25, 45]])
    scores = codes @ head.linear.weight.T
    against = [scores[k, k] - (scores[k].sum() - scores[k, k]) / 2 for k in range(3)]
    coarse = facet_maps(model, facets, x, [0, 1, 2], method="LayerGradientXActivation", input_spec=SPEC)
    assert torch.equal(maps, coarse)
    assert torch.allclose(maps.mean((1, 2)) * 64, torch.stack(against), rtol=1e-4)  # spread evenly over 64 positions


def test_an_unknown_method_or_one_without_positions_raises_an_error(facets, planted):
    for name in ("Grad", "NeuronGradient", "visualization"):
        with pytest.raises(FacetError, match="IntegratedGradients"):
            facet_maps(small_cnn(), facets, planted[0][:1], [0], method=name, input_spec=SPEC)


def image_and_map():
    return torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0)), torch.randn(2, 1, 5, 6)


def test_attributions_are_drawn_on_the_callers_axes_without_pyplot():
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


def test_without_axes_a_new_figure_is_created():
    images, maps = image_and_map()
    drawn = plot_attributions(images, maps[:, 0])
    assert drawn.shape == (2,)
    assert isinstance(drawn[0].figure, Figure)


@pytest.mark.parametrize("sign", ["positive", "negative", "absolute_value", "all"])
def test_zeros_and_tiny_values_are_drawn_without_a_warning(sign):
    images, _ = image_and_map()
    for maps in (torch.zeros(2, 20, 30), torch.full((2, 20, 30), 1e-12), torch.full((2, 20, 30), -1e-12)):
        plot_attributions(images[:, :1], maps, sign=sign)


def test_an_overlay_has_the_images_size_and_is_the_same_each_time():
    images, maps = image_and_map()
    maps = torch.nn.functional.interpolate(maps, (20, 30))
    box = torch.full((4,), torch.nan)
    png = overlay_png(images[0], maps[0, 0], box, Figure())
    overlay_png(torch.rand(1, 50, 40), torch.rand(50, 40), torch.tensor([4.0, 4, 9, 9]), used := Figure())
    assert png == overlay_png(images[0], maps[0, 0], box, used), "nothing of another overlay is left"
    assert Image.open(io.BytesIO(png)).size == (30, 20)
    gray = decoded(overlay_png(images[0], torch.zeros(20, 30), box, used))
    assert np.abs(gray[..., 0] - gray[..., 1]).max() <= 1


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_box_is_outlined_at_its_pixels():
    image = torch.full((3, 60, 60), 0.5)
    none, box = torch.full((4,), torch.nan), torch.tensor([20.0, 10.0, 40.0, 30.0])
    plain, boxed = (decoded(overlay_png(image, torch.zeros(60, 60), one, Figure())) for one in (none, box))
    y, x = (np.abs(plain - boxed).max(2) > 20).nonzero()
    assert (abs(x.min() - 20), abs(x.max() - 40), abs(y.min() - 10), abs(y.max() - 30)) <= (2, 2, 2, 2)
    assert (boxed[14:26, 24:36] == plain[14:26, 24:36]).all()
    assert boxed[10, 25:35].min() > 200


@pytest.mark.parametrize(
    "wrong", [{"titles": ["one"]}, {"axes": Figure().subplots(1, 3)}, {"boxes": torch.zeros(1, 4)}]
)
def test_images_attributions_and_titles_must_have_the_same_number(wrong):
    images, maps = image_and_map()
    with pytest.raises(ValueError, match="2 images need"):
        plot_attributions(images, maps, **wrong)


def rendered(facets, n_steps=20, seed=0):
    """Return renderings of two phases, of which the second has an additional term, without running the loop."""
    draw = torch.Generator().manual_seed(seed)
    late = np.where(np.arange(n_steps) < n_steps // 2, np.nan, 1).astype(np.float32)
    return [
        Rendering(
            facet=facet,
            image=torch.rand(3, 32, 32, generator=draw),
            start=torch.zeros(3, 32, 32),
            history={
                "code": np.ones(n_steps, np.float32),
                "total_variation": late,
                "activation": np.arange(n_steps, dtype=np.float32),
            },
            seed=seed,
            recipe="facet",
            transparency=torch.full((32, 32), 0.5),
        )
        for facet in facets
    ]


def test_facets_are_drawn_with_starts_and_nearest_images_below(facets, planted):
    axes = plot_facets(rendered(facets), starts=True, images=planted[0], n_nearest=2)
    assert axes.shape == (3, 4)
    for facet, column in zip(facets, axes, strict=True):
        shown = [axis.images[0].get_array() for axis in column]
        nearest = planted[0][facet.members[0]].permute(1, 2, 0).numpy()
        assert np.allclose(shown[2], nearest)
        assert not shown[1].any()
        assert column[0].get_title() == f"facet {facet.index}"
    assert [axis.get_ylabel() for axis in axes[0]] == ["", "start", "nearest", ""]


def test_facets_are_drawn_in_a_grid_with_one_color_each(facets):
    axes = plot_facets([*rendered(facets), *rendered(facets, seed=1)], columns=4)
    assert axes.shape == (6,)
    assert len(axes[0].figure.axes) == 6
    assert [axis.get_title() for axis in axes[2:4]] == ["facet 2, seed 0", "facet 0, seed 1"]
    assert to_hex(axes[1].spines["left"].get_edgecolor()) == facet_color(1)
    faded = plot_facets(rendered(facets)[0], transparency=True)[0].images[0].get_array()
    assert (faded.shape, float(faded[..., 3].max())) == ((32, 32, 4), 0.5)


def test_a_facet_with_fewer_members_than_requested_has_empty_cells(facets, planted):
    few = replace(facets[0], members=facets[0].members[:1])
    (column,) = plot_facets(replace(rendered(facets)[0], facet=few), images=planted[0], n_nearest=3)
    assert [len(axis.images) for axis in column] == [1, 1, 0, 0]


@pytest.mark.parametrize("n_dimensions", [1, 2, 5])
def test_the_map_has_a_point_for_each_readable_image(facets, n_dimensions):
    labels, embedding = facets.labels.copy(), np.random.default_rng(0).normal(size=(60, n_dimensions))
    labels[:4], embedding[0] = -1, np.nan
    axis = plot_embedding(replace(facets, labels=labels, embedding=embedding.astype(np.float32)), legend=True)
    points = [collection.get_offsets() for collection in axis.collections]
    assert [len(some) for some in points] == [3, *np.bincount(labels[labels >= 0])]
    assert [text.get_text() for text in axis.texts] == ["0", "1", "2"]
    assert axis.get_legend().get_texts()[0].get_text() == "no facet, 3 images"


def test_seventy_facets_differ_in_color_or_marker():
    signs = [(facet_color(index), facet_marker(index)) for index in range(-1, 70)]
    assert len(set(signs)) == 71
    assert len({color for color, _ in signs}) == 11


def test_a_history_has_a_panel_for_each_term_and_a_line_for_each_facet(facets):
    axes = plot_history(rendered(facets), window=1)
    assert [axis.get_title() for axis in axes] == ["activation", "code", "total variation"]
    assert [len(axis.lines) for axis in axes] == [3, 3, 3]
    assert np.array_equal(axes[0].lines[1].get_ydata(), np.arange(20))
    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert names == ["facet 0", "facet 1", "facet 2"]


def test_the_running_mean_leaves_out_missing_values(facets):
    (axis,) = plot_history(rendered(facets)[0], terms=["total_variation"], window=7)
    values = axis.lines[0].get_ydata()
    assert np.isnan(values[:10]).all()
    assert np.allclose(values[10:], 1)
    (axis,) = plot_history(rendered(facets)[0], terms=["activation"], window=7)
    assert np.allclose(axis.lines[0].get_ydata()[3:-3], np.arange(3, 17))


def drawn_on(facets, planted, axes):
    flat = axes.reshape(-1)
    return [
        list(plot_facets(rendered(facets), flat[:3])),
        list(plot_facets(rendered(facets), axes[:2, :3], images=planted[0], n_nearest=1).reshape(-1)),
        [plot_embedding(facets, flat[0], legend=True)],
        list(plot_history(rendered(facets), flat[:2], terms=["activation", "code"])),
    ]


def test_plots_return_the_callers_axes_and_do_not_use_pyplot(facets, planted):
    axes = Figure().subplots(2, 3)
    flat = list(axes.reshape(-1))
    backend, settings = matplotlib.get_backend(), dict(matplotlib.rcParams)
    assert drawn_on(facets, planted, axes) == [flat[:3], flat, flat[:1], flat[:2]]
    axes[0, 0].figure.savefig(io.BytesIO())
    assert (matplotlib.get_backend(), dict(matplotlib.rcParams)) == (backend, settings)
    assert matplotlib._pylab_helpers.Gcf.figs == {}


WRONG = {
    "no renderings": (lambda f: plot_facets([]), FacetError, "no renderings"),
    "facets in their place": (lambda f: plot_facets(f), TypeError, "what render_facets returns, not Facet"),
    "too few axes": (
        lambda f: plot_facets(rendered(f), Figure().subplots(1, 2)),
        FacetError,
        "3 pictures need as many",
    ),
    "too few titles": (lambda f: plot_facets(rendered(f), titles=["one"]), FacetError, "3 renderings need as many"),
    "no facet set": (lambda f: plot_embedding(f[0]), TypeError, "must be a FacetSet, not Facet"),
    "too many titles": (lambda f: plot_embedding(f, titles="abcd"), FacetError, "3 facets need as many titles, not 4"),
    "an unknown term": (lambda f: plot_history(rendered(f), terms=["loss"]), FacetError, "'loss'.*activation, code"),
    "an axis for two terms": (
        lambda f: plot_history(rendered(f), Figure().subplots(), terms=["code", "activation"]),
        FacetError,
        "2 terms need as many axes, not 1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_of_plots_are_named(case, facets):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call(facets)


def test_renderings_are_read_from_a_runs_folder(facets, tmp_path):
    settings = dict.fromkeys(("model", "unit", "images", "recipe", "command"), "") | {"seed": 0, "input_spec": {}}
    folder = RunWriter(tmp_path, {"stages": [], "timings": {}, "seed": 0, "recipe": "facet", "settings": settings})
    with pytest.raises(RunError, match="can't be read"):
        folder.read_renderings(facets)
    folder.write_facets(facets, [{"path": f"{i}.png"} for i in range(60)])
    with pytest.raises(RunError, match="is the run finished"):
        folder.read_renderings(facets)
    made = rendered(facets)
    folder.write_renderings(facets, made)
    for one, again in zip(made, folder.read_renderings(facets), strict=True):
        assert again.facet.index == one.facet.index
        assert torch.allclose(again.image, one.image, atol=0.5 / 255)
        assert torch.allclose(again.transparency, one.transparency, atol=0.5 / 255)
        for term, values in one.history.items():
            assert np.array_equal(again.history[term], values, equal_nan=True)
