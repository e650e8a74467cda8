"""Start images of a facet's synthesis.

``param`` is the parameterization to start, such as `param.fft_image_from` or `param.pixel_image_from`. Several facets
start one image of the batch each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import SupportsIndex, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.images import Images, InputSpec, batches, stack
from captum_mfv.images.preprocessing import resize
from captum_mfv.optvis.arguments import Facets, as_facets
from captum_mfv.optvis.param import (
    ParamF,
    color_matrix,
    fft_image_from,
    maco_image_from,
    mean_magnitudes,
    pixel_image_from,
)
from captum_mfv.optvis.recipes import Recipe
from captum_mfv.storage.schema import check_integer

__all__ = [
    "maco_image",
    "mean_image",
    "mean_images",
    "measured_colors",
    "measures_colors",
    "medoid_image",
    "medoid_images",
    "noise_image",
    "noise_images",
    "own_generator",
    "parameterize",
    "spectra",
    "spectral_images",
    "start_images",
]

Param: TypeAlias = Callable[[Tensor], ParamF]
Device: TypeAlias = torch.device | str

_N_COLORED = 100  # images on which colors are measured
_CONTRAST = 0.4  # factor of magnitudes; at 1, colors start saturated, where the gradient vanishes


def mean_image(
    facet: Facets, images: Images, n_images: int = 15, *, param: Param = fft_image_from, device: Device = "cpu"
) -> ParamF:
    """Start at the pixel mean of the images nearest to the facet's center (arXiv 1602.03616).

    Args:
        facet: a facet or several.
        images: the dataset in which the facets were found.
        n_images: how many of the nearest members are averaged; the paper's is 15.
        param: the parameterization to start.
        device: device of the parameters.

    Returns:
        A ``param_f`` for Lucent's render loop or ours.
    """
    return param(mean_images(as_facets(facet), images, n_images).to(device))


def medoid_image(facet: Facets, images: Images, *, param: Param = fft_image_from, device: Device = "cpu") -> ParamF:
    """Start at a real image, the one nearest to the facet's center; arguments as for `mean_image`."""
    return param(medoid_images(as_facets(facet), images).to(device))


def noise_image(
    facet: Facets,
    images: Images,
    n_images: int = 30,
    *,
    seed: SupportsIndex = 0,
    param: Param = fft_image_from,
    device: Device = "cpu",
) -> ParamF:
    """Start at noise, from a seed, with the mean color and the spectrum of the facet's nearest members."""
    facets, number = as_facets(facet), check_integer(seed, "seed")
    noise = spectral_images(facets, images, [own_generator(number, item) for item in facets], n_images)
    return param(noise.to(device))


def maco_image(
    facet: Facets, images: Images, n_images: int = 30, *, seed: SupportsIndex = 0, device: Device = "cpu"
) -> ParamF:
    """Start at the noise of `noise_image`, with fixed magnitudes (`param.maco_image_from`); the same arguments."""
    param = partial(maco_image_from, magnitudes=spectra(as_facets(facet), images, n_images))
    return noise_image(facet, images, n_images, seed=seed, param=param, device=device)


def mean_images(facets: Sequence[Facet], images: Images, n_images: int = 15) -> Tensor:
    """Return the mean image of each facet's nearest members, (n_facets, C, H, W) in [0, 1]."""
    return torch.stack([_nearest(facet, images, n_images).mean(0) for facet in facets])


def medoid_images(facets: Sequence[Facet], images: Images) -> Tensor:
    """Return the member nearest to each facet's center, (n_facets, C, H, W) in [0, 1]."""
    return stack(images, [facet.members[0] for facet in facets])


def noise_images(
    shape: tuple[int, int, int], generators: Sequence[torch.Generator], mean: float = 0.5, std: float = 0.01
) -> Tensor:
    """Return independent normal pixels, one image of a shape for each generator, clipped to [0, 1]."""
    draws = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return (draws * std + mean).clamp(0, 1)


