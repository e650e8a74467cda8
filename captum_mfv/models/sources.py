"""Models of torchvision, timm, transformers and open_clip, with the preprocessing that each library declares."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from types import ModuleType
from typing import Any

from PIL import Image
from torch import Tensor, nn

from captum_mfv.errors import MFVError, MFVWarning, ModelError
from captum_mfv.images import InputSpec
from captum_mfv.models.weights import check_fit

__all__ = [
    "LISTS",
    "SOURCES",
    "as_model_error",
    "from_torchvision",
    "import_library",
    "open_clip_model",
    "open_clip_spec",
    "torchvision_names",
    "transformers_model",
    "transformers_spec",
]

Loaded = tuple[nn.Module, InputSpec]
State = dict[str, Tensor]


@contextmanager
def as_model_error(name: str, pretrained: bool) -> Iterator[None]:
    """Raise ModelError for any error of a library, its downloads or a user's function, with the error's type and text.

    Args:
        name: the model, as the user named it.
        pretrained: whether the library downloads weights; the message then says how to do without.
    """
    try:
        yield
    except MFVError:
        raise
    except Exception as error:  # of any type
        way_out = "; without a download: give a weights file, or for hf: a local folder" if pretrained else ""
        text = " ".join(str(error).split()).rstrip(".")
        raise ModelError(f"{name} failed with {type(error).__name__}: {text}{way_out}") from error


def torchvision_names() -> list[str]:
    """Return the names of torchvision's image classifiers."""
    import torchvision.models  # here, since it takes a second to import

    return list(torchvision.models.list_models(module=torchvision.models))


def from_torchvision(name: str, pretrained: bool, progress: bool) -> Loaded:
    """Return a torchvision model and its preprocessing; ``progress`` shows a bar during a download."""
    import torchvision.models  # here, as in torchvision_names

    _check_known(name, torchvision_names(), "torchvision", ", and no file.py:function either")
    preset = torchvision.models.get_model_weights(name).DEFAULT
    options = {"weights": preset if pretrained else None, "progress": progress}
    if not pretrained and name in ("googlenet", "inception_v3"):  # they warn and start slowly otherwise
        options["init_weights"] = False
    model, transforms = torchvision.models.get_model(name, **options), preset.transforms()
    return model, _spec(
        name,
        transforms.crop_size[0],
        transforms.resize_size[0],
        transforms.mean,
        transforms.std,
        transforms.interpolation.value,
    )


def _from_timm(name: str, pretrained: bool, _state: State | None) -> Loaded:
    timm = import_library("timm", "timm")
    if not timm.is_model(name):
        _check_known(name, _timm_names(), "timm")
    model = timm.create_model(name, pretrained=pretrained)
    declared = timm.data.resolve_model_data_config(model)
    size, mode = declared["input_size"][1:], declared["crop_mode"]
    return model, _spec(
        name,
        size,
        [int(side / declared["crop_pct"]) for side in size],
        declared["mean"],
        declared["std"],
        declared["interpolation"],
        stretch=_stretch(name, mode),
    )


def _timm_names() -> list[str]:
    timm = import_library("timm", "timm")
    return sorted({*timm.list_models(), *timm.list_models(pretrained=True)})


def _from_transformers(name: str, pretrained: bool, state: State | None) -> Loaded:
    model = transformers_model(name, pretrained, state, tower="vision_model")
    _check_inputs(f"hf:{name}", model)
    return model, transformers_spec(name, model.config)


def transformers_model(name: str, pretrained: bool, state: State | None, tower: str | None = None) -> nn.Module:
    """Return a model of transformers, or of a model with several towers the one of a name."""
    transformers = import_library("transformers", "transformers")
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    is_classifier = any(kind.endswith("ForImageClassification") for kind in config.architectures or ())
    family = transformers.AutoModelForImageClassification if is_classifier else transformers.AutoModel
    options = {"config": config, "output_loading_info": True, "use_safetensors": True}
    if pretrained:
        model, found = family.from_pretrained(name, trust_remote_code=False, **options)
    else:
        model, found = family.from_config(config, trust_remote_code=False), None
    if state is not None:  # files have other names than modules, which only the model's class translates
        model, found = model.from_pretrained(None, state_dict=state, ignore_mismatched_sizes=True, **options)
    part: nn.Module = model if tower is None or is_classifier else getattr(model, tower, model)
    if found is not None:
        _check_found(f"hf:{name}", found, "" if part is model else f"{tower}.", state is not None)
    return part.float()


