"""Models by name of timm, transformers and open_clip, with fresh weights: nothing is downloaded."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captum_mfv import ImageFolder, InputSpec, models
from captum_mfv.cli import main
from captum_mfv.errors import MFVWarning, ModelError

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip")


@pytest.mark.parametrize(
    ("name", "extra"),
    [("timm:resnet18", "timm"), ("hf:google/vit", "transformers"), ("open_clip:RN50/openai", "open-clip")],
)
def test_the_error_for_a_library_that_is_not_installed_names_the_extra(name, extra, monkeypatch):
    module = {"hf": "transformers"}.get(name.partition(":")[0], name.partition(":")[0])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=rf'pip install "captum-mfv\[{extra}\]"'):
        models.load(name)


def test_timm_models_have_the_preprocessing_that_timm_declares(timm):
    state = torch.get_rng_state()
    model, spec = models.load("timm:vit_tiny_patch16_224.augreg_in21k", pretrained=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert spec == InputSpec(224, (0.5,) * 3, (0.5,) * 3, 224 / 248, "bicubic")
    assert models.load("timm:convnextv2_nano.fcmae_ft_in22k_in1k_384", pretrained=False)[
        1
    ].stretch  # timm's crop mode is "squash"
    with pytest.raises(ModelError, match=r"no timm model 'resnet18x' \(the nearest are resnet18"):
        models.load("timm:resnet18x")


def test_weights_of_a_file_fill_a_timm_model(timm, tmp_path):
    state = timm.create_model("resnet10t", pretrained=False).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    model, _ = models.load("timm:resnet10t", tmp_path / "w.safetensors")
    assert torch.equal(model.fc.weight, state["fc.weight"])
    save_file({"fc.weight": state["fc.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match="lacking bn1"):
        models.load("timm:resnet10t", tmp_path / "part.safetensors")


@pytest.mark.parametrize("name", ["timm:resnet10t", "open_clip:RN50/openai", "hf:nobody/nothing"])
def test_the_error_of_a_failed_download_names_the_way_out(name):
    pytest.importorskip({"hf": "transformers"}.get(name.partition(":")[0], name.partition(":")[0]))
    with pytest.raises(ModelError, match=r"failed with .*give a weights file, or for hf: a local folder"):
        models.load(name)


def test_the_models_of_a_library_are_listed_by_pattern(timm, capsys):
    listed = models.names("timm:vit_tiny_patch16_2*")
    assert {"timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224.augreg_in21k"} <= set(listed)
    assert all(name.startswith("timm:vit_tiny_patch16_2") for name in listed)
    with pytest.raises(SystemExit):
        main(["list", "models", "timm:vit_tiny_patch16_2*"])
    assert capsys.readouterr().out.split() == listed
    assert models.names("squeezenet*") == ["squeezenet1_0", "squeezenet1_1"]
    with pytest.raises(ModelError, match="no model matches"):
        models.names("timm:nothing*")
    with pytest.raises(ModelError, match="models of hf: can't be listed"):
        models.names("hf:*")


def test_layers_of_a_timm_model_are_listed(timm, capsys):
    with pytest.raises(SystemExit):
        main(["list", "layers", "--model", "timm:resnet10t"])
    assert "layer4.0.conv2" in capsys.readouterr().out


@pytest.fixture
def vit(transformers, tmp_path):
    """A small classifier of transformers with its image processor, in a folder."""
    config = transformers.ViTConfig(**VIT)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    size = {"height": 32, "width": 32}
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    transformers.ViTImageProcessor(size=size, image_mean=mean, image_std=std, resample=3).save_pretrained(
        tmp_path / "vit"
    )
    return tmp_path / "vit"


def test_a_folder_of_transformers_has_its_weights_and_its_image_processors_preprocessing(transformers, vit):
    model, spec = models.load(f"hf:{vit}")
    assert type(model).__name__ == "ViTForImageClassification"
    assert spec == InputSpec(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1.0, "bicubic", stretch=True)
    saved = transformers.ViTForImageClassification.from_pretrained(vit)
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    fresh, _ = models.load(f"hf:{vit}", pretrained=False)
    assert not torch.equal(fresh.classifier.weight, saved.classifier.weight)
    assert torch.equal(models.load(f"hf:{vit}", vit / "model.safetensors")[0].classifier.bias, saved.classifier.bias)
    save_file({"classifier.bias": torch.zeros(3), "x": torch.zeros(1)}, vit / "other.safetensors")
    with pytest.raises(ModelError, match=r"lacking .*; unknown x; of another shape classifier.bias"):
        models.load(f"hf:{vit}", vit / "other.safetensors")


def test_a_model_without_an_image_processor_has_its_configurations_size_with_a_warning(transformers, tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path)
    with pytest.warns(MFVWarning, match="no readable image processor"):
        model, spec = models.load(f"hf:{tmp_path}")
    assert type(model).__name__ == "ViTModel"
    assert spec == InputSpec(32, (0.5,) * 3, (0.5,) * 3, 1.0, "bicubic", stretch=True)


def test_of_a_model_with_two_towers_the_image_tower_is_loaded(transformers, tmp_path):
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.CLIPConfig(text_config={**text, "vocab_size": 99}, vision_config=VIT, projection_dim=16)
    whole = transformers.CLIPModel(config)
    whole.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32).save_pretrained(tmp_path)
    model, spec = models.load(f"hf:{tmp_path}")
    assert (spec.size, spec.short_side, spec.interpolation, spec.stretch) == (32, 40, "bicubic", False)
    assert model(spec(torch.rand(2, 3, 48, 48)))[0].shape == (2, 17, 32)
    from_file, _ = models.load(f"hf:{tmp_path}", tmp_path / "model.safetensors")  # the file has both towers
    ours, theirs = from_file.state_dict(), whole.vision_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("Bert", {"vocab_size": 9}, "takes input_ids; only models that take images alone"),
        ("Siglip2Vision", {}, "takes pixel_values, pixel_attention_mask, spatial_shapes; only"),
        ("ViTMAE", {"image_size": 32, "patch_size": 8}, "drops patches at random"),
    ],
)
def test_a_model_that_does_not_compute_its_units_from_an_image_alone_is_an_error(
    transformers, tmp_path, family, settings, message
):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    getattr(transformers, f"{family}Config")(**sizes, **settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        models.load(f"hf:{tmp_path}", pretrained=False)


def test_weights_that_lack_parameters_are_named(transformers, vit):
    (vit / "model.safetensors").unlink()
    save_file({"classifier.bias": torch.zeros(2)}, vit / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(MFVWarning, match="lack classifier.weight, vit"):
        models.load(f"hf:{vit}")


PROCESSORS = {
    "ConvNeXt": (
        {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 2},
        InputSpec(224, (0.0,) * 3, (1.0,) * 3, 0.875),
    ),
    "ConvNeXt, large": (
        {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3},
        InputSpec(384, (0.0,) * 3, (1.0,) * 3, 1.0, "bicubic", True),
    ),
    "DeiT": (
        {
            "size": {"height": 256, "width": 256},
            "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224},
            "resample": 3,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        InputSpec(224, (0.5,) * 3, (0.5,) * 3, 0.875, "bicubic", True),
    ),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_image_processors_become_input_specs(case):
    from captum_mfv.models.sources import _processor_spec

    declared, spec = PROCESSORS[case]
    assert _processor_spec("x", declared) == spec


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"size": {"height": 32, "width": 64}}, r"\(32, 64\) pixels; only square"),
        ({"size": {"shortest_edge": 32}, "do_flip_channel_order": True}, "blue, green, red"),
    ],
)
def test_preprocessing_that_an_input_spec_cannot_express_is_an_error(declared, message):
    from captum_mfv.models.sources import _processor_spec

    with pytest.raises(ModelError, match=message):
        _processor_spec("hf:x", declared)


def test_the_image_tower_of_open_clip_is_loaded_from_a_file_of_the_whole_model(open_clip, tmp_path):
    whole = open_clip.create_model("RN50-quickgelu")
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, tmp_path / "w.safetensors")
    model, spec = models.load("open_clip:RN50-quickgelu/openai", tmp_path / "w.safetensors")
    assert spec == InputSpec(224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, 1.0, "bicubic")
    assert torch.equal(model.conv1.weight, whole.visual.conv1.weight)
    assert "open_clip:RN50/openai" in models.names("open_clip:RN50*")
    with pytest.raises(ModelError, match=r"no open_clip model 'RN51'"):
        models.load("open_clip:RN51/openai")
    with pytest.raises(ModelError, match=r"write open_clip:RN50/WEIGHTS, WEIGHTS being one of openai, "):
        models.load("open_clip:RN50")


@pytest.fixture
def photo(tmp_path):
    """A folder with one image, wider than high, with fine and coarse structure."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 45, 3), np.uint8)).resize((450, 300), Image.Resampling.BICUBIC)
    (tmp_path / "photo").mkdir()
    coarse.save(tmp_path / "photo" / "a.png")
    return tmp_path / "photo"


