"""The facet initializer: where the synthesis of a facet starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_mfv.errors import FacetError
from captum_mfv.facets import Facet
from captum_mfv.images import Images, stack
from captum_mfv.optvis.param import ParamF, fft_image_from

__all__ = ["as_facets", "mean_image", "mean_images", "noise_images"]


def mean_image(
    facet: Facet | Sequence[Facet],
    images: Images,
    n_images: int = 15,
    *,
    param: Callable[[Tensor], ParamF] = fft_image_from,
    device: torch.device | str = "cpu",
) -> ParamF:
    """Start at the plain pixel mean of the images nearest to the facet's center (arXiv 1602.03616).

    Args:
        facet: a facet, or several: one image of the batch for each.
        images: the dataset in which the facets were found.
        n_images: how many of the nearest members are averaged; the paper's is 15.
        param: the parameterization to start, such as `param.fft_image_from` or `param.pixel_image_from`.
        device: where the parameters live.

    Returns:
        A ``param_f`` for Lucent's render loop or ours.
    """
    return param(mean_images(as_facets(facet), images, n_images).to(device))


def mean_images(facets: Sequence[Facet], images: Images, n_images: int = 15) -> Tensor:
    """The mean image of each facet's nearest members, (n_facets, C, H, W) in [0, 1]."""
    if n_images < 1:
        raise FacetError(f"n_images must be at least 1, not {n_images}")
    return torch.stack([stack(images, facet.members[:n_images]).mean(0) for facet in facets])


def noise_images(
    shape: tuple[int, int, int], generators: Sequence[torch.Generator], mean: float = 0.5, std: float = 0.01
) -> Tensor:
    """Independent normal pixels, one image of a shape for each generator, clipped to [0, 1]."""
    draws = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return (draws * std + mean).clamp(0, 1)


def as_facets(facet: Facet | Sequence[Facet]) -> tuple[Facet, ...]:
    """One facet or several as a tuple.

    Raises:
        TypeError: if something else came.
        FacetError: if there are none, or they belong to different units.
    """
    facets = (facet,) if isinstance(facet, Facet) else tuple(facet)
    for item in facets:
        if not isinstance(item, Facet):
            raise TypeError(f"facet must be a Facet or a sequence of them, not {type(item).__name__}")
    if not facets:
        raise FacetError("at least one facet is needed")
    if any(item.unit != facets[0].unit or item.code != facets[0].code for item in facets):
        raise FacetError("facets of one batch must belong to one unit and one code")
    return facets
