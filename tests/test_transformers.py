"""Transformers: tokens, (N, tokens, C), and channels-last maps, (N, H, W, C)."""

import numpy as np
import pytest
import torch
from conftest import SPEC, fingerprint, same
from sklearn.metrics import adjusted_rand_score

from captum_mfv import Code, FacetFinder, InputSpec, Unit, find_facets, top_images
from captum_mfv.attr import FacetModel, pure_code
from captum_mfv.errors import UnitError
from captum_mfv.optvis.render import render_facets

torchvision = pytest.importorskip("torchvision")


def make(name, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None, **arguments).eval()
        if hasattr(model, "heads"):  # torchvision initializes the head with zeros: all logits are 0
            torch.nn.init.normal_(model.heads.head.weight, std=0.02)
        return model


@pytest.fixture(scope="module")
def vit():
    return make("vit_b_16", image_size=32)


@pytest.mark.parametrize(
    ("unit", "code"),
    [
        (Unit("heads.head", 3), Code("encoder.ln")),
        (Unit("encoder.layers.encoder_layer_5", 40, "cls"), Code("encoder.layers.encoder_layer_4")),
        (Unit("encoder.layers.encoder_layer_5.mlp", 40, "max"), Code("encoder.layers.encoder_layer_5.ln_2")),
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
    unit = Unit("encoder.layers.encoder_layer_5", 40)
    code = pure_code(vit, unit, "encoder.layers.encoder_layer_3", input_spec=SPEC)
    assert code(planted[0][:4]).shape == (4, 768)
    top = top_images(vit, unit, planted[0], 10, input_spec=SPEC)
    assert not top.cropped
    assert (np.diff(top.activations) <= 0).all()


def test_cls_reads_only_tokens(vit, planted):
    with pytest.raises(UnitError, match="'cls' tokens"):
        find_facets(vit, Unit("conv_proj", 3, "cls"), planted[0], input_spec=SPEC)


def test_a_swin_transformers_blocks_are_channels_last(planted):
    images, labels = planted
    swin, spec = make("swin_t"), InputSpec(64)
    facets = find_facets(swin, Unit("head", 3), images, finder=FacetFinder(3, random_state=0), input_spec=spec)
    assert facets.codes.shape == (60, 768)
    assert adjusted_rand_score(labels, facets.labels) == 1
    rendered = render_facets(swin, facets, images, steps=2, input_spec=spec)
    assert rendered[0].image.shape == (3, 64, 64)
    with pytest.raises(UnitError, match=r"features\.3 returns \(N, 8, 8, 192\).*write channels='last'"):
        find_facets(swin, Unit("features.3", 100), images, input_spec=spec)
    block = find_facets(swin, Unit("features.3", 100, channels="last"), images, n_facets=3, input_spec=spec)
    assert block.codes.shape[1] == 192
