"""Latents of an encoder, such as a sparse autoencoder, as units: read, found, rendered, attributed, saved."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from conftest import Failing, fingerprint, same
from sklearn.metrics import adjusted_rand_score
from torch import nn

import captum_mfv as mfv
from captum_mfv import FacetSet, Unit
from captum_mfv.activations import capture
from captum_mfv.attr import FacetModel, facet_maps, pure_code
from captum_mfv.concept import facet_concepts, random_concepts, tcav_table
from captum_mfv.datasets import planted_images, planted_network
from captum_mfv.errors import FacetError, RunError, UnitError
from captum_mfv.metrics import Judge, multifacetedness
from captum_mfv.optvis import objectives
from captum_mfv.optvis.recipes import RECIPES, get_recipe
from captum_mfv.optvis.render import render_facets

MODEL, SPEC = planted_network()
IMAGES, COLORS = planted_images(n_each=15, distractor=6)
LATENTS = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1.0]])  # of five detectors
RED, RED_OR_GREEN, ANY = range(3)


def encoder(weights=LATENTS, *more):
    """Return an encoder whose latents are sums of the planted network's detectors: one has two facets, one four."""
    linear = nn.Linear(*reversed(weights.shape), bias=False, device="meta").to_empty(device="cpu")
    linear.load_state_dict({"weight": weights})
    return nn.Sequential(linear, *more, nn.ReLU())


SAE = encoder()


def latent(index, sae=SAE, layer="rectified", **options):
    return Unit(layer, index, encoder=sae, **options)


def activations(unit, images=IMAGES):
    return mfv.collect(MODEL, unit, images, input_spec=SPEC).activations


def find(index, n_facets, sae=SAE, images=IMAGES):
    return mfv.find_facets(MODEL, latent(index, sae), images, n_facets=n_facets, code="rectified", input_spec=SPEC)


@pytest.fixture(scope="module")
def pair():
    return find(RED_OR_GREEN, 2, images=IMAGES[:30])


@pytest.fixture(scope="module")
def four():
    return find(ANY, 4)


@pytest.mark.parametrize("reduce", ["mean", "max", "center"])
def test_a_latents_activation_is_its_encoder_at_each_position_then_the_reduction(reduce):
    with torch.no_grad(), capture(MODEL, ["rectified"]) as run:
        maps = run(SPEC(IMAGES))["rectified"]
    latents = (maps.movedim(1, -1) @ LATENTS.T).relu()
    read = {"mean": latents.mean((1, 2)), "max": latents.amax((1, 2)), "center": latents[:, 16, 16]}[reduce]
    for index in range(4):
        assert np.allclose(activations(latent(index, reduce=reduce)), read[:, index], atol=1e-5)
    direction = latent([1.0, 0.0, -2.0, 0.5], reduce=reduce)
    assert np.allclose(activations(direction), read @ torch.tensor(direction.index), atol=1e-5)


@pytest.mark.parametrize(
    ("output", "reduce"), [((3, 7, 5), "mean"), ((3, 7, 5), "cls"), ((3, 5), "mean"), ((3, 4, 4, 5), "max")]
)
def test_latents_of_tokens_vectors_and_channels_last_are_read(output, reduce):
    values = torch.rand(output, generator=torch.Generator().manual_seed(0))
    latents = (values @ LATENTS.T).relu().reshape(3, -1, 4)[:, :, ANY]  # (N, positions)
    wanted = {"mean": latents.mean(1), "max": latents.amax(1), "cls": latents[:, 0]}[reduce]
    unit = Unit("layer", ANY, reduce, "last" if len(output) == 4 else None, encoder=SAE)
    assert torch.allclose(unit.read(values), wanted, atol=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-5), (torch.bfloat16, 1e-2)])
def test_an_encoder_has_its_own_precision(dtype, error):
    found = activations(latent(ANY, copy.deepcopy(SAE).to(dtype)))
    assert found.dtype == np.float32
    assert np.allclose(found, activations(latent(ANY)), atol=error, rtol=error)