def _check_inputs(name: str, model: nn.Module) -> None:
    inputs = [one for one in signature(model.forward).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    needed = [one.name for one in inputs if one is inputs[0] or one.default is one.empty]
    if needed != ["pixel_values"]:
        raise ModelError(f"{name} takes {', '.join(needed)}; only models that take images alone can be used")
    if "ViTMAE" in type(model).__name__:
        raise ModelError(f"{name} drops patches at random, so that its units have no fixed activations")


def _check_found(name: str, found: Mapping[str, Any], tower: str, strict: bool) -> None:
    """Raise ModelError if weights don't fit; if not ``strict``, only warn of parameters that have no weights."""
    lacking = {key for key in found["missing_keys"] if key.startswith(tower)}
    shapes = {key for key, *_ in found["mismatched_keys"] if key.startswith(tower)}
    if strict:
        check_fit({"lacking": lacking, "unknown": found["unexpected_keys"], "of another shape": shapes}, name)
    elif lacking:
        some = f"{', '.join(sorted(lacking)[:3])}{' …' if len(lacking) > 3 else ''}"
        warnings.warn(f"the weights of {name} lack {some}: random numbers there", MFVWarning, stacklevel=2)


def transformers_spec(name: str, config: Any) -> InputSpec:
    """Return the preprocessing that a model's image processor declares; without one, mean and std are .5."""
    transformers = import_library("transformers", "transformers")
    try:
        declared = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        half, size = (0.5,) * getattr(config, "num_channels", 3), getattr(config, "image_size", 224)
        warnings.warn(
            f"hf:{name} has no readable image processor ({str(error).splitlines()[0]}); images are resized to {size} "
            f"pixels, with mean and std .5",
            MFVWarning,
            stacklevel=2,
        )
        return _spec(name, size, size, half, half, "bicubic", stretch=True)
    return _processor_spec(f"hf:{name}", declared)


def _processor_spec(name: str, declared: Mapping[str, Any]) -> InputSpec:
    """Return the preprocessing of an image processor of transformers, from its settings."""
    if declared.get("do_flip_channel_order"):
        raise ModelError(f"{name} takes channels in the order blue, green, red, which InputSpec can't express")
    short = declared["size"].get("shortest_edge")
    resized = short or _sides(declared["size"])
    size = _sides(declared["crop_size"]) if declared.get("do_center_crop") else resized
    share, stretch = declared.get("crop_pct"), short is None
    if share and short and short >= 384 and not declared.get("do_center_crop"):  # ConvNeXt's processor
        share, stretch = None, True
    if share:
        resized = int(short / share)
    normalized = declared.get("do_normalize") and declared.get("image_mean") is not None
    mean, std = (declared["image_mean"], declared["image_std"]) if normalized else ((0.0,) * 3, (1.0,) * 3)
    interpolation = Image.Resampling(declared.get("resample", Image.Resampling.BILINEAR)).name.lower()
    return _spec(name, size, resized, mean, std, interpolation, stretch)


def _sides(size: Mapping[str, int]) -> tuple[int, int]:
    return size["height"], size["width"]


def _from_open_clip(name: str, pretrained: bool, _state: State | None) -> Loaded:
    tower: nn.Module = open_clip_model(name, pretrained).visual
    return tower, open_clip_spec(name, tower)


def open_clip_model(name: str, pretrained: bool) -> Any:
    """Return a model of open_clip, ``ARCHITECTURE/WEIGHTS``, with both towers."""
    open_clip = import_library("open_clip", "open-clip")
    architecture, _, tag = name.partition("/")
    _check_known(architecture, open_clip.list_models(), "open_clip")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags and (tag or pretrained):
        raise ModelError(
            f"write open_clip:{architecture}/WEIGHTS, WEIGHTS being one of {', '.join(tags)}, not {tag!r}; or give a "
            f"weights file"
        )
    declared = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    return open_clip.create_model(
        architecture,
        pretrained=tag if pretrained else None,
        pretrained_hf=False,
        force_quick_gelu=declared.get("quick_gelu", False),
        force_preprocess_cfg=declared,
    )


def open_clip_spec(name: str, tower: Any) -> InputSpec:
    """Return the preprocessing that an image tower of open_clip declares."""
    images = tower.preprocess_cfg
    return _spec(
        name,
        images["size"],
        images["size"],
        images["mean"],
        images["std"],
        images["interpolation"],
        stretch=_stretch(name, images["resize_mode"]),
    )


def _open_clip_names() -> list[str]:
    open_clip = import_library("open_clip", "open-clip")
    tagged = [f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]
    return sorted([*open_clip.list_models(), *tagged])


SOURCES: dict[str, Callable[[str, bool, State | None], Loaded]] = {
    "timm": _from_timm,
    "hf": _from_transformers,
    "open_clip": _from_open_clip,
}
"""Functions from a model's name, whether it has pretrained weights, and a file's state dict, which only transformers
needs in advance, to the model and its preprocessing."""

LISTS: dict[str, Callable[[], list[str]]] = {"timm": _timm_names, "open_clip": _open_clip_names}
"""Functions that list a library's models without a download."""


def import_library(module: str, extra: str) -> ModuleType:
    """Import an optional library; ModelError names the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(f'{module} is not installed ({error}): pip install "captum-mfv[{extra}]"') from error


def _check_known(name: str, known: Sequence[str], library: str, more: str = "") -> None:
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
        raise ModelError(f"no {library} model {name!r} (the nearest are {near}){more}")


def _stretch(name: str, mode: str) -> bool:
    """Return whether images are resized to a square without a crop, from the mode of timm or open_clip."""
    modes = {"center": False, "shortest": False, "squash": True}
    if mode not in modes:
        raise ModelError(f"{name} pads images ({mode!r}), which InputSpec can't express")
    return modes[mode]


def _spec(
    name: str,
    size: int | Sequence[int],
    resized: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Any,
    stretch: bool = False,
) -> InputSpec:
    """Return the preprocessing that resizes images to ``resized`` and crops ``size``; ModelError if not square."""
    sides = {(side, side) if isinstance(side, int) else tuple(side) for side in (size, resized)}
    if any(height != width for height, width in sides):
        raise ModelError(f"{name} takes images of {size} pixels; only square ones are supported")
    side, short = (value if isinstance(value, int) else value[0] for value in (size, resized))
    return InputSpec(side, tuple(mean), tuple(std), min(1.0, side / short), interpolation, stretch)
