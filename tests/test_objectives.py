"""Every piece in Lucent's own, unmodified render loop, and composed with Lucent's objectives."""

import numpy as np
import pytest
import torch
from conftest import SPEC, small_cnn
from lucent.optvis import objectives as lucent_objectives
from lucent.optvis.render import render_vis

from captum_mfv.errors import FacetError, RecipeError
from captum_mfv.optvis import initializer, objectives, param, transform
from captum_mfv.optvis.optimizers import TVAscent


@pytest.fixture(scope="module")
def reference(facets, planted):
    return objectives.measure_reference(small_cnn(), facets, planted[0], input_spec=SPEC)


def render(objective, param_f, steps=(1, 12), **options):
    options.setdefault("transforms", [transform.affine(seed=0), SPEC])
    return render_vis(
        small_cnn(),
        objective,
        param_f,
        thresholds=steps,
        preprocess=False,
        fixed_image_size=32,
        show_image=False,
        progress=False,
        **options,
    )


def score(objective, images):
    """The objective of images as Lucent evaluates it, with another model instance and no transform."""
    model = small_cnn()
    outputs = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, output, name=name: outputs.update({name: output.clone()}))
    with torch.no_grad():
        model(SPEC(torch.as_tensor(images).permute(0, 3, 1, 2)))
    return float(objective(lambda name: outputs[name]))


PIECES = {
    "unit": lambda facets, reference: objectives.unit(facets),
    "code": lambda facets, reference: objectives.code(facets),
    "distribution": objectives.distribution,
    "facet": lambda facets, reference: objectives.facet(facets),
    "facet with reference": objectives.facet,
    "sum": lambda facets, reference: objectives.code(facets) + objectives.unit(facets) * 0.1,
    "with Lucent's": lambda facets, reference: (
        objectives.facet(facets) + 0.1 * lucent_objectives.channel("conv2", 3) - lucent_objectives.diversity("relu1")
    ),
}


@pytest.mark.parametrize("piece", PIECES)
def test_each_objective_goes_down_in_lucents_loop(piece, facets, reference):
    objective = PIECES[piece](list(facets), reference)
    first, last = render(objective, param.fft_image_from(torch.full((3, 3, 32, 32), 0.5)))
    assert first.shape == (3, 32, 32, 3)
    assert score(objective, last) < score(objective, first)


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
def test_any_optimizer_drives_it_and_ours_runs_in_lucents_loop(optimizer, facets, planted):
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
        optimizer=lambda params: TVAscent(params, lr=1.0, tv_weight=0.4, margin=4, crop=crop),
        transforms=[crop, SPEC],
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

    term = objectives.DistributionTerm(reference)
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
    one, two = (objectives.DistributionTerm(r)(o) for r, o in ((plain, outputs), (reference, scaled)))
    assert torch.allclose(one, two, rtol=1e-4)


def test_what_cannot_be_an_objective_is_refused(facets):
    with pytest.raises(FacetError, match="give a reference"):
        objectives.facet(facets[0], weights={"distribution": 1.0})
    with pytest.raises(RecipeError, match="no objective 'style'"):
        objectives.make_term("style", facets)
    with pytest.raises(TypeError, match="facet must be a Facet"):
        objectives.unit([3])
    with pytest.raises(FacetError, match="at least one"):
        objectives.unit([])


def test_the_initializer_starts_at_the_mean_of_the_nearest_members(facets, planted):
    _, image_f = initializer.mean_image(facets[2], planted[0], n_images=4)()
    mean = planted[0][facets[2].members[:4]].mean(0)
    assert (image_f()[0] - mean).abs().max() < 1e-3
