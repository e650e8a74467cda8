import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SPEC, Failing, small_cnn
from torch import nn
from torch.overrides import TorchFunctionMode

from captum_mfv import InputSpec, Unit, find_facets
from captum_mfv.errors import ImageError, MFVWarning, RecipeError, RenderError
from captum_mfv.metrics import score_images
from captum_mfv.optvis.recipes import RECIPES, Phase, Ramp, Recipe, get_recipe
from captum_mfv.optvis.render import render_facets


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_renders_every_facet_and_improves_its_objective(recipe, facets, planted):
    from_noise = replace(get_recipe(recipe), start="noise")  # the planted mean images are almost optimal
    made = render_facets(small_cnn(), facets, planted[0], recipe=from_noise, steps=40, input_spec=SPEC)
    assert [r.facet.index for r in made] == [0, 1, 2]
    for rendering in made:
        assert rendering.image.shape == rendering.start.shape == (3, 32, 32)
        assert rendering.image.dtype == torch.float32
        assert 0 <= rendering.image.min() <= rendering.image.max() <= 1
        history = rendering.history
        assert 0 <= rendering.transparency.min() <= rendering.transparency.max() <= 1
        phases = get_recipe(recipe).phases
        total = sum(weight * history[name] for name, weight in phases[0].weights.items())
        same_terms = len({frozenset(phase.weights) for phase in phases}) == 1
        driven = -total if same_terms else history["activation"]
        assert driven.shape == (40,)
        assert driven[-5:].mean() > driven[:5].mean()


def test_images_show_their_own_facet(facets, planted):
    made = render_facets(small_cnn(), facets, planted[0], steps=60, input_spec=SPEC)
    images, starts = [r.image for r in made], [r.start for r in made]
    scores, retained = score_images(small_cnn(), facets, images, starts, planted[0], input_spec=SPEC)
    assert retained == 1
    assert [score.nearest_facet for score in scores] == [0, 1, 2]
    assert all(score.start_distance > 0.01 for score in scores)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(recipe, facets, planted):
    def draw(seed):
        made = render_facets(small_cnn(), facets, planted[0], recipe=recipe, steps=5, input_spec=SPEC, seed=seed)
        return torch.stack([r.image for r in made])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_an_image_does_not_depend_on_its_batch(facets, planted):
    recipe = Recipe("two terms", "", "mean", "fft", (Phase(10, {"unit": 1.0, "code": 1.0}),))
    together = render_facets(small_cnn(), facets, planted[0], recipe=recipe, input_spec=SPEC)
    alone = render_facets(small_cnn(), facets[2], planted[0], recipe=recipe, input_spec=SPEC)
    assert torch.allclose(together[2].image, alone[0].image, atol=1e-4)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("recipe", RECIPES)
def test_rendering_does_not_change_the_model_or_the_random_state(model, recipe, facets, planted):
    render_facets(model, facets, planted[0], recipe=recipe, steps=5, input_spec=SPEC)


def test_errors_are_raised_and_leave_the_model_unchanged(model, facets, planted, request):
    model.conv2.register_forward_hook(Failing(RuntimeError("out of memory"), after=6))
    request.getfixturevalue("unchanged")
    with pytest.raises(RuntimeError, match="out of memory"):
        render_facets(model, facets, planted[0], steps=20, input_spec=SPEC)


@pytest.mark.parametrize(("recipe", "left"), [("facet", 9), ("paper-mean", 9), ("paper-mean", 0)])
def test_ctrl_c_returns_the_images_so_far_with_a_warning(model, recipe, left, facets, planted, request):
    request.getfixturevalue("unchanged")
    seen = []

    def callback(step, images):
        seen.append(images)
        if step > left:
            raise KeyboardInterrupt

    with pytest.warns(MFVWarning, match=f"interrupted after {left + 1} of 20 steps"):
        made = render_facets(
            model, facets, planted[0], recipe=recipe, steps=20, input_spec=SPEC, callback=callback, max_batch=2
        )
    assert len(made) == 3
    for i, rendering in enumerate(made):
        assert not rendering.complete
        assert rendering.image.shape == (3, 32, 32)
        assert len(rendering.history["activation"]) == left + 1
        assert torch.equal(rendering.start, seen[0][i]) or recipe == "facet"


