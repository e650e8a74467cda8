"""Every component in Lucent's unmodified render loop, and combined with Lucent's objectives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SPEC, small_cnn
from lucent.optvis import objectives as lucent_objectives
from lucent.optvis.render import render_vis

from captum_mfv.errors import FacetError, ImageError, RecipeError
from captum_mfv.optvis import initializer, objectives, param, transform
from captum_mfv.optvis.lucent import render_vis_arguments
from captum_mfv.optvis.optimizers import TVAscent
from captum_mfv.optvis.recipes import get_recipe
from captum_mfv.optvis.reference import distribution_term
from captum_mfv.optvis.render import render_facets
from captum_mfv.optvis.terms import make_term


@pytest.fixture(scope="module")
def reference(facets, planted):
    return objectives.measure_reference(small_cnn(), facets, planted[0], input_spec=SPEC)


def render(objective, param_f, steps=(1, 12), **options):
    options.setdefault("transforms", [transform.affine(seed=0), SPEC])
    options.setdefault("fixed_image_size", 32)
    return render_vis(
        small_cnn(),
        objective,
        param_f,
        thresholds=steps,
        preprocess=False,
        show_image=False,
        progress=False,
        **options,
    )


def score(objective, images):
    """Return the objective of images, evaluated by Lucent with another model instance and no transform."""
    model = small_cnn()
    pictures = torch.as_tensor(images).permute(0, 3, 1, 2).requires_grad_()
    outputs = {"input": pictures}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, output, name=name: outputs.update({name: output}))
    model(SPEC(pictures))
    return objective(lambda name: outputs[name]).item()


@pytest.fixture(scope="module")
def probe(facets, planted):
    return objectives.measure_probe(small_cnn(), facets, planted[0], input_spec=SPEC)


@pytest.fixture(scope="module")
def measured(facets, planted):
    """Return the reference and the probe of one facet."""
    measures = (objectives.measure_reference, objectives.measure_probe)
    return [measure(small_cnn(), facets[1], planted[0], input_spec=SPEC) for measure in measures]


PIECES = {
    "unit": lambda f, r, p: objectives.unit(f),
    "probability": lambda f, r, p: objectives.probability(f),
    "code": lambda f, r, p: objectives.code(f),
    "contrastive code": lambda f, r, p: objectives.code(f, contrast=1.0),
    "distribution": lambda f, r, p: objectives.distribution(f, r),
    "probe": lambda f, r, p: objectives.probe(f, p),
    "faceted": lambda f, r, p: objectives.unit(f) + objectives.probe(f, p),
    "facet": lambda f, r, p: objectives.facet(f),
    "facet with reference": lambda f, r, p: objectives.facet(f, r),
    "total variation": lambda f, r, p: objectives.total_variation(),
    "boundary": lambda f, r, p: objectives.boundary(0.2),
    "gray": lambda f, r, p: objectives.gray(),
    "sum": lambda f, r, p: objectives.code(f) + objectives.unit(f) * 0.1 + 0.1 * objectives.total_variation(),
    "with Lucent's": lambda f, r, p: (
        objectives.facet(f) + 0.1 * lucent_objectives.channel("conv2", 3) - lucent_objectives.diversity("relu1")
    ),
}


@pytest.mark.parametrize("piece", PIECES)
def test_each_objective_decreases_in_lucents_loop(piece, facets, reference, probe):
    objective = PIECES[piece](list(facets), reference, probe)
    noise = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    first, last = render(objective, param.fft_image_from(noise))
    assert first.shape == (3, 32, 32, 3)
    assert score(objective, last) < score(objective, first)


@pytest.mark.parametrize("piece", PIECES)
def test_each_objective_supports_one_facet_lbfgs_and_images_that_are_not_square(piece, facets, measured):
    objective = PIECES[piece](facets[1], *measured)
    noise = torch.rand(2 if piece == "with Lucent's" else 1, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    first, last = render(
        objective,
        param.fft_image_from(noise),
        steps=(1, 3),
        transforms=[lambda images: (images - 0.45) / 0.22],
        optimizer=lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=2),
        fixed_image_size=(40, 24),
    )
    assert first.shape[1:] == (40, 24, 3)
    assert np.isfinite(last).all()
    assert not np.array_equal(first, last)


PARAMS = {
    "mean": initializer.mean_image,
    "medoid": initializer.medoid_image,
    "noise": initializer.noise_image,
    "maco": initializer.maco_image,
    "pixels": lambda facet, images: initializer.mean_image(facet, images, param=param.pixel_image_from),
    "own colors": lambda facet, images: param.fft_image_from(
        initializer.mean_images(facet, images), colors=param.color_matrix(images)
    ),
    "transparent": lambda facet, images: param.Transparency(initializer.mean_image(facet, images)),
}


@pytest.mark.parametrize("name", PARAMS)
def test_each_parameterization_is_optimized_in_lucents_loop(name, facets, planted):
    objective = objectives.unit(list(facets))
    first, last = render(objective, PARAMS[name](list(facets), planted[0]))
    assert first.shape == (3, 32, 32, 3)
    assert score(objective, last) < score(objective, first)


TRANSFORMS = {
    "affine": transform.affine(seed=0),
    "jitter": transform.jitter(seed=0),
    "noise": transform.noise(seed=0),
    "crop": transform.random_crop(0.6, seed=0),
    "mask": transform.gradient_mask(0.2),
    "all": transform.compose([transform.jitter(seed=0), transform.noise(seed=1), transform.affine(seed=2)]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_works_in_lucents_loop(name, facets, planted):
    objective = objectives.facet(list(facets))
    param_f = initializer.mean_image(list(facets), planted[0])
    first, last = render(objective, param_f, transforms=[TRANSFORMS[name], SPEC])
    assert score(objective, last) < score(objective, first)


def test_transparency_is_where_lucents_loop_has_gradients(facets, planted):
    watched = param.Transparency(initializer.mean_image(facets[0], planted[0]))
    with pytest.raises(ImageError, match="no transparency before"):
        _ = watched.alpha
    render(objectives.unit(facets[0]), watched, transforms=[transform.gradient_mask(0.25), SPEC], steps=(4,))
    assert watched.alpha.shape == (1, 32, 32)
    assert watched.alpha[0, 8:24, 8:24].mean() > 0.1
    assert watched.alpha[0, :8].max() == 0


def test_one_facet_makes_one_image(facets, planted):
    (image,) = render(objectives.facet(facets[1]), initializer.mean_image(facets[1], planted[0]), steps=(2,))
    assert image.shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
        lambda params: torch.optim.SGD(params, lr=0.1),
        lambda params: TVAscent(params, lr=1.0, tv_weight=1.0),
    ],
)
def test_any_optimizer_lowers_the_loss_in_lucents_loop(optimizer, facets, planted):
    objective = objectives.facet(facets[0])
    param_f = initializer.mean_image(facets[0], planted[0], param=param.pixel_image_from)
    first, last = render(objective, param_f, optimizer=optimizer, transforms=[SPEC])
    assert score(objective, last) < score(objective, first)


def test_the_papers_pieces_work_together_in_lucents_loop(facets, planted):
    crop = transform.center_crop(32, seed=0)
    big = torch.nn.functional.interpolate(initializer.mean_images(facets[:1], planted[0]), size=40)
    (image,) = render(
        objectives.unit(facets[0]),
        param.pixel_image_from(big),
        steps=(3,),
        optimizer=lambda params: TVAscent(params, lr=1.0, tv_weight=0.4, crop=crop),
        transforms=[crop, transform.gradient_mask(0.125), SPEC],
    )
    assert image.shape == (1, 40, 40, 3)


def test_dotted_layer_names_are_found_under_lucents_names(facets):
    seen = []

    def outputs_of(name):
        seen.append(name)
        return torch.rand(3, 24, 8, 8) if name != "fc" else torch.rand(3, 5)

    objectives.facet(list(facets))(outputs_of)
    assert sorted(set(seen)) == ["fc", "relu2"]


def test_the_reference_of_a_facet_is_matched_best_by_its_own_images(facets, reference, planted):
    from captum_mfv.activations import capture

    term = distribution_term(reference)
    losses = []
    for facet in facets:
        with torch.no_grad(), capture(small_cnn(), term.layers) as run:
            images = planted[0][facet.members[:1]].expand(3, -1, -1, -1)
            losses.append(term(run(SPEC(images))).numpy())
    assert np.argmin(losses, axis=1).tolist() == [0, 1, 2]


def test_terms_are_in_units_that_do_not_depend_on_the_models_scale(facets, planted):
    doubled = small_cnn()
    for module in (doubled.conv2, doubled.fc):
        with torch.no_grad():
            module.weight *= 2
            module.bias *= 2
    reference = objectives.measure_reference(doubled, facets, planted[0], layers=["conv2"], input_spec=SPEC)
    plain = objectives.measure_reference(small_cnn(), facets, planted[0], layers=["conv2"], input_spec=SPEC)
    outputs = {"conv2": torch.randn(3, 24, 8, 8)}
    scaled = {"conv2": 2 * outputs["conv2"]}
    one, two = (distribution_term(r)(o) for r, o in ((plain, outputs), (reference, scaled)))
    assert torch.allclose(one, two, rtol=1e-4)


def test_wrong_arguments_of_objectives_raise_an_error(facets):
    with pytest.raises(FacetError, match="give what was measured"):
        objectives.facet(facets[0], weights={"distribution": 1.0})
    with pytest.raises(RecipeError, match="no objective 'style'"):
        make_term("style", facets)
    with pytest.raises(TypeError, match="facet must be a Facet"):
        objectives.unit([3])
    with pytest.raises(FacetError, match="at least one"):
        objectives.unit([])
    with pytest.raises(RecipeError, match=r"width must be above 0 and below \.5, not 0\.7"):
        objectives.boundary(0.7)


def test_the_initializer_starts_at_the_mean_of_the_nearest_members(facets, planted):
    _, image_f = initializer.mean_image(facets[2], planted[0], n_images=4)()
    mean = planted[0][facets[2].members[:4]].mean(0)
    assert (image_f()[0] - mean).abs().max() < 1e-3


@pytest.mark.parametrize("recipe", ["facet", "facet-pixels", "logit", "maco", "faceted", "paper"])
def test_lucents_loop_with_a_recipes_arguments_renders_what_render_facets_does(recipe, facets, planted):
    if recipe == "paper":  # one phase of the paper's recipe
        recipe = replace(get_recipe("paper-mean"), phases=get_recipe("paper-mean").phases[:1])
    if recipe == "facet-pixels":
        recipe = replace(get_recipe("facet"), param="pixel")
    chosen, options = facets[1:], {"recipe": recipe, "steps": 6, "input_spec": SPEC, "seed": 3}
    model = small_cnn()
    model.relu1.inplace = model.relu2.inplace = False  # Lucent would read what they leave of the layer before
    wanted = torch.stack([one.image for one in render_facets(model, chosen, planted[0], **options)])
    arguments = render_vis_arguments(model, chosen, planted[0], **options)
    for _ in range(2):  # each call starts anew
        (pictures,) = render_vis(model, **arguments)
        assert np.abs(pictures - wanted.permute(0, 2, 3, 1).numpy()).mean() < 1e-3
    (first,) = render_vis(model, **{**arguments, "thresholds": [1]})
    assert np.abs(pictures - first).mean() > 1.5e-3


def test_an_argument_of_a_recipe_for_lucents_loop_can_be_replaced(facets, planted):
    arguments = render_vis_arguments(small_cnn(), facets, planted[0], input_spec=SPEC, steps=4)
    medoids = initializer.medoid_image(facets, planted[0])
    (pictures,) = render_vis(small_cnn(), **{**arguments, "param_f": medoids})
    start = medoids()[1]().detach().permute(0, 2, 3, 1).numpy()
    assert 1e-3 < np.abs(pictures - start).mean() < 0.1


def test_a_recipe_of_several_phases_is_refused_for_lucents_loop(facets, planted):
    with pytest.raises(RecipeError, match="paper-mean has several phases or sizes; only render_facets renders it"):
        render_vis_arguments(small_cnn(), facets, planted[0], recipe="paper-mean", input_spec=SPEC)
