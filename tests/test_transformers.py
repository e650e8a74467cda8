"""Transformers: tokens, (N, tokens, C), and channels-last maps, (N, H, W, C)."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SPEC, fingerprint, same
from sklearn.metrics import adjusted_rand_score
from torch import nn

from captum_mfv import Code, FacetFinder, InputSpec, Unit, collect, find_facets, top_images
from captum_mfv.activations import capture, peak_patches, trace
from captum_mfv.attr import FacetModel, pure_code
from captum_mfv.errors import RunError, UnitError
from captum_mfv.optvis.render import render_facets

torchvision = pytest.importorskip("torchvision")


def make(name, *arguments, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(*arguments, **options).eval()
        if hasattr(model, "heads"):  # torchvision initializes the head with zeros: all logits are 0
            torch.nn.init.normal_(model.heads.head.weight, std=0.02)
        return model


@pytest.fixture(scope="module")
def vit():
    """Return a vision transformer of three layers, of a class token and 16 patches."""
    sizes = {"num_layers": 3, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128, "num_classes": 5}
    return make("VisionTransformer", image_size=32, patch_size=8, **sizes)


@pytest.mark.parametrize(
    ("unit", "code"),
    [
        (Unit("heads.head", 3), Code("encoder.ln")),
        (Unit("encoder.layers.encoder_layer_2", 40, "cls"), Code("encoder.layers.encoder_layer_1")),
        (Unit("encoder.layers.encoder_layer_2.mlp", 40, "max"), Code("encoder.layers.encoder_layer_2.ln_2")),
    ],
    ids=str,
)
def test_facets_of_a_vision_transformer_are_found_and_rendered(vit, unit, code, planted):
    images, labels = planted
    before = fingerprint(vit)
    facets = find_facets(vit, unit, images, n_facets=3, input_spec=SPEC)
    assert facets.code == code
    assert adjusted_rand_score(labels, facets.labels) == 1
    rendered = render_facets(vit, facets, images, steps=4, input_spec=SPEC)
    assert [rendering.image.shape for rendering in rendered] == [(3, 32, 32)] * 3
    assert all(np.isfinite(rendering.history["activation"]).all() for rendering in rendered)
    columns = FacetModel(vit, facets, "gated", SPEC)(images[:5])
    assert columns.shape == (5, 3)
    after = fingerprint(vit)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_a_token_has_a_pure_code_and_top_images(vit, planted):
    unit = Unit("encoder.layers.encoder_layer_2", 40)
    code = pure_code(vit, unit, "encoder.layers.encoder_layer_0", input_spec=SPEC)
    assert code(planted[0][:4]).shape == (4, 64)
    top = top_images(vit, unit, planted[0], 10, input_spec=SPEC)
    assert not top.cropped
    assert (np.diff(top.activations) <= 0).all()


def test_cls_reads_only_tokens(vit, planted):
    with pytest.raises(UnitError, match="'cls' tokens"):
        find_facets(vit, Unit("conv_proj", 3, "cls"), planted[0], input_spec=SPEC)


def test_a_swin_transformers_blocks_are_channels_last(planted):
    images, labels = planted
    swin = make("SwinTransformer", [4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=5)
    spec = InputSpec(64)
    facets = find_facets(swin, Unit("head", 3), images, finder=FacetFinder(3, random_state=0), input_spec=spec)
    assert facets.codes.shape == (60, 48)
    assert adjusted_rand_score(labels, facets.labels) == 1
    rendered = render_facets(swin, facets, images, steps=2, input_spec=spec)
    assert rendered[0].image.shape == (3, 64, 64)
    block = find_facets(swin, Unit("features.3", 40), images, n_facets=3, input_spec=spec)
    assert block.unit == Unit("features.3", 40, channels="last")
    assert block.codes.shape[1] == 48


BLOCK = "encoder.layers.encoder_layer_1"


def test_patches_are_the_tokens_without_class_and_register_tokens(vit, planted):
    images = planted[0][:6]
    found = collect(vit, Unit(BLOCK, 20, "patches"), images, code=f"{BLOCK}:patches", input_spec=SPEC)
    with torch.no_grad(), capture(vit, [BLOCK]) as run:
        patches = run(SPEC(images))[BLOCK][:, 1:].mean(1)
    assert (found.unit.n_prefix, found.code.n_prefix) == (1, 1)
    assert np.allclose(found.codes, patches, atol=1e-5)
    assert np.allclose(found.activations, patches[:, 20], atol=1e-5)
    conv = [collect(vit, Unit("conv_proj", 3, reduce), images, input_spec=SPEC) for reduce in ("patches", "mean")]
    assert np.array_equal(conv[0].activations, conv[1].activations)


def test_an_undeclared_number_of_class_tokens_must_be_given(planted):
    layers = nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), Transposed()
    model, unit = nn.Sequential(*layers).eval(), Unit("2", 3, "patches")
    with pytest.raises(UnitError, match=r"class and register tokens of layer 2 isn't known; give n_prefix="):
        collect(model, unit, planted[0], input_spec=SPEC)
    mean, patches = (
        collect(model, one, planted[0], input_spec=SPEC) for one in (Unit("2", 3), replace(unit, n_prefix=0))
    )
    assert np.array_equal(mean.activations, patches.activations)
    with pytest.raises(UnitError, match=r"has 16 tokens; n_prefix must be below, not 16"):
        collect(model, replace(unit, n_prefix=16), planted[0], input_spec=SPEC)
    with pytest.raises(UnitError, match="n_prefix must be at least 0, not -1"):
        replace(unit, n_prefix=-1)


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


def small(name, **config):
    """Return a model of transformers of two layers with fresh weights, for images of 32 pixels."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(image_size=32, patch_size=8, **sizes, **config)
        return nn.Sequential(OrderedDict(net=getattr(transformers, f"{name}Model")(config))).eval()