def test_a_facet_is_rendered_the_same_in_any_batch(facets, planted):
    def images(which, **options):
        made = render_facets(small_cnn(), which, planted[0], steps=8, input_spec=SPEC, **options)
        return torch.stack([rendering.image for rendering in made])

    together = images(facets)
    for apart in (images(facets, max_batch=1), images(facets, max_batch=2)):
        assert torch.allclose(apart, together, atol=1e-3)
    with pytest.raises(RecipeError, match="max_batch must be at least 1, not -1"):
        images(facets, max_batch=-1)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_a_step_beyond_memory_is_split_in_halves_with_one_warning(error, model, facets, planted):
    def full(module, args, output):
        if len(output) > 1:
            raise error

    wanted = render_facets(model, facets, planted[0], steps=6, input_spec=SPEC, recipe="logit")
    hook = model.conv2.register_forward_hook(full)
    with pytest.warns(MFVWarning) as warned:
        made = render_facets(model, facets, planted[0], steps=6, input_spec=SPEC, recipe="logit")
    hook.remove()
    assert [str(one.message) for one in warned] == ["memory doesn't hold a batch of 3 images; continuing with 2"]
    assert [rendering.facet.index for rendering in made] == [0, 1, 2]
    for one, other in zip(made, wanted, strict=True):
        assert torch.allclose(one.image, other.image, atol=1e-3)
        assert len(one.history["activation"]) == 6


def test_several_seeds_are_rendered_in_one_batch(facets, planted):
    noise = replace(get_recipe("facet"), start="noise")
    made = render_facets(small_cnn(), facets, planted[0], recipe=noise, steps=6, input_spec=SPEC, seed=[4, 5])
    assert [(r.seed, r.facet.index) for r in made] == [(s, k) for s in (4, 5) for k in range(3)]
    alone = render_facets(small_cnn(), facets, planted[0], recipe=noise, steps=6, input_spec=SPEC, seed=5)
    for one, other in zip(made[3:], alone, strict=True):
        assert torch.allclose(one.image, other.image, atol=1e-3)
        assert not torch.allclose(made[one.facet.index].image, one.image, atol=0.05)


def test_a_callback_is_called_at_every_step(facets, planted):
    seen = []
    render_facets(
        small_cnn(),
        facets,
        planted[0],
        steps=5,
        input_spec=SPEC,
        callback=lambda step, images: seen.append((step, tuple(images.shape), images.requires_grad)),
    )
    assert seen == [(step, (3, 3, 32, 32), False) for step in range(1, 6)]


def test_images_that_gain_no_activation_are_named_in_a_warning(facets, planted):
    still = Recipe("still", "", "mean", "fft", (Phase(20, {"code": 1.0}, lr=Ramp(0.0, 0.0)),))
    with pytest.warns(MFVWarning, match="facet 0, 1, 2 of fc:1: 20 steps gained nothing"):
        render_facets(small_cnn(), facets, planted[0], recipe=still, input_spec=SPEC)


def test_rendering_works_inside_no_grad(facets, planted):
    with torch.no_grad():
        made = render_facets(small_cnn(), facets, planted[0], steps=3, input_spec=SPEC)
    assert not made[0].image.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_precision_can_be_rendered(dtype, planted):
    model = small_cnn().to(dtype)
    found = find_facets(model, Unit("fc", 1), planted[0].double(), n_facets=3, input_spec=SPEC)
    made = render_facets(model, found, planted[0], steps=3, input_spec=SPEC)
    assert made[0].image.dtype == torch.float32


class Dead(nn.Module):
    def forward(self, x):
        return x * 0


def test_a_dead_unit_raises_an_error_instead_of_a_gray_image(planted, facets):
    model = small_cnn()
    model.fc = nn.Sequential(Dead(), nn.Linear(24, 5))
    recipe = Recipe("unit", "", "mean", "fft", (Phase(3, {"unit": 1.0}),))
    found = find_facets(model, Unit("fc", 1), planted[0], n_facets=3, input_spec=SPEC)
    with pytest.raises(RenderError, match="facet 0 of fc:1: no gradient reaches the image at step 0"):
        render_facets(model, found, planted[0], recipe=recipe, input_spec=SPEC)


def test_a_loss_that_is_not_finite_raises_an_error(planted, facets):
    model = small_cnn()
    with torch.no_grad():
        model.fc.bias[1] = torch.inf
    with pytest.raises(RenderError, match="isn't finite"):
        render_facets(model, facets, planted[0], steps=3, input_spec=SPEC)


