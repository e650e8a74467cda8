"""VITAL's images of facets (arXiv 2503.22399), by its own code, as a method of
`captum-mfv bench`: `benchmarks/vital.py:vital`.

Clone https://github.com/adagorgun/VITAL (commit eb5de7e was measured) and name the folder in the environment variable
VITAL. The code is that of class neurons, ``class_fvis``: an image's channels, sorted, are drawn toward those of real
images in five layers. The objective doesn't contain the unit. Called once for each facet, with the facet's images as
the real ones; its defaults otherwise: Adam on pixels from noise, learning rate 1 after a warm-up of 100 steps, then a
cosine, jitter of 30 pixels. At 100 steps or fewer an image has only seen the warm-up.

The code knows four families of architectures, reads ImageNet's folders and needs a CUDA device. While it runs, these
names of it are replaced:

obtain_real_imgs          returns the facet's 50 nearest images
create_feature_extractor  reads the layers in ``LAYERS``: a first convolution and the last maps of four resolutions
                          (SqueezeNet has three after the first convolution: two of the second)
sort_matching             is called with the mean of the real images' sorted channels, which it would compute at every
                          step; the loss is the same
torch.randn               creates the start on the model's device instead of "cuda"

Layers have the weight 1, as in its configuration of ResNet-50. The network receives images with its own mean and
standard deviation.
"""

from __future__ import annotations

import functools
import importlib
import os
import random
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from captum_mfv import FacetSet, InputSpec, Unit
from captum_mfv.images import Images, stack
from captum_mfv.images.files import from_pil

LAYERS = {
    "SqueezeNet": ("features.1", "features.5", "features.8", "features.10", "features.12"),
    "MobileNetV1": ("features.0.1", "features.6", "features.10", "features.22", "features.26"),
    "EfficientNetLite": ("features.0.0", "features.4", "features.7", "features.15", "features.22"),
}
"""Layers of a network's class that are matched, from the input to the output."""

WEIGHTS = (1, 1, 1, 1, 1)

_NAMES = ("conv1", "layer1", "layer2", "layer3", "layer4")  # what VITAL calls them
_MEAN, _STD = (torch.tensor(numbers)[:, None, None] for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class _FromImageNet(nn.Module):
    """A network whose input has ImageNet's mean and standard deviation, which VITAL clips and denormalizes by."""

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model = model
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
        self.register_buffer("scale", _STD / std)
        self.register_buffer("shift", (_MEAN - mean) / std)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs * self.scale + self.shift)


def vital(
    model: nn.Module, unit: Unit, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    code = _code()
    device = next(model.parameters()).device
    network = _FromImageNet(model, input_spec).eval().to(device)
    layers = {f"model.{layer}": name for layer, name in zip(LAYERS[type(model).__name__], _NAMES, strict=True)}
    made = []
    for facet in facets:
        members = ((input_spec.resize(stack(images, facet.members[:50])) - _MEAN) / _STD).to(device)
        random.seed(1000 * seed + facet.index)  # VITAL draws from the global generators
        torch.manual_seed(1000 * seed + facet.index)
        made.append(_image(code, network, layers, members, input_spec.size, steps))
    return made


def _image(
    code: ModuleType, network: nn.Module, layers: dict[str, str], members: Tensor, size: int, steps: int
) -> Tensor:
    """Return one image by VITAL's own code."""
    parameters = {"resolution": size, "do_flip": False, "setting_id": 1, "jitter": 30, "bs": 1, "epochs": steps}
    parameters |= {"num_real_img": len(members), "arch_name": "resnet50"}
    coefficients = {"tv_l1": 0.0, "tv_l2": 0.0, "l2": 0.0, "lr": 1.0, "feat_dist": 1.0, "layer_weights": WEIGHTS}
    leaves = {type(module) for module in network.modules() if not list(module.children())}

    def extractor(model: nn.Module, return_nodes: Any) -> nn.Module:
        return create_feature_extractor(model, layers, tracer_kwargs={"leaf_modules": list(leaves)})

    with TemporaryDirectory() as folder, ExitStack() as patches:
        replaced = {
            "obtain_real_imgs": lambda targets, num_real_img: members,
            "create_feature_extractor": extractor,
            "sort_matching": _sorted_once(code.sort_matching),
        }
        for name, function in replaced.items():
            patches.enter_context(patch.object(code, name, function))
        patches.enter_context(patch("torch.randn", _on_device(members.device)))
        engine = code.DeepFeaturesClass(network, parameters, coefficients, "image", folder)
        engine.get_images(targets=0)
        return from_pil(Image.open(Path(folder) / "image_0.png"))


def _code() -> ModuleType:
    """Return VITAL's module of class neurons."""
    if not (folder := os.environ.get("VITAL")):
        raise RuntimeError("the environment variable VITAL must name a clone of https://github.com/adagorgun/VITAL")
    if (path := str(Path(folder) / "class_fvis")) not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module("utils.opt_utils")


def _sorted_once(sort_matching: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the loss with the mean of the real images' sorted channels kept, as an image whose channels are sorted."""

    @functools.cache
    def mean_sorted(target: Tensor) -> Tensor:
        return target.flatten(2).sort(-1).values.mean(0, keepdim=True).view(1, *target.shape[1:])

    return lambda target, input: sort_matching(target=mean_sorted(target), input=input)


def _on_device(device: torch.device) -> Callable[..., Tensor]:
    randn = torch.randn

    def on_device(*size: Any, **options: Any) -> Tensor:
        return randn(*size, **{**options, "device": device})

    return on_device