@pytest.mark.parametrize(
    ("name", "config", "n_prefix"),
    [
        ("ViT", {}, 1),
        ("DeiT", {}, 2),
        ("Dinov2", {}, 1),
        ("Dinov2WithRegisters", {"num_register_tokens": 3}, 4),
        ("CLIPVision", {}, 1),
        ("SiglipVision", {}, 0),
    ],
)
def test_the_prefix_tokens_of_transformers_are_known(name, config, n_prefix, planted):
    model, images = small(name, **config), planted[0][:4]
    names = [call.name for call in trace(model, SPEC(images[:1]))]
    assert {"net", "net[pooler_output]"} <= set(names)
    found = collect(model, Unit("net", 3, "patches"), images, input_spec=SPEC)
    with torch.no_grad():
        output = model(SPEC(images))
    assert found.unit.n_prefix == n_prefix
    assert np.allclose(found.activations, output.last_hidden_state[:, n_prefix:, 3].mean(1), atol=1e-5)
    pooled = collect(model, Unit("net[pooler_output]", 3), images, input_spec=SPEC)
    assert np.allclose(pooled.activations, output.pooler_output[:, 3], atol=1e-5)
    if not n_prefix:
        with pytest.raises(UnitError, match="reduce='cls' needs a class token"):
            collect(model, Unit("net", 3, "cls"), images, input_spec=SPEC)


def test_tokens_of_a_patch_embedding_are_all_patches(planted):
    model = small("ViT")
    layer = next(name for name, module in model.named_modules() if type(module).__name__ == "ViTPatchEmbeddings")
    assert collect(model, Unit(layer, 3, "patches"), planted[0][:2], input_spec=SPEC).unit.n_prefix == 0