class Late(nn.Module):
    """The identity; after a number of passes, the last row is NaN or has no gradient."""

    def __init__(self, after, change):
        super().__init__()
        self.left, self.change = after, change

    def forward(self, x):
        self.left -= 1
        if self.left >= 0 or len(x) < 3:
            return x
        return torch.cat([x[:2], self.change(x[2:])])


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x * torch.nan, "isn't finite"), (lambda x: x.detach(), "no gradient reaches the image")],
)
@pytest.mark.parametrize("step", [3, 27])
def test_errors_name_the_step_and_the_facet_though_losses_are_read_later(change, message, step, planted):
    def model(after):
        return nn.Sequential(Late(after, change), small_cnn())

    found = find_facets(model(99), Unit("1.fc", 1), planted[0], n_facets=3, input_spec=SPEC)
    recipe = Recipe("unit", "", "mean", "fft", (Phase(25, {"unit": 1.0}), Phase(10, {"unit": 1.0})))
    failing = model(step + 1)  # the first pass measures the batch size
    with pytest.raises(RenderError, match=f"facet 2 of 1.fc:1: .*{message} at step {step}"):
        render_facets(failing, found, planted[0], recipe=recipe, input_spec=SPEC)


class Reads(TorchFunctionMode):
    """Counts operations of optvis on tensors that would wait for a device."""

    names = ("cpu", "item", "tolist", "__bool__", "__float__", "__int__")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, caller = getattr(function, "__name__", ""), Path(sys._getframe(1).f_code.co_filename)
        if name in self.names and caller.parent.name == "optvis":
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", ["facet", "faceted", "maco"])
def test_steps_do_not_synchronize_with_the_device(recipe, facets, planted):
    def reads(steps):
        with Reads() as counted:
            render_facets(small_cnn(), facets, planted[0], recipe=recipe, steps=steps, input_spec=SPEC)
        return len(counted.found)

    few = reads(2)
    assert few > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MFVWarning)
        assert reads(19) == few


@pytest.mark.parametrize("size", [20, 48])
@pytest.mark.parametrize("recipe", ["facet", "paper-mean", "maco"])
def test_images_can_have_any_size(recipe, size, facets, planted):
    made = render_facets(small_cnn(), facets, planted[0], recipe=recipe, steps=4, size=size, input_spec=SPEC)
    assert made[0].image.shape == made[0].start.shape == (3, size, size)
    assert made[0].transparency.shape == (size, size)
    same = SPEC.resize(made[1].start[None])[0]
    if recipe == "facet":
        assert (same - SPEC.resize(planted[0][facets[1].members[:15]].mean(0)[None])[0]).abs().mean() < 0.05


def test_phases_can_increase_the_resolution(facets, planted):
    sides = []
    coarse = Recipe(
        "coarse", "", "mean", "fft", tuple(Phase(2, {"unit": 1.0}, scale=scale) for scale in (0.25, 0.5, 1.0))
    )
    made = render_facets(
        small_cnn(),
        facets,
        planted[0],
        recipe=coarse,
        size=64,
        input_spec=SPEC,
        callback=lambda n, x: sides.append(x.shape[-1]),
    )
    assert sides == [16, 16, 32, 32, 64, 64]
    assert made[0].image.shape == (3, 64, 64)
    ends_small = replace(coarse, phases=coarse.phases[:1])
    made = render_facets(small_cnn(), facets, planted[0], recipe=ends_small, size=64, input_spec=SPEC)
    assert made[0].image.shape == (3, 64, 64)
    with pytest.raises(RecipeError, match="leaves no pixel"):
        render_facets(small_cnn(), facets, planted[0], recipe=ends_small, size=3, input_spec=SPEC)


def test_the_caller_can_pass_the_start_images(facets, planted):
    own = planted[0][torch.as_tensor([facet.members[1] for facet in facets])]
    still = Recipe("still", "", "noise", "fft", (Phase(1, {"unit": 1.0}, lr=Ramp(0.0, 0.0)),))
    for start in (own, own[0]):
        made = render_facets(small_cnn(), facets, planted[0], recipe=still, start=start, input_spec=SPEC)
        for k, rendering in enumerate(made):
            wanted = own[k] if start.ndim == 4 else own[0]
            assert torch.equal(rendering.start, wanted)
            assert (rendering.image - wanted).abs().max() < 1e-3
    for wrong in (own[:2], own[0, 0], own * 255):
        with pytest.raises(ImageError, match="start must"):
            render_facets(small_cnn(), facets, planted[0], start=wrong, input_spec=SPEC)
    with pytest.raises(TypeError, match="start must be a tensor, not str"):
        render_facets(small_cnn(), facets, planted[0], start="mean", input_spec=SPEC)
    with pytest.raises(ImageError, match="size must be at least 1, not 0"):
        render_facets(small_cnn(), facets, planted[0], size=0, input_spec=SPEC)