def spectral_images(
    facets: Sequence[Facet],
    images: Images,
    generators: Sequence[torch.Generator],
    n_images: int = 30,
    size: int | None = None,
) -> Tensor:
    """Return noise with each facet's mean color and magnitudes, (n_facets, C, H, W) in [0, 1]."""
    starts = []
    for facet, generator in zip(facets, generators, strict=True):
        members = _nearest(facet, images, n_images, size)
        noise = 0.01 * torch.randn(members[:1].shape, generator=generator)
        start = (members.mean(dim=(0, 2, 3), keepdim=True) + noise).clamp(0, 1)
        magnitudes = mean_magnitudes(members)
        magnitudes[:, 1:] *= _CONTRAST  # all but the mean color, which is at frequency 0
        magnitudes[:, 0, 1:] *= _CONTRAST
        _, image_f = maco_image_from(start, magnitudes)()
        starts.append(image_f().detach())
    return torch.cat(starts)


def spectra(
    facets: Sequence[Facet], images: Images, n_images: int = 30, size: int | None = None, colors: Tensor | None = None
) -> Tensor:
    """Return mean magnitudes of each facet's nearest members, (n_facets, C, H, W // 2 + 1), for `maco_image_from`."""
    nearest = (_nearest(facet, images, n_images, size) for facet in facets)
    return torch.stack([mean_magnitudes(members, colors=colors) for members in nearest])


def start_images(
    recipe: Recipe,
    facets: Sequence[Facet],
    images: Images,
    generators: Sequence[torch.Generator],
    shape: tuple[int, int, int],
) -> Tensor:
    """Return the images from which a recipe starts, (n_facets, C, H, W) in [0, 1], of a shape (C, side, side)."""
    size = shape[-1]
    if recipe.start == "noise":
        return noise_images(shape, generators, *recipe.noise)
    if recipe.start == "spectrum":
        return spectral_images(facets, images, generators, size=size)
    if recipe.start == "medoid":
        return resize(medoid_images(facets, images), size)
    return resize(mean_images(facets, images, recipe.n_images), size)


def parameterize(
    recipe: Recipe, start: Tensor, facets: Sequence[Facet], images: Images, colors: Tensor | None = None
) -> ParamF:
    """Return a recipe's parameterization, started at images, (n_facets, C, H, W) in [0, 1]."""
    if recipe.param == "pixel":
        return pixel_image_from(start)
    if recipe.param == "fft":
        return fft_image_from(start, colors=colors)
    magnitudes = spectra(facets, images, size=start.shape[-1], colors=colors)
    return maco_image_from(start, magnitudes, colors=colors)


def measures_colors(recipe: Recipe, spec: InputSpec) -> bool:
    """Return whether the color decorrelation is measured on the dataset, so that images depend on all of it."""
    return recipe.colors != "imagenet" or spec.channels not in (1, 3)


def measured_colors(recipe: Recipe, images: Images, spec: InputSpec) -> Tensor | None:
    """Return the color decorrelation, measured on images evenly spread over the dataset; None: ImageNet's, or gray."""
    if not measures_colors(recipe, spec):
        return None
    spread = np.unique(np.linspace(0, len(images) - 1, _N_COLORED).astype(int)).tolist()
    _, sample = next(batches(Subset(images, spread), _N_COLORED))  # type: ignore[arg-type]
    return color_matrix(sample)


def own_generator(seed: int, facet: Facet) -> torch.Generator:
    """Return the generator of a facet's image, which doesn't depend on the batch; on the CPU, so that devices agree."""
    state = np.random.SeedSequence([abs(seed), int(seed < 0), facet.index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _nearest(facet: Facet, images: Images, n_images: int, size: int | None = None) -> Tensor:
    if n_images < 1:
        raise FacetError(f"n_images must be at least 1, not {n_images}")
    members = stack(images, facet.members[:n_images])
    return members if size is None else resize(members, size)
