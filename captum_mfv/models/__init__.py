"""Models and their preprocessing, by name or of a user's function; models of images and texts; sparse autoencoders."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from captum_mfv.display.progress import on_terminal
from captum_mfv.errors import ModelError
from captum_mfv.images import InputSpec
from captum_mfv.models.functions import from_function
from captum_mfv.models.image_text import ImageTextModel, load_image_text
from captum_mfv.models.sae import load_sae
from captum_mfv.models.sources import LISTS, SOURCES, as_model_error, from_torchvision, torchvision_names
from captum_mfv.models.weights import check_finite, fit_weights, read_weights

__all__ = ["ImageTextModel", "autocast_dtype", "load", "load_image_text", "load_sae", "names"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def names(pattern: str = "*") -> list[str]:
    """Return the names of models that match a pattern with ``*`` and ``?``; nothing is downloaded.

    Args:
        pattern: without a prefix, of torchvision's image classifiers; ``"timm:vit*"`` or ``"open_clip:*"`` of another
            library's models.

    Raises:
        ModelError: if no name matches, the library is not installed or has no list.
    """
    library, colon, _ = pattern.partition(":")
    if colon and library not in LISTS:
        raise ModelError(f"models of {library}: can't be listed without a download; {', '.join(LISTS)} can")
    known = [f"{library}:{name}" for name in LISTS[library]()] if colon else torchvision_names()
    if not (found := [name for name in known if fnmatchcase(name, pattern)]):
        raise ModelError(f"no model matches {pattern!r}")
    return found


def load(
    name: str, weights: str | Path | None = None, *, pretrained: bool = True, progress: bool = True
) -> tuple[nn.Module, InputSpec]:
    """Load a model in evaluation mode, and the preprocessing of its input.

    Args:
        name: one of

            - a torchvision model: ``"resnet50"``;
            - a timm model: ``"timm:vit_base_patch16_224.augreg_in21k"``;
            - an image model of transformers, on the Hugging Face hub or in a local folder that ``save_pretrained``
              wrote: ``"hf:facebook/dinov2-base"``; the image tower of a model with two towers;
            - the image tower of an open_clip model: ``"open_clip:ViT-B-32/laion2b_s34b_b79k"``;
            - a function without arguments that returns the model, or the model and its `InputSpec`:
              ``"path/to/file.py:function"`` or ``"package.module:function"``. Such a file is *run*: name only files
              that you trust.
        weights: a ``.safetensors`` file, or (from PyTorch 2.10 on) a ``.pt`` or ``.pth`` file that holds only tensors.
            For an image tower, the file may hold the whole model. By default the library's pretrained weights, which
            the library downloads.
        pretrained: False initializes a library's model at random, without a download; ``hf:`` still reads the model's
            configuration.
        progress: show torchvision's progress bar during a download, on a terminal.

    Raises:
        ModelError: if there is no such model or function, its library is not installed, its preprocessing can't be
            expressed as an `InputSpec`, or the weights can't be read, don't fit or aren't finite.

    Warns:
        MFVWarning: if a transformers model declares no preprocessing, or its weights lack parameters.
    """
    path = None if weights is None else Path(weights)
    state = None if path is None else read_weights(path)
    library, colon, rest = name.partition(":")
    from_library = not colon or library in SOURCES
    preset = pretrained and from_library and state is None
    # Fresh weights are drawn from PyTorch's global generators
    with torch.random.fork_rng(), as_model_error(name, preset):
        if not from_library:
            model, spec = from_function(name)
        elif colon:
            model, spec = SOURCES[library](rest, preset, state)
        else:
            model, spec = from_torchvision(name, preset, progress and on_terminal())
    if state is not None and library != "hf":
        fit_weights(model, state, f"{name} and {path}")
    check_finite(model, str(path or name))
    return model.eval(), spec


def autocast_dtype(name: str | None) -> torch.dtype | None:
    """Return the type that a name stands for, for `torch.autocast`; None, the model's own type, for None."""
    if name is not None and name not in _DTYPES:
        raise ModelError(f"--dtype must be one of {', '.join(_DTYPES)}, not {name!r}")
    return None if name is None else _DTYPES[name]
