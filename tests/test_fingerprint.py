"""No public call changes the model, even if the call raises an error."""

import warnings

import pytest
import torch
from captum.attr import IntegratedGradients
from conftest import SPEC, Failing, fingerprint, planted_images, same, small_cnn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import captum_mfv as mfv
from captum_mfv import metrics
from captum_mfv.activations.receptive_fields import receptive_field
from captum_mfv.attr import FacetAttribution, FacetModel, facet_maps, pure_code
from captum_mfv.optvis import reference
from captum_mfv.optvis.recipes import RECIPES
from captum_mfv.optvis.render import render_facets

UNIT = mfv.Unit("fc", 1)
IMAGES, _ = planted_images(6)


def _render(recipe):
    return lambda model, facets: render_facets(model, facets, IMAGES, recipe=recipe, steps=6, input_spec=SPEC)


def _evaluate(model, facets):
    metrics.Judge(model, UNIT, input_spec=SPEC)(IMAGES)


def _attribute(model, facets):
    if not model.training:  # a FacetModel runs in the mode of the module, as Captum expects
        explain = FacetAttribution(IntegratedGradients, FacetModel(model, facets, input_spec=SPEC))
        explain.attribute(IMAGES[:2], n_steps=3)


def _score(model, facets):
    metrics.score_images(model, facets, IMAGES[:3], IMAGES[:3], IMAGES, input_spec=SPEC)


CALLS = {
    "find_facets": lambda model, facets: mfv.find_facets(model, UNIT, IMAGES, n_facets=3, input_spec=SPEC),
    "collect": lambda model, facets: mfv.collect(model, UNIT, IMAGES, input_spec=SPEC, batch_size=4),
    "top_images": lambda model, facets: mfv.top_images(
        model, mfv.Unit("conv2", 3, reduce="max"), IMAGES, 4, input_spec=SPEC
    ),
    "receptive_field": lambda model, facets: receptive_field(model, "conv2", SPEC),
    "measure_reference": lambda model, facets: reference.measure_reference(model, facets, IMAGES, input_spec=SPEC),
    "measure_probe": lambda model, facets: reference.measure_probe(model, facets, IMAGES, input_spec=SPEC),
    "facet_maps": lambda model, facets: facet_maps(model, facets, IMAGES[:3], [0, 1, 2], input_spec=SPEC),
    "pure_code": lambda model, facets: pure_code(model, UNIT, "conv2", input_spec=SPEC)(IMAGES[:4]),
    "FacetAttribution": _attribute,
    "Judge": _evaluate,
    "score_images": _score,
    **{f"render_facets {recipe}": _render(recipe) for recipe in RECIPES},
}


@pytest.fixture(scope="module")
def found():
    return mfv.find_facets(small_cnn(), UNIT, IMAGES, n_facets=3, input_spec=SPEC)


@pytest.mark.filterwarnings("ignore::captum_mfv.errors.MFVWarning")
@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    layer=st.sampled_from(["conv1", "relu1", "conv2", "pool", "fc"]),
    after=st.integers(0, 12),
    error=st.sampled_from([RuntimeError("broken"), KeyboardInterrupt(), MemoryError(), ValueError("odd")]),
    training=st.booleans(),
    frozen=st.booleans(),
)
def test_no_call_changes_a_models_fingerprint_even_if_it_raises(call, found, layer, after, error, training, frozen):
    model = small_cnn().train(training)
    model.conv1.weight.requires_grad_(not frozen)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    model.get_submodule(layer).register_forward_hook(Failing(error, after))
    before = fingerprint(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CALLS[call](model, found)
    except type(error):
        pass
    after_it = fingerprint(model)
    assert [key for key in before if not same(before[key], after_it[key])] == []
