"""A GPU returns what a CPU returns, up to rounding."""

import importlib
from unittest.mock import patch

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from conftest import SPEC, fingerprint, planted_images, same, small_cnn
from torch import nn
from torchvision.utils import save_image

import captum_mfv as mfv
from captum_mfv.activations.codes import collect
from captum_mfv.attr import FacetModel, facet_maps
from captum_mfv.cli import main
from captum_mfv.concept import concept_units, facet_concepts, random_concepts
from captum_mfv.metrics.unit_scores import score_images
from captum_mfv.optvis import cuda_graph
from captum_mfv.optvis.render import render_facets
from captum_mfv.storage import files

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

IMAGES, KINDS = planted_images()
UNIT = mfv.Unit("fc", 1)


@pytest.fixture(scope="module", autouse=True)
def exact():
    """Compute float32 convolutions in float32, and not in TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def models():
    return small_cnn(), small_cnn().cuda()


@pytest.fixture(scope="module")
def facets(models):
    return mfv.find_facets(models[0], UNIT, IMAGES, n_facets=3, input_spec=SPEC)


def rendered(model, facets, recorded=True, **options):
    if not recorded:
        with patch.object(cuda_graph.Recorded, "_record", return_value=False):
            return rendered(model, facets, **options)
    made = render_facets(model, facets, IMAGES, input_spec=SPEC, **{"steps": 12, **options})
    return torch.stack([one.image for one in made]), made


def test_codes_and_facets_are_those_of_a_cpu(models, facets):
    mine, its = (collect(model, UNIT, IMAGES, input_spec=SPEC) for model in models)
    np.testing.assert_allclose(its.codes, mine.codes, atol=1e-4)
    np.testing.assert_allclose(its.activations, mine.activations, atol=1e-4)
    found = mfv.find_facets(models[1], UNIT, IMAGES, n_facets=3, input_spec=SPEC)
    np.testing.assert_array_equal(found.labels, facets.labels)


@pytest.mark.parametrize("recipe", ["facet", "plain", "paper-mean", "paper-center-biased", "maco", "faceted"])
def test_images_of_each_recipe_are_those_of_a_cpu(recipe, models, facets):
    (mine, its), (images, made) = (rendered(model, facets, recipe=recipe, steps=6) for model in models)
    for one, other in zip(its, made, strict=True):
        for name, losses in one.history.items():
            np.testing.assert_allclose(other.history[name][0], losses[0], rtol=2e-3, atol=1e-4, err_msg=name)
    assert (images - mine).abs().mean() < 0.02


def test_a_recorded_step_is_the_step(models, facets):
    with patch.object(cuda_graph.Recorded, "_record", autospec=True, side_effect=cuda_graph.Recorded._record) as spy:
        recorded, made = rendered(models[1], facets)
    assert spy.call_count == 1
    plain, its = rendered(models[1], facets, recorded=False)
    assert (recorded - plain).abs().mean() < 2e-3
    for one, other in zip(made, its, strict=True):
        np.testing.assert_allclose(one.history["activation"], other.history["activation"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("max_batch", [1, 2])
def test_parts_of_a_batch_give_the_images_of_the_whole(models, facets, max_batch):
    whole, parts = (rendered(models[1], facets, max_batch=size)[0] for size in (None, max_batch))
    assert (whole - parts).abs().mean() < 2e-3


class Waiting(nn.Module):
    """A layer whose forward pass waits for the GPU, so that it can't be recorded."""

    def forward(self, x):
        return x if x.max().item() > -1e9 else -x


def test_a_model_that_waits_for_the_gpu_is_rendered_step_by_step(facets, caplog):
    model = nn.Sequential()
    for name, module in small_cnn().named_children():
        model.add_module(name, module)
    model.add_module("waiting", Waiting())
    model.cuda().eval()
    with caplog.at_level("DEBUG", "captum_mfv"):
        images, _ = rendered(model, mfv.find_facets(model, mfv.Unit("waiting", 1), IMAGES, n_facets=3, input_spec=SPEC))
    assert "not recorded" in caplog.text
    assert images.isfinite().all()
    assert torch.rand(3, device="cuda").isfinite().all()