def test_top_images_of_latents_are_cropped_at_their_peak_and_encoded_once():
    calls = []
    sae = encoder()
    sae.register_forward_hook(lambda *_: calls.append(1))
    model, spec = planted_network()
    tops = mfv.top_images(
        model, [latent(i, sae, reduce="max") for i in range(4)], IMAGES, 15, input_spec=spec, batch_size=15
    )
    assert set(COLORS[tops[RED].indices].tolist()) == {0}
    assert tops[RED].cropped
    assert tops[RED][0].shape == (3, 1, 1)  # the detectors are 1 x 1 convolutions
    assert len(calls) == 4 + 4  # a check of each unit, and the batches
    for top in tops:
        alone = mfv.top_images(model, top.unit, IMAGES, 15, input_spec=spec, batch_size=15)
        assert np.array_equal(alone.indices, top.indices)


def test_a_latents_facets_are_found(pair, four):
    assert adjusted_rand_score(COLORS, four.labels) > 0.9
    assert adjusted_rand_score(COLORS[:30], pair.labels) > 0.9
    assert multifacetedness(four).p_value < 0.05
    assert str(four.unit) == "rectified:latent 2"
    assert "latent 2" in repr(four)


@pytest.fixture(scope="module")
def smooth():
    """Return facets of two latents that are never off, and so have a gradient everywhere."""
    sae = encoder(LATENTS, nn.Softplus())
    units = [latent(index, sae, "detectors") for index in (RED_OR_GREEN, ANY)]
    return [mfv.find_facets(MODEL, unit, IMAGES, n_facets=2, input_spec=SPEC)[0] for unit in units]


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_latents_of_one_encoder_are_rendered_in_one_batch(recipe, smooth):
    steps = max(2, len(get_recipe(recipe).phases))
    draw = partial(render_facets, MODEL, images=IMAGES, recipe=recipe, steps=steps, size=24, input_spec=SPEC)
    for one, other in zip(draw(smooth), [*draw(smooth[0]), *draw(smooth[1])], strict=True):
        assert torch.allclose(one.image, other.image, atol=0.01)  # the first steps amplify rounding errors
        for name, values in one.history.items():
            assert np.allclose(values, other.history[name], rtol=1e-3, atol=1e-3, equal_nan=True), name


def test_a_rendered_latent_activates_more_than_the_start(smooth):
    (rendering,) = render_facets(MODEL, smooth[1], IMAGES, recipe="logit", steps=40, input_spec=SPEC)
    start, end = activations(smooth[1].unit, [rendering.start, rendering.image])
    assert end > start


def test_a_step_encodes_each_batch_once(smooth):
    calls, sae = [], smooth[1].unit.encoder
    hook = sae.register_forward_hook(lambda *_: calls.append(1))
    for steps in (3, 8):
        render_facets(MODEL, smooth[1], IMAGES, recipe="logit", steps=steps, input_spec=SPEC)
    hook.remove()
    assert len(calls) == 3 + 8


def test_facets_of_two_encoders_do_not_share_a_batch(pair):
    other = find(RED_OR_GREEN, 2, encoder(), IMAGES[:30])
    with pytest.raises(FacetError, match=r"same encoder object.*call once for each encoder"):
        render_facets(MODEL, [pair[0], other[0]], IMAGES, steps=2, input_spec=SPEC)


def test_lucents_objectives_read_the_latent(pair):
    with torch.enable_grad(), capture(MODEL, ["rectified"]) as run:
        outputs = run(SPEC(IMAGES[:1]))
    loss = objectives.unit(pair[0])(lambda name: outputs[name])
    wanted = -pair.activations[0] / abs(pair[0].activations).mean()
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_attributions_explain_the_latent(four):
    images = IMAGES[::15]
    gated = FacetModel(MODEL, four, output="gated", input_spec=SPEC)
    assert torch.allclose(gated(images).sum(1), torch.from_numpy(activations(four.unit, images)), atol=1e-5)
    explained = IntegratedGradients(gated).attribute(images, target=0, n_steps=8)
    assert explained.shape == images.shape
    assert explained.abs().sum() > 0
    assert facet_maps(MODEL, four, images, 0, input_spec=SPEC).isfinite().all()
    code = pure_code(MODEL, four.unit, "detectors", input_spec=SPEC)(images)
    assert code.shape == (4, 5)
    assert (code[:, 4] == 0).all()  # no attribution to the detector that the latent ignores
    concepts = facet_concepts(four, IMAGES, input_spec=SPEC)
    rows = tcav_table(gated, images, 0, concepts, random_concepts(IMAGES, 3, 10), layers=["model.detectors"])
    assert [row.concept for row in rows] == [f"facet{k}_of_rectified_latent_2" for k in range(4)]


