"""Namers from models of images and texts, with fresh weights: nothing is downloaded."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import captum_mfv as mfv
from captum_mfv.errors import LabelError, ModelError
from captum_mfv.images import read_image
from captum_mfv.labels import ImageTextNamer
from captum_mfv.models import ImageTextModel, load_image_text

WORDS = ("cat", "dog", "market stall")
TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip")


@pytest.fixture
def photo(tmp_path):
    """An image file, wider than high, with fine and coarse structure."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 45, 3), np.uint8)).resize((60, 40), Image.Resampling.BICUBIC)
    coarse.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def write_tokenizer(transformers, folder):
    """Write a tokenizer of whole words, which ends texts with an end token."""
    import tokenizers

    known = ["[PAD]", "[END]", "[UNK]", "a", "photo", "of", "cat", "dog", "market", "stall"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(known, range(10), strict=True)), "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A [END]", special_tokens=[("[END]", 1)])
    names = {"pad_token": "[PAD]", "eos_token": "[END]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@pytest.fixture
def folder_of(transformers, tmp_path):
    """Return a function that writes a small CLIP or SigLIP with its processor and tokenizer."""

    def write(kind):
        text = {**TOWER, "vocab_size": 10, "max_position_embeddings": 12, "pad_token_id": 0, "eos_token_id": 1}
        if kind == "CLIP":
            config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
            processor = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32)
        else:
            config = transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VISION)
            processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
        torch.manual_seed(0)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / kind)
        processor.save_pretrained(tmp_path / kind)
        write_tokenizer(transformers, tmp_path / kind)
        return tmp_path / kind

    with torch.random.fork_rng():
        yield write


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_scores_are_the_cosine_similarities_that_transformers_computes(transformers, folder_of, photo, kind):
    folder = folder_of(kind)
    model = load_image_text(f"hf:{folder}")
    namer = ImageTextNamer(model, WORDS)
    theirs = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padded = {"padding": "max_length", "max_length": 12, "return_tensors": "pt"}
    tokens = tokenizer([f"a photo of {word}" for word in WORDS], **padded)
    inputs = {"input_ids": tokens["input_ids"]}  # SigLIP is trained without a mask
    if kind == "CLIP":
        inputs["attention_mask"] = tokens["attention_mask"]
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(Image.open(photo), return_tensors="pt")
    with torch.no_grad():
        found = theirs(pixel_values=pixels["pixel_values"], **inputs)
    bias = theirs.logit_bias if kind == "Siglip" else 0
    similar = (found.logits_per_image - bias) / theirs.logit_scale.exp()
    assert torch.allclose(namer(read_image(photo, model.input_spec)[None]), similar, atol=2e-3)
    same = pixels["pixel_values"] * torch.tensor(model.input_spec.std)[:, None, None]
    assert torch.allclose(namer(same + torch.tensor(model.input_spec.mean)[:, None, None]), similar, atol=1e-5)


def test_the_number_of_texts_in_a_batch_does_not_change_a_words_score(folder_of):
    model, images = load_image_text(f"hf:{folder_of('CLIP')}"), torch.rand(2, 3, 32, 32)
    several, one = ImageTextNamer(model, WORDS)(images), ImageTextNamer(model, WORDS[2:])(images)
    assert torch.allclose(several[:, 2:], one, atol=1e-6)
    assert several.abs().max() <= 1 + 1e-6


def test_a_template_is_the_text_of_a_word(folder_of):
    texts = []
    model = load_image_text(f"hf:{folder_of('CLIP')}")

    def encode_texts(batch):
        texts.extend(batch)
        return model.encode_texts(batch)

    own = ImageTextModel(model.model, model.input_spec, model.encode_images, encode_texts)
    ImageTextNamer(own, WORDS, template="{} on a plate")
    assert texts == [f"{word} on a plate" for word in WORDS]
    with pytest.raises(LabelError, match=r"template must contain \{\}.*not 'a photo'"):
        ImageTextNamer(own, WORDS, template="a photo")
    with pytest.raises(TypeError, match=r"model must be an ImageTextModel.*not str"):
        ImageTextNamer("hf:openai/clip", WORDS)