def test_the_model_is_left_as_it_was_and_no_global_generator_is_used(models, facets):
    before, of_gpu = fingerprint(models[1]), torch.cuda.get_rng_state()
    rendered(models[1], facets)
    assert same(before, fingerprint(models[1]))
    assert torch.equal(of_gpu, torch.cuda.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_draws_nearly_the_same(models, facets, dtype):
    exact, lower = rendered(models[1], facets)[0], rendered(models[1], facets, dtype=dtype)[0]
    assert 0 < (exact - lower).abs().mean() < 0.03


def test_a_checkpoint_of_a_cpu_is_resumed_on_a_gpu(models, facets, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Checkpoint, "due", True)

    def stop(step, images):
        if step == 6:
            raise KeyError

    with pytest.raises(KeyError):
        rendered(models[0], facets, checkpoint=tmp_path / "a.safetensors", callback=stop)
    images, _ = rendered(models[1], facets, checkpoint=tmp_path / "a.safetensors")
    assert (images - rendered(models[0], facets)[0]).abs().mean() < 0.02


def test_attributions_are_those_of_a_cpu(models, facets):
    maps = [
        IntegratedGradients(FacetModel(model, facets, input_spec=SPEC)).attribute(IMAGES[:2].to(device), target=1).cpu()
        for model, device in zip(models, ("cpu", "cuda"), strict=True)
    ]
    torch.testing.assert_close(*maps, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    "method", [None, "Saliency", "Occlusion", "FeatureAblation", "ShapleyValueSampling", "KernelShap"]
)
def test_maps_are_those_of_a_cpu(method, models, facets):
    options = {"method": method, "input_spec": SPEC, "seed": 1}
    maps = [facet_maps(model, facets, IMAGES[:2], [0, 1], **options) for model in models]
    assert maps[1].device.type == "cpu"
    torch.testing.assert_close(*maps, rtol=0.02, atol=0.02 * float(maps[0].abs().max()))


def test_concepts_are_those_of_a_cpu(models, facets):
    tables = []
    for model in models:
        device = next(model.parameters()).device
        concepts = facet_concepts(facets, IMAGES, n_images=8, input_spec=SPEC, device=device)
        random = random_concepts(IMAGES, 3, 8, input_spec=SPEC)
        tables.append(concept_units(model, "relu2", concepts, random))
        assert next(iter(concepts[0].data_iter)).device == device
    for mine, its in zip(*tables, strict=True):
        np.testing.assert_allclose(its.index, mine.index, atol=1e-4)


def test_scores_of_images_are_those_of_a_cpu(models, facets):
    images = [IMAGES[facet.members[0]] for facet in facets]
    scores = [score_images(model, facets, images, images, IMAGES, input_spec=SPEC) for model in models]
    for mine, its in zip(scores[0][0], scores[1][0], strict=True):
        np.testing.assert_allclose([its.activation, its.off_facet], [mine.activation, mine.off_facet], atol=1e-3)
    assert scores[0][1] == scores[1][1]


@pytest.mark.parametrize("command", ["run", "atlas"])
def test_the_commands_use_the_gpu(command, tmp_path, monkeypatch):
    devices, whole = set(), render_facets

    def spy(model, *args, **options):
        devices.add(next(model.parameters()).device.type)
        return whole(model, *args, **options)

    module = "steps" if command == "run" else "atlas.unit"
    monkeypatch.setattr(importlib.import_module(f"captum_mfv.jobs.{module}"), "render_facets", spy)
    units = ["--unit", "fc:1"] if command == "run" else ["--units", "fc:0-2", "--top-k", "30"]
    lines = ["from conftest import SPEC, small_cnn", "def net():", "    return small_cnn(), SPEC"]
    (tmp_path / "net.py").write_text("\n".join(lines))
    (folder := tmp_path / "images").mkdir()
    for i, image in enumerate(IMAGES):
        save_image(image, folder / f"{i:02}.png")
    options = ["--model", f"{tmp_path}/net.py:net", "--images", str(folder), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main([command, *units, *options, "--facets", "2", "--steps", "5", "--quiet"])
    assert ended.value.code in (None, 0)
    assert devices == {"cuda"}