def difference(folder, spec, theirs):
    """Return the mean absolute difference to another library's input, in standard deviations of the input."""
    ours = spec(ImageFolder(folder, spec)[0][None])[0]
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().mean() / theirs.std())


@pytest.mark.parametrize("name", ["resnet10t.c3_in1k", "convnextv2_nano.fcmae_ft_in22k_in1k_384"])
def test_files_are_preprocessed_as_timm_does(timm, photo, name):
    model, spec = models.load(f"timm:{name}", pretrained=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    assert difference(photo, spec, transform(Image.open(photo / "a.png"))) < 0.005


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("ViT", {"size": {"height": 224, "width": 224}}),
        ("CLIP", {"size": {"shortest_edge": 224}}),
        ("DeiT", {}),
        ("ConvNext", {"size": {"shortest_edge": 224}}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("Siglip", {}),
        ("Bit", {"size": {"shortest_edge": 256}, "crop_size": 224}),
        ("PoolFormer", {}),
        ("EfficientNet", {"include_top": False}),
    ],
)
def test_files_are_preprocessed_as_transformers_does(transformers, photo, family, settings):
    from captum_mfv.models.sources import _processor_spec

    processor = getattr(transformers, f"{family}ImageProcessor")(**settings)
    theirs = processor(Image.open(photo / "a.png"), return_tensors="pt")["pixel_values"][0]
    assert difference(photo, _processor_spec("x", processor.to_dict()), theirs) < 0.005


def test_stretched_images_keep_no_aspect_ratio(tmp_path):
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (30, 0, 60, 20))
    image.save(tmp_path / "wide.png")
    stretched = ImageFolder(tmp_path, InputSpec(20, stretch=True))[0]
    assert stretched.shape == (3, 20, 20)
    assert stretched[:, :, :8].max() == 0
    assert stretched[:, :, 12:].min() == 1