@pytest.mark.parametrize(("margin", "side"), [(0, 8), (1, 24), (2, 32)])
def test_a_margin_crops_top_images_to_the_patch_of_the_maximum(margin, side, planted):
    model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), Transposed()).eval()
    unit = Unit("2", 3, "max", n_prefix=0)
    top = top_images(model, unit, planted[0], 20, input_spec=SPEC, margin=margin)
    assert (top.crop_size, top.input_spec, top.cropped) == (side, SPEC, side < 32)
    with torch.no_grad():
        patches = model[0](SPEC(planted[0][top.indices.tolist()]))[:, 3]
    for item, corner, patch in zip(top, top.corners, patches, strict=False):
        assert item.shape == (3, side, side)
        row, column = divmod(int(patch.argmax()), 4)
        wanted = np.array([row, column]) * 8
        assert (corner <= wanted).all()
        assert (wanted + 8 <= corner + side).all()
    assert top.fingerprint != top_images(model, unit, planted[0], 20, input_spec=SPEC).fingerprint or side == 32


class Prefixed(nn.Module):
    """Put two tokens before the patches: zeros, and the mean of all patches."""

    def forward(self, patches):
        return torch.cat([torch.zeros_like(patches[:, :1]), patches.mean(1, keepdim=True), patches], 1)


def test_the_peaks_patch_is_where_the_unit_is_most_active():
    model = nn.Sequential(nn.Conv2d(3, 1, 8, 8, bias=False), nn.Flatten(2), Transposed(), Prefixed()).eval()
    nn.init.ones_(model[0].weight)
    images = torch.zeros(3, 3, 32, 32)
    images[0, :, 8:16, 24:32] = 1
    images[1, :, 21:28, 1:7] = 1  # three rows in a patch, four in the patch below
    spec = InputSpec(32, (0.0,) * 3, (1.0,) * 3)
    unit = Unit("3", 0, "max", n_prefix=2)
    boxes = peak_patches(model, unit, images, input_spec=spec)
    assert boxes[:2].tolist() == [[24, 8, 32, 16], [0, 24, 8, 32]]
    assert boxes[2].isnan().all()  # all tokens are equal, and the first is no patch
    assert peak_patches(model, unit, images[..., ::2, ::2], input_spec=spec)[0].tolist() == [12, 4, 16, 8]
    for other in (Unit("3", 0), Unit("0", 0, "max")):
        assert peak_patches(model, other, images, input_spec=spec).isnan().all()
    with pytest.raises(UnitError, match="positions of the tokens of layer 3 in the image aren't known; give n_prefix="):
        peak_patches(model, replace(unit, n_prefix=None), images, input_spec=spec)


def test_crops_of_tokens_are_enlarged_to_the_models_input(vit, planted, tmp_path):
    unit = Unit(f"{BLOCK}.mlp.0", 40, "max")
    top = top_images(vit, unit, planted[0], 12, input_spec=SPEC, margin=0, store=tmp_path)
    assert (top.crop_size, len(top), top[0].shape) == (8, 12, (3, 8, 8))
    facets = find_facets(vit, top.unit, top, n_facets=2, input_spec=top.input_spec)
    assert render_facets(vit, facets, top, steps=2, input_spec=top.input_spec)[0].image.shape == (3, 32, 32)
    with pytest.raises(RunError, match="patches True there, False here"):
        top_images(vit, unit, planted[0], 12, input_spec=SPEC, store=tmp_path)
    with pytest.raises(UnitError, match="margin must be at least 0, not -1"):
        top_images(vit, unit, planted[0], 12, input_spec=SPEC, margin=-1)
    for other in (Unit("conv_proj", 3, "max"), Unit(BLOCK, 20)):
        with pytest.raises(UnitError, match="margin is for units that read tokens by reduce='max'"):
            top_images(vit, other, planted[0], 12, input_spec=SPEC, margin=1)
    unknown = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), Transposed()).eval()
    with pytest.raises(UnitError, match="positions of the tokens of layer 2 in the image aren't known"):
        top_images(unknown, Unit("2", 3, "max"), planted[0], 12, input_spec=SPEC, margin=1)