def test_facets_are_saved_with_the_encoders_fingerprint_and_loaded_with_the_encoder(four, tmp_path):
    four.save(tmp_path / "facets.safetensors")
    loaded = FacetSet.load(tmp_path / "facets.safetensors")
    assert loaded.fingerprint == four.fingerprint
    assert isinstance(loaded.unit.encoder, str)
    with pytest.raises(UnitError, match=r"only the fingerprint of the encoder; pass.*encoder=sae"):
        mfv.collect(MODEL, loaded.unit, IMAGES, input_spec=SPEC)
    again = FacetSet.load(tmp_path / "facets.safetensors", encoder=copy.deepcopy(SAE))
    assert np.array_equal(activations(again.unit), four.activations)
    with pytest.raises(FacetError, match="encoder isn't that of rectified:latent 2"):
        FacetSet.load(tmp_path / "facets.safetensors", encoder=encoder(2 * LATENTS))
    mfv.find_facets(MODEL, "unit:0", IMAGES, n_facets=4, input_spec=SPEC).save(tmp_path / "plain.safetensors")
    with pytest.raises(FacetError, match="unit:0 is no latent"):
        FacetSet.load(tmp_path / "plain.safetensors", encoder=SAE)


def test_a_store_belongs_to_the_encoders_weights(tmp_path):
    def read(sae):
        return mfv.collect(MODEL, latent(ANY, sae), IMAGES, input_spec=SPEC, store=tmp_path / "rows", batch_size=8)

    stopping = encoder()
    hook = stopping.register_forward_hook(Failing(KeyboardInterrupt(), after=3))
    with pytest.raises(KeyboardInterrupt):
        read(stopping)
    hook.remove()
    assert np.array_equal(read(encoder()).activations, activations(latent(ANY)))
    with pytest.raises(RunError, match=r"another pass.*unit"):
        read(encoder(2 * LATENTS))


def test_an_encoder_is_left_as_it_was_and_runs_in_evaluation_mode():
    sae = encoder(LATENTS, nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = fingerprint(sae)
    assert np.array_equal(activations(latent(ANY, sae)), activations(latent(ANY, sae)))
    after = fingerprint(sae)
    assert [key for key in before if not same(before[key], after[key])] == []


class Pair(nn.Module):
    def forward(self, x):
        return x, x.relu()


@pytest.mark.parametrize(
    ("unit", "error", "message"),
    [
        (latent(4), UnitError, "the encoder has latents 0 to 3; there is no latent 4"),
        (latent([1.0, 2.0]), UnitError, "a direction in the encoder takes 4 weights, one a latent, not 2"),
        (latent(0, encoder(torch.eye(6))), UnitError, r"Sequential doesn't encode 5 channels: mat1 and mat2"),
        (latent(0, Pair()), UnitError, r"Pair must return a tensor \(n, F\) for \(n, C\), as an encoder, not a tuple"),
        (latent(0, nn.Flatten(0)), UnitError, r"Flatten must return a tensor \(n, F\) for \(n, C\).*not \(5,\)"),
    ],
)
def test_an_encoder_that_does_not_fit_is_named_before_images_are_read(unit, error, message):
    with pytest.raises(error, match=message):
        mfv.collect(MODEL, unit, [None], input_spec=SPEC)


def test_other_types_are_no_encoder_and_a_judge_takes_no_latent():
    with pytest.raises(TypeError, match=r"encoder must be a module from \(n, C\) to \(n, F\), not function"):
        Unit("fc", 0, encoder=lambda x: x)
    with pytest.raises(FacetError, match="a class, not a direction or a latent"):
        Judge(MODEL, latent(ANY))
