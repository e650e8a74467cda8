"""Other packages' images of facets or units, as methods of the benchmark.

Lucent has no facets: it renders as many images of the unit as there are facets, and the images are assigned to facets
by `scores.matched`. Horama renders one image per call, of the unit's mean activation; each step uses two crops of its
default size, where `render_facets` uses one image.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, InputSpec, stack
from captum_mfv.optvis.initializer import medoid_images
from captum_mfv.optvis.lucent import render_vis_arguments
from captum_mfv.optvis.param import mean_magnitudes
from captum_mfv.units import Unit, first_floating_point

__all__ = ["PEERS", "Peer", "Render"]

Render = Callable[..., Sequence[Any]]
"""A function (model, unit, facets, images, *, input_spec, seed, steps) that returns an image per facet."""

_DIVERSITY = 1e2  # weight of Lucent's objective, as in its tutorial
_N_SPECTRUM = 30  # images whose mean spectrum MACO keeps


def _lucent_recipe(
    model: nn.Module, unit: Unit, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    from lucent.optvis.render import render_vis

    arguments = render_vis_arguments(model, facets, images, input_spec=input_spec, seed=seed, steps=steps)
    return _images(render_vis(model, **arguments))


def _lucent(
    model: nn.Module, unit: Unit, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    from lucent.optvis import objectives

    return _lucent_images(
        model, objectives.channel(_lucent_name(unit.layer_name), unit.index), facets, input_spec, steps
    )


def _lucent_diversity(
    model: nn.Module, unit: Unit, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    from lucent.optvis import objectives

    objective = objectives.channel(_lucent_name(unit.layer_name), unit.index)
    objective -= _DIVERSITY * objectives.diversity(_lucent_name(facets.code.layer))
    return _lucent_images(model, objective, facets, input_spec, steps)


def _lucent_images(model: nn.Module, objective: Any, facets: FacetSet, spec: InputSpec, steps: int) -> list[Tensor]:
    """Return as many images of an objective as there are facets, by Lucent's defaults."""
    from lucent.optvis import param, transform
    from lucent.optvis.render import render_vis

    rendered = render_vis(
        model,
        objective,
        lambda: param.image(spec.size, batch=len(facets)),
        thresholds=[steps],
        transforms=[*transform.standard_transforms, lambda inputs: _normalized(inputs, spec)],
        preprocess=False,  # Lucent's has torchvision's mean and std
        show_image=False,
        progress=False,
    )
    return _images(rendered)


def _lucent_name(layer: str) -> str:
    return layer.replace(".", "_")


def _normalized(images: Tensor, spec: InputSpec) -> Tensor:
    """Return images of any size with the model's mean and standard deviation."""
    mean, std = (torch.tensor(numbers, device=images.device)[:, None, None] for numbers in (spec.mean, spec.std))
    return (images - mean) / std


def _images(rendered: Sequence[NDArray[np.float32]]) -> list[Tensor]:
    (pictures,) = rendered
    return list(torch.from_numpy(pictures).permute(0, 3, 1, 2))


def _horama_maco(
    model: nn.Module, unit: Unit, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    horama, made = importlib.import_module("horama"), []
    with _working_folder():  # Horama reads the spectrum from it
        for facet in facets:
            members = stack(images, facet.members[:_N_SPECTRUM].tolist())
            np.save("spectrum_decorrelated.npy", mean_magnitudes(members).numpy())
            made.append(horama.maco(_activation(model, unit), total_steps=steps, **_horama_options(model))[0])
    return [_shown(image, input_spec) for image in made]


@contextmanager
def _working_folder() -> Iterator[None]:
    """Work in a temporary folder."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _horama_accentuation(
    model: nn.Module, unit: Unit, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    horama, options, made = importlib.import_module("horama"), _horama_options(model), []
    for medoid in medoid_images(facets.facets, images):
        start = input_spec(medoid[None])[0].to(options["device"])
        options |= {"values_range": (float(start.min()), float(start.max()))}
        made.append(horama.accentuation(_activation(model, unit), start, total_steps=steps, **options)[0])
    return [_shown(image, input_spec) for image in made]


def _horama_options(model: nn.Module) -> dict[str, Any]:
    weight = first_floating_point(model)
    device = "cpu" if weight is None else str(weight.device)
    return {"image_size": 448, "box_size": (0.57, 0.71), "crops_per_iteration": 2, "device": device}


def _activation(model: nn.Module, unit: Unit) -> Callable[[Tensor], Tensor]:
    """Return the mean activation of a unit of the model's output as a function of normalized images."""
    return lambda inputs: unit.read(model(inputs)).mean()


def _shown(normalized: Tensor, spec: InputSpec) -> Tensor:
    """Return a normalized image of any size in [0, 1] at the model's size."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
    return spec.resize((normalized.detach().cpu() * std + mean).clamp(0, 1)[None])[0]


@dataclass(frozen=True)
class Peer:
    """Another package's method.

    Args:
        summary: what is rendered, in one line.
        render: the function.
        module: the module that must be installed.
        distribution: the name of the package that has the module, for pip.
        has_facets: whether the images are of facets; otherwise they are assigned to facets afterwards.
    """

    summary: str
    render: Render
    module: str = "lucent"
    distribution: str = "torch-lucent"
    has_facets: bool = True


PEERS: Mapping[str, Peer] = {
    "lucent-recipe": Peer("the recipe facet in Lucent's own loop (optvis.lucent.render_vis_arguments)", _lucent_recipe),
    "lucent": Peer("images of the unit with Lucent's defaults", _lucent, has_facets=False),
    "lucent-diversity": Peer("the same with Lucent's diversity objective", _lucent_diversity, has_facets=False),
    "horama-maco": Peer(
        "Horama's MACO with the spectrum of the facet's images; the unit must be of the output",
        _horama_maco,
        "horama",
        "horama einops",
    ),
    "horama-accentuation": Peer(
        "Horama's accentuation of the real image nearest to the facet's center; the unit must be of the output",
        _horama_accentuation,
        "horama",
        "horama einops",
    ),
}
"""Other packages' methods by name."""
