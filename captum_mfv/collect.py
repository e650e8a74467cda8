"""Stream a dataset through a model once: a unit's activation and a code for every image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from captum_mfv.activations import capture, code_layer, guard, layer_name, place, trace
from captum_mfv.errors import ImageError, UnitError
from captum_mfv.images import Images, InputSpec, batches
from captum_mfv.units import Code, Unit

__all__ = ["Collection", "View", "collect", "resolve"]

View: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Collection:
    """What a unit and a code layer say of each image that could be read.

    Args:
        unit: the unit, its layer by name.
        code: the code, its layer by name.
        indices: (N,) where the images stand in the dataset.
        activations: (N,) float32, the unit's activation.
        codes: (N, D) float32.
        views: (N, D') float32, what a function of the caller's says of each image, or None.
        n_images: the dataset's length, images that can't be read included.
    """

    unit: Unit
    code: Code
    indices: NDArray[np.int64]
    activations: NDArray[np.float32]
    codes: NDArray[np.float32]
    views: NDArray[np.float32] | None
    n_images: int


def collect(
    model: nn.Module,
    unit: Unit,
    images: Images,
    *,
    code: Code | str | None = None,
    view: View | None = None,
    input_spec: InputSpec | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Collection:
    """A unit's activation and a code for every image of a dataset, in one pass.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: the unit.
        images: a map-style dataset of images in [0, 1].
        code: which numbers describe an image; a layer's name means its mean over positions. By default
            the last layer with positions before the unit, pooled so.
        view: another description of images: a function from (N, C, H, W) in [0, 1] to (N, D').
        input_spec: what turns images into the model's input.
        batch_size: images in one forward pass.
        progress: show a progress bar.

    Raises:
        UnitError: if the unit or the code isn't in the model, or is ambiguous.
        ImageError: if no image can be read.
    """
    spec = input_spec or InputSpec()
    unit, code = resolve(model, unit, code, spec)
    feed = spec.feed(model)
    indices: list[int] = []
    activations, codes, views = [], [], []
    with guard(model), tqdm(total=len(images), desc="activations", unit="image", disable=not progress) as bar:
        for index, batch in batches(images, batch_size):
            with torch.no_grad(), capture(model, (unit.layer_name, code.layer)) as run:
                outputs = run(feed(batch))
            activations.append(unit.read(outputs[unit.layer_name]).float().cpu())
            codes.append(code.read(outputs[code.layer]).float().cpu())
            if view is not None:
                views.append(_view(view, batch.to(outputs[code.layer].device)))
            indices += index
            bar.update(len(index))
    if not indices:
        raise ImageError("no image can be read")
    return Collection(
        unit,
        code,
        np.array(indices, np.int64),
        torch.cat(activations).numpy(),
        torch.cat(codes).numpy(),
        torch.cat(views).numpy() if views else None,
        len(images),
    )


def _view(view: View, batch: Tensor) -> Tensor:
    codes = view(batch)
    if not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) != len(batch):
        found = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"a function that describes {len(batch)} images must return ({len(batch)}, D), not {found}")
    return codes.detach().float().cpu()


def resolve(model: nn.Module, unit: Unit, code: Code | str | None, spec: InputSpec) -> tuple[Unit, Code]:
    """Unit and code with their layers by name, checked against one forward pass of a grey image.

    Raises:
        UnitError: if a layer isn't in the model, doesn't run once, or has no such channel.
    """
    unit = replace(unit, layer=layer_name(model, unit.layer))
    grey = spec.feed(model)(spec.grey())
    calls = trace(model, grey)
    if isinstance(code, str):
        code = Code(layer_name(model, code))
    elif code is None:
        code = Code(code_layer(calls, unit.layer_name))
    for layer in (unit.layer_name, layer_name(model, code.layer)):
        place(calls, layer)  # refuses a layer that runs never or several times
    with guard(model), torch.no_grad(), capture(model, (unit.layer_name, code.layer)) as run:
        outputs = run(grey)
        unit.read(outputs[unit.layer_name])
        if code.read(outputs[code.layer]).ndim != 2:
            raise UnitError(f"the code of layer {code.layer} isn't (N, D)")
    return unit, code