def test_a_namers_model_may_be_in_another_precision_and_is_unchanged(folder_of):
    model = load_image_text(f"hf:{folder_of('CLIP')}")
    scores = ImageTextNamer(model, WORDS)(images := torch.rand(2, 3, 48, 48))
    model.model.to(torch.bfloat16).train()
    low = ImageTextNamer(model, WORDS)(images)
    assert low.dtype == torch.float32
    assert torch.allclose(low, scores, atol=0.05)
    assert model.model.training
    assert all(weight.requires_grad for weight in model.model.parameters())


def test_weights_of_a_file_are_those_of_the_whole_model(transformers, folder_of):
    folder = folder_of("CLIP")
    images = torch.rand(1, 3, 32, 32)
    saved = ImageTextNamer(load_image_text(f"hf:{folder}"), WORDS)(images)
    state = torch.get_rng_state()
    from_file = load_image_text(f"hf:{folder}", folder / "model.safetensors")
    fresh = load_image_text(f"hf:{folder}", pretrained=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ImageTextNamer(from_file, WORDS)(images), saved)
    assert not torch.equal(ImageTextNamer(fresh, WORDS)(images), saved)
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(ModelError, match="unknown x"):
        load_image_text(f"hf:{folder}", folder / "other.safetensors")


def test_a_model_without_texts_is_an_error(transformers, tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a ViTModel, which doesn't embed both images and texts"):
        load_image_text(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["resnet50", "timm:resnet18", "hf:", ""])
def test_names_of_other_models_are_errors(name):
    with pytest.raises(ModelError, match=f"a model of images and texts is open_clip:NAME or hf:NAME, not '{name}'"):
        load_image_text(name)


def test_scores_are_the_cosine_similarities_that_open_clip_computes(open_clip, photo, tmp_path):
    whole, _, preprocess = open_clip.create_model_and_transforms("RN50-quickgelu")
    whole.eval()
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, tmp_path / "w.safetensors")
    model = load_image_text("open_clip:RN50-quickgelu/openai", tmp_path / "w.safetensors")
    namer = ImageTextNamer(model, WORDS)
    tokens = open_clip.get_tokenizer("RN50-quickgelu")([f"a photo of {word}" for word in WORDS])
    with torch.no_grad():
        pixels = preprocess(Image.open(photo))[None]
        similar = whole.encode_image(pixels, normalize=True) @ whole.encode_text(tokens, normalize=True).T
    spec = model.input_spec
    assert torch.allclose(namer(read_image(photo, spec)[None]), similar, atol=2e-3)
    same = pixels * torch.tensor(spec.std)[:, None, None] + torch.tensor(spec.mean)[:, None, None]
    assert torch.allclose(namer(same), similar, atol=1e-5)


def test_facets_are_labeled_by_a_model_of_images_and_texts():
    """A model made by hand embeds images by their mean color, and words by the color they name."""
    colors = {"red": [1.0, 0, 0], "green": [0, 1.0, 0], "blue": [0, 0, 1.0]}
    spec = mfv.InputSpec(32, (0.0,) * 3, (1.0,) * 3)
    model = ImageTextModel(
        torch.nn.Identity(),
        spec,
        lambda images: images.mean((2, 3)),
        lambda texts: torch.tensor([colors[text.split()[-1]] for text in texts]),
    )
    images, kinds = mfv.datasets.planted_images(distractor=5)
    from test_labels import facet_set

    found = mfv.labels.label_facets(facet_set(kinds.numpy()[:90]), images[:90], ImageTextNamer(model, list(colors)))
    assert [label.text for label in found] == ["red", "green", "blue"]
