"""Architectures × {collect, top images, facets, recipe facet, FacetModel with IG, resume}, with fresh weights."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from conftest import fingerprint, same

from captum_mfv import FacetFinder, InputSpec, collect, find_facets, top_images
from captum_mfv.attr import FacetModel
from captum_mfv.errors import UnitError
from captum_mfv.optvis.render import render_facets
from captum_mfv.storage import files

TINY = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
STAGES = {"num_labels": 5, "depths": [1, 1, 1, 1]}


def convnext(torchvision):
    settings = [
        torchvision.models.convnext.CNBlockConfig(16, 32, 1),
        torchvision.models.convnext.CNBlockConfig(32, None, 1),
    ]
    return torchvision.models.ConvNeXt(settings, num_classes=5)


# Each architecture: input size, a logit, a hidden unit, and a function from the library to the model
ARCHITECTURES = {
    "torchvision SqueezeNet": (
        64,
        "classifier.1:1",
        "features.7.expand3x3:3",
        lambda lib: lib.models.squeezenet1_1(num_classes=5),
    ),
    "torchvision ResNet": (
        32,
        "fc:1",
        "layer3.0.conv2:3",
        lambda lib: lib.models.ResNet(lib.models.resnet.BasicBlock, [1] * 4, 5),
    ),
    "torchvision MobileNetV3": (
        64,
        "classifier.3:1",
        "features.5:3",
        lambda lib: lib.models.mobilenet_v3_small(num_classes=5),
    ),
    "torchvision ShuffleNetV2": (
        64,
        "fc:1",
        "stage3.0.branch2.6:3",
        lambda lib: lib.models.shufflenet_v2_x0_5(num_classes=5),
    ),
    "torchvision DenseNet": (
        32,
        "classifier:1",
        "features.denseblock2:3",
        lambda lib: lib.models.DenseNet(8, (2, 2, 2), 16, num_classes=5),
    ),
    "torchvision ConvNeXt": (32, "classifier.2:1", "features.1:3", convnext),
    "torchvision ViT": (
        32,
        "heads.head:1",
        "encoder.layers.encoder_layer_1.mlp:3",
        lambda lib: lib.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5),
    ),
    "torchvision Swin": (
        64,
        "head:1",
        "features.1.1.norm2:3",
        lambda lib: lib.models.SwinTransformer([4, 4], *SWIN.values(), [4, 4], num_classes=5),
    ),
    "timm ResNet": (32, "fc:1", "layer3.0.conv2:3", lambda lib: lib.create_model("resnet10t", num_classes=5)),
    "timm ConvNeXtV2": (
        64,
        "head.fc:1",
        "stages.1.blocks.0:3",
        lambda lib: lib.create_model("convnextv2_atto", num_classes=5, depths=(1, 1, 1, 1)),
    ),
    "timm MobileNetV4": (
        64,
        "classifier:1",
        "blocks.2.0:3",
        lambda lib: lib.create_model("mobilenetv4_conv_small_050", num_classes=5),
    ),
    "timm ViT": (32, "head:1", "blocks.1.mlp.act:3", lambda lib: lib.create_model("vit_tiny_patch16_224", **VIT)),
    "timm DINOv2 with registers": (
        32,
        "norm:1",
        "blocks.1.mlp.act:3",
        lambda lib: lib.create_model("vit_small_patch14_reg4_dinov2", **{**VIT, "num_classes": 0}),
    ),
    "timm CLIP": (32, "head:1", "blocks.1:3", lambda lib: lib.create_model("vit_base_patch32_clip_224", **VIT)),
    "timm Swin": (
        64,
        "head.fc:1",
        "layers.1.downsample:3",
        lambda lib: lib.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, num_classes=5, **SWIN),
    ),
    "transformers ViT": (
        32,
        "classifier:1",
        "vit.layernorm:3",
        lambda lib: lib.ViTForImageClassification(lib.ViTConfig(patch_size=8, num_labels=5, **TINY)),
    ),
    "transformers DINOv2": (
        32,
        "layernorm:1",
        "encoder.layer.1.mlp:3",
        lambda lib: lib.Dinov2Model(lib.Dinov2Config(patch_size=8, **TINY)),
    ),
    "transformers CLIP": (
        32,
        "post_layernorm:1",
        "encoder.layers.1.mlp:3",
        lambda lib: lib.CLIPVisionModel(lib.CLIPVisionConfig(patch_size=8, **TINY)),
    ),
    "transformers SigLIP": (
        32,
        "post_layernorm:1",
        "encoder.layers.1.self_attn:3",
        lambda lib: lib.SiglipVisionModel(lib.SiglipVisionConfig(patch_size=8, **TINY)),
    ),
    "transformers ConvNeXt": (
        64,
        "classifier:1",
        "convnext.encoder.stages.1:3",
        lambda lib: lib.ConvNextForImageClassification(lib.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], **STAGES)),
    ),
    "transformers Swin": (
        64,
        "classifier:1",
        "swin.encoder.layers.1.blocks.0:3",
        lambda lib: lib.SwinForImageClassification(lib.SwinConfig(image_size=64, window_size=4, num_labels=5, **SWIN)),
    ),
    "transformers ResNet": (
        64,
        "classifier.1:1",
        "resnet.encoder.stages.1:3",
        lambda lib: lib.ResNetForImageClassification(
            lib.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], **STAGES)
        ),
    ),
}


class Stop(Exception):
    pass


def build(name, make):
    """Return a model with fresh weights of which none are all zero, as the heads of some libraries are."""
    library = pytest.importorskip(name.split()[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(library).eval()
        for weight in model.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.02)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_step_works_with_each_architecture(name, planted, tmp_path, monkeypatch):
    size, logit, hidden, make = ARCHITECTURES[name]
    model, spec, images = build(name, make), InputSpec(size), planted[0][::5]
    before = fingerprint(model)
    options = {"input_spec": spec, "key": "planted"}

    collected = collect(model, hidden, images, store=tmp_path / "rows", **options)
    assert np.ptp(collected.activations) > 0
    assert np.isfinite(collected.codes).all()

    top = top_images(model, hidden, images, 3, **options)
    assert np.allclose(top.activations, np.sort(top.activations)[::-1])

    finder = FacetFinder(2, embedding=None, random_state=0)
    facets = find_facets(model, logit, images, finder=finder, **options)
    assert len(facets) == 2
    assert facets.codes.shape[1] > 1

    rendering = {"steps": 2, "input_spec": spec}
    whole = render_facets(model, facets, images, **rendering)
    assert all(made.image.isfinite().all() and not torch.equal(made.image, made.start) for made in whole)

    maps = IntegratedGradients(FacetModel(model, facets, "gated", spec)).attribute(images[:1], target=1, n_steps=2)
    assert maps.shape == (1, 3, 32, 32)
    assert maps.isfinite().all()
    assert maps.any()

    def stop(step, images):
        if step == 2:
            raise Stop

    monkeypatch.setattr(files.Checkpoint, "due", True)
    rendering["checkpoint"] = tmp_path / "images.safetensors"
    with pytest.raises(Stop):
        render_facets(model, facets, images, callback=stop, **rendering)
    resumed = render_facets(model, facets, images, **rendering)
    assert all(torch.equal(one.image, other.image) for one, other in zip(resumed, whole, strict=True))

    after = fingerprint(model)
    assert [key for key in before if not same(before[key], after[key])] == []


# What can't work: a unit, and the reason that the error gives
IMPOSSIBLE = {
    "torchvision ResNet": ("layer1.0.relu:3", "runs 2 times in a pass"),
    "torchvision DenseNet": (
        "features.denseblock9:3",
        "no layer 'features.denseblock9'; the nearest are features.denseb",
    ),
    "timm Swin": ("layers.0.blocks.0.attn:3", "has no batch axis"),  # each window is a row
    "transformers Swin": ("swin.encoder.layers.1.blocks.0.attention:3", "has no batch axis"),
    "transformers ConvNeXt": ("convnext.encoder.stages.1:99", "units 0 to 15; there is no unit 99"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_unit_that_an_architecture_does_not_have_is_an_error_with_the_reason(name, planted):
    size, _, _, make = ARCHITECTURES[name]
    unit, reason = IMPOSSIBLE[name]
    with pytest.raises(UnitError, match=reason):
        collect(build(name, make), unit, planted[0][:4], input_spec=InputSpec(size))
