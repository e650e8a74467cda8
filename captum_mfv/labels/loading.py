"""A namer by name: colors, a model of images and texts, or a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from captum_mfv.errors import LabelError
from captum_mfv.labels.appearance import AppearanceNamer
from captum_mfv.labels.namers import ClassifierNamer, ImageTextNamer, Namer
from captum_mfv.labels.words import common_words
from captum_mfv.models import load, load_image_text
from captum_mfv.models.sources import as_model_error, import_library

__all__ = ["load_namer"]


def load_namer(
    name: str,
    weights: str | Path | None = None,
    words: Sequence[str] | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Namer:
    """Return a namer by the name of what scores the images.

    Args:
        name: ``"colors"``, an `AppearanceNamer`; a model of images and texts of open_clip or transformers, as
            `models.load_image_text` names it; or a classifier, as `models.load` names it.
        weights: a file of the model's weights.
        words: the words; by default `common_words` for a model of images and texts, and the names of a classifier's
            classes. Colors have words of their own.
        device: the device of the model; None: the CPU.
        progress: show the progress of downloads.

    Raises:
        LabelError: if words or weights are given for colors, or the words don't fit.
        ModelError: if the model can't be loaded.
    """
    if name == "colors":
        if weights is not None or words is not None:
            raise LabelError("colors have words of their own and no weights; leave out words and weights")
        return AppearanceNamer()
    if _reads_texts(name):
        both = load_image_text(name, weights)
        both.model.to(device)
        return ImageTextNamer(both, common_words() if words is None else words)
    model, spec = load(name, weights, progress=progress)
    return ClassifierNamer(model.to(device), words, spec)


def _reads_texts(name: str) -> bool:
    """Return whether a model embeds images and texts; of transformers, its configuration says so."""
    library, _, rest = name.partition(":")
    if library != "hf":
        return library == "open_clip"
    with as_model_error(name, pretrained=True):
        config = import_library("transformers", "transformers").AutoConfig
        return hasattr(config.from_pretrained(rest, trust_remote_code=False), "text_config")
