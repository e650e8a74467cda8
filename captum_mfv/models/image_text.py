"""Models of images and texts, such as CLIP and SigLIP, of open_clip and transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_mfv.errors import ModelError
from captum_mfv.images import InputSpec
from captum_mfv.models.sources import (
    as_model_error,
    import_library,
    open_clip_model,
    open_clip_spec,
    transformers_model,
    transformers_spec,
)
from captum_mfv.models.weights import check_finite, fit_weights, read_weights
from captum_mfv.units import first_floating_point

__all__ = ["ImageTextModel", "load_image_text"]

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ImageTextModel:
    """A model that embeds images and texts into one space.

    Args:
        model: the module that both functions run.
        input_spec: preprocessing of images in [0, 1].
        encode_images: function from preprocessed images, (N, C, size, size), to embeddings, (N, D).
        encode_texts: function from N texts to embeddings, (N, D). Embeddings may have any length.
    """

    model: nn.Module
    input_spec: InputSpec
    encode_images: Callable[[Tensor], Tensor]
    encode_texts: Callable[[list[str]], Tensor]


def load_image_text(name: str, weights: str | Path | None = None, *, pretrained: bool = True) -> ImageTextModel:
    """Load a model of images and texts in evaluation mode, with its tokenizer and the preprocessing of its input.

    Args:
        name: ``"open_clip:ViT-B-32/laion2b_s34b_b79k"``, or a model of transformers, on the Hugging Face hub or in a
            local folder: ``"hf:openai/clip-vit-base-patch32"``, ``"hf:google/siglip-base-patch16-224"``.
        weights: a ``.safetensors`` file of the whole model, as for `load`. By default the library's pretrained weights,
            which the library downloads.
        pretrained: False initializes the model at random; configurations and tokenizers may still be downloaded.

    Raises:
        ModelError: if there is no such model, it has no text tower, its library is not installed, its preprocessing
            can't be expressed as an `InputSpec`, or the weights can't be read, don't fit or aren't finite.
    """
    library, _, rest = name.partition(":")
    if library not in _SOURCES or not rest:
        raise ModelError(f"a model of images and texts is open_clip:NAME or hf:NAME, not {name!r}")
    state = None if weights is None else read_weights(Path(weights))
    preset = pretrained and state is None
    with torch.random.fork_rng(), as_model_error(name, preset):  # fresh weights are drawn from global generators
        loaded = _SOURCES[library](rest, preset, state)
        check_finite(loaded.model, str(weights or name))
        loaded.model.eval()
        _check(name, loaded)
    return loaded


def _check(name: str, loaded: ImageTextModel) -> None:
    """Raise ModelError unless an image and a text have embeddings of one length."""
    with torch.no_grad():
        image = loaded.encode_images(loaded.input_spec.feed(loaded.model)(loaded.input_spec.gray()))
        text = loaded.encode_texts(["a word"])
    if image.ndim != 2 or image.shape != text.shape:
        raise ModelError(f"{name} embeds an image as {tuple(image.shape)} and a text as {tuple(text.shape)}")


def _from_open_clip(name: str, pretrained: bool, state: State | None) -> ImageTextModel:
    model = open_clip_model(name, pretrained)
    if state is not None:
        fit_weights(model, state, f"open_clip:{name}")
    tokenize = import_library("open_clip", "open-clip").get_tokenizer(name.partition("/")[0])

    def encode_texts(texts: list[str]) -> Tensor:
        found: Tensor = model.encode_text(tokenize(texts).to(_device(model)))
        return found

    return ImageTextModel(model, open_clip_spec(name, model.visual), model.encode_image, encode_texts)


def _from_transformers(name: str, pretrained: bool, state: State | None) -> ImageTextModel:
    model: Any = transformers_model(name, pretrained, state)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ModelError(f"hf:{name} is a {type(model).__name__}, which doesn't embed both images and texts")
    tokenizer = import_library("transformers", "transformers").AutoTokenizer.from_pretrained(
        name, trust_remote_code=False
    )
    text_config = model.config.text_config
    # SigLIP was trained on padded texts without a mask; CLIP's embedding doesn't depend on the padding
    options = {
        "padding": "max_length",
        "max_length": text_config.max_position_embeddings,
        "truncation": True,
        "return_attention_mask": not model.config.model_type.startswith("siglip"),
        "return_tensors": "pt",
    }

    def encode_texts(texts: list[str]) -> Tensor:
        return _features(model.get_text_features(**tokenizer(texts, **options).to(_device(model))))

    def encode_images(images: Tensor) -> Tensor:
        return _features(model.get_image_features(pixel_values=images))

    spec = transformers_spec(name, model.config.vision_config)
    return ImageTextModel(model, spec, encode_images, encode_texts)


_SOURCES: dict[str, Callable[[str, bool, State | None], ImageTextModel]] = {
    "open_clip": _from_open_clip,
    "hf": _from_transformers,
}


def _features(output: Any) -> Tensor:
    """Return the embeddings, which some versions of transformers wrap."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


def _device(model: nn.Module) -> torch.device | None:
    weight = first_floating_point(model)
    return None if weight is None else weight.device