@pytest.mark.parametrize("start", ["mean", "medoid", "noise", "spectrum"])
def test_every_start_image_is_of_its_facet(start, facets, planted):
    recipe = replace(get_recipe("facet"), start=start)
    made = render_facets(small_cnn(), facets, planted[0], recipe=recipe, steps=1, input_spec=SPEC)
    starts = torch.stack([rendering.start for rendering in made])
    if start == "medoid":
        assert torch.equal(starts, planted[0][torch.as_tensor([facet.members[0] for facet in facets])])
    if start == "spectrum":  # has the facet's color, and does not depend on other facets
        assert starts.mean(dim=(2, 3)).argmax(1).tolist() == planted[1][[facet.members[0] for facet in facets]].tolist()
        alone = render_facets(small_cnn(), facets[1], planted[0], recipe=recipe, steps=1, input_spec=SPEC)
        assert torch.allclose(alone[0].start, starts[1], atol=1e-5)


def test_transparency_is_zero_outside_the_pixels_that_the_unit_uses(planted):
    class Middle(nn.Module):
        def forward(self, x):
            return x[..., 12:20, 12:20]

    model = nn.Sequential(Middle(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).requires_grad_(False)
    found = find_facets(model, Unit("3", 0), planted[0], n_facets=3, input_spec=SPEC)
    plain = Recipe("plain", "", "mean", "pixel", (Phase(4, {"unit": 1.0}),))
    for rendering in render_facets(model, found, planted[0], recipe=plain, input_spec=SPEC):
        assert rendering.transparency[12:20, 12:20].min() > 0.5
        assert rendering.transparency.sum() == rendering.transparency[12:20, 12:20].sum()
        assert rendering.rgba.shape == (4, 32, 32)
        assert torch.equal(rendering.rgba[:3], rendering.image)


def test_colors_measured_on_the_users_images_do_not_depend_on_the_batch(facets, planted):
    recipe = replace(get_recipe("facet"), colors="images")
    together = render_facets(small_cnn(), facets, planted[0], recipe=recipe, steps=4, input_spec=SPEC)
    alone = render_facets(small_cnn(), facets, planted[0], recipe=recipe, steps=4, input_spec=SPEC, max_batch=1)
    assert torch.allclose(together[2].image, alone[2].image, atol=1e-3)
    imagenet = render_facets(small_cnn(), facets, planted[0], steps=4, input_spec=SPEC)
    assert not torch.allclose(imagenet[2].image, alone[2].image, atol=1e-3)


@pytest.mark.parametrize("recipe", ["facet", "faceted"])
def test_autocast_renders_nearly_the_same_images(recipe, facets, planted):
    def draw(dtype):
        made = render_facets(small_cnn(), facets, planted[0], recipe=recipe, steps=8, input_spec=SPEC, dtype=dtype)
        return torch.stack([rendering.image for rendering in made])

    full, half = draw(None), draw(torch.bfloat16)
    assert not torch.equal(full, half)
    assert (full - half).abs().mean() < 0.02


def test_gray_images_are_rendered_gray():
    from captum_mfv.datasets import DIGITS_SPEC, digits

    model = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
    images = digits()[0][:40]
    found = find_facets(model, Unit("2", 3), images, n_facets=2, input_spec=DIGITS_SPEC)
    made = render_facets(model, found, images, steps=3, input_spec=DIGITS_SPEC)
    assert made[0].image.shape == (1, 32, 32)
    assert not made[0].image.equal(made[1].image)


def test_images_are_rendered_at_the_models_size_for_datasets_of_any_size(model, planted):
    spec = InputSpec(48)
    facets = find_facets(model, Unit("fc", 1), planted[0], n_facets=3, input_spec=spec)
    rendered = render_facets(model, facets, planted[0], steps=2, input_spec=spec)
    assert {tuple(rendering.image.shape) for rendering in rendered} == {(3, 48, 48)}
    assert {tuple(rendering.start.shape) for rendering in rendered} == {(3, 48, 48)}
