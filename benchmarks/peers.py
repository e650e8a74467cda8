"""Other packages' images of facets, for `suite.py` and `quality.py`.

Each function is called like `captum_mfv.optvis.render.render_facets`, with ``input_spec``, ``seed`` and ``steps``, and
returns an image per facet, (C, H, W) in [0, 1], all at the model's size:

lucent_recipe        the recipe facet in Lucent's own loop (`render_vis_arguments`), as README shows it
lucent_defaults      images of the unit with Lucent's defaults
lucent_diversity     the same with its diversity objective
horama_maco          Horama's MACO with the spectrum of the facet's images (`pip install horama einops`)
horama_accentuation  Horama's accentuation from the real image nearest to the facet's center

Lucent has no facets: the images of the functions in ``NO_FACETS`` are in any order, and `matched` assigns them to
facets. Horama renders one image per call; each step uses two crops of its default size, where `render_facets` uses one
image. `vital.py` has another peer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import chdir
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from captum_mfv import FacetSet, InputSpec
from captum_mfv.images import Images
from captum_mfv.metrics import Judge, LabeledOutput
from captum_mfv.metrics.scores import confusion
from captum_mfv.optvis import initializer
from captum_mfv.optvis.lucent import render_vis_arguments
from captum_mfv.optvis.param import mean_magnitudes

_HORAMA = {"image_size": 448, "box_size": (0.57, 0.71), "crops_per_iteration": 2, "device": "cpu"}


def lucent_recipe(
    model: nn.Module, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    from lucent.optvis.render import render_vis

    network = copy.deepcopy(model)  # Lucent leaves its hooks
    options = {"input_spec": input_spec, "seed": seed, "steps": steps}
    return _images(render_vis(network, **render_vis_arguments(network, facets, images, **options)))


def lucent_defaults(
    model: nn.Module, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    return _lucent(model, facets, input_spec, seed, steps, diversity=False)


def lucent_diversity(
    model: nn.Module, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    return _lucent(model, facets, input_spec, seed, steps, diversity=True)


NO_FACETS = (lucent_defaults, lucent_diversity)


def _lucent(
    model: nn.Module, facets: FacetSet, spec: InputSpec, seed: int, steps: int, diversity: bool
) -> list[Tensor]:
    """Return as many images of the unit as there are facets."""
    from lucent.optvis import objectives, param, transform
    from lucent.optvis.render import render_vis

    objective = objectives.channel(facets.unit.layer_name.replace(".", "_"), facets.unit.index)
    if diversity:
        objective = objective - 1e2 * objectives.diversity(facets.code.layer.replace(".", "_"))
    np.random.seed(seed)  # noqa: NPY002 - Lucent draws from the global generators
    torch.manual_seed(seed)
    return _images(
        render_vis(
            copy.deepcopy(model),
            objective,
            lambda: param.image(spec.size, batch=len(facets)),
            thresholds=[steps],
            transforms=[*transform.standard_transforms, lambda inputs: _normalized(inputs, spec)],
            preprocess=False,  # Lucent's has torchvision's mean and std
            show_image=False,
            progress=False,
        )
    )


def _normalized(images: Tensor, spec: InputSpec) -> Tensor:
    """Return images of any size with the model's mean and standard deviation."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
    return (images - mean) / std


def _images(rendered: Sequence[np.ndarray]) -> list[Tensor]:
    (pictures,) = rendered
    return list(torch.from_numpy(pictures).permute(0, 3, 1, 2))


def horama_maco(
    model: nn.Module, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    import horama

    torch.manual_seed(seed)
    made = []
    with TemporaryDirectory() as folder, chdir(folder):  # Horama reads the spectrum from the working folder
        for facet in facets:
            members = torch.stack([images[int(i)] for i in facet.members[:30]])
            np.save("spectrum_decorrelated.npy", mean_magnitudes(members).numpy())
            made.append(horama.maco(_drive(model, facets), total_steps=steps, **_HORAMA)[0])
    return [_shown(image, input_spec) for image in made]


def horama_accentuation(
    model: nn.Module, facets: FacetSet, images: Images, *, input_spec: InputSpec, seed: int, steps: int
) -> list[Tensor]:
    import horama

    torch.manual_seed(seed)
    made = []
    for medoid in initializer.medoid_images(facets.facets, images):
        start = input_spec(medoid[None])[0]
        options = {"values_range": (float(start.min()), float(start.max())), **_HORAMA}
        made.append(horama.accentuation(_drive(model, facets), start, total_steps=steps, **options)[0])
    return [_shown(image, input_spec) for image in made]


def matched(made: Sequence[Tensor], judge: Judge, real: LabeledOutput) -> list[Tensor]:
    """Return images of the unit in the order that matches them best to facets."""
    similar = confusion(judge(made).codes, real.kept().images.codes, real.kept().labels, centered=True)
    rows, facets = linear_sum_assignment(-similar)
    return [made[rows[k]] for k in np.argsort(facets)]


def _drive(model: nn.Module, facets: FacetSet) -> Callable[[Tensor], Tensor]:
    """Return the unit's mean activation as a function of normalized images."""
    return lambda inputs: facets.unit.read(model(inputs)).mean()


def _shown(normalized: Tensor, spec: InputSpec) -> Tensor:
    """Return a normalized image of any size in [0, 1] at the model's size."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (spec.mean, spec.std))
    return spec.resize((normalized.detach() * std + mean).clamp(0, 1)[None])[0]
