"""Attributions as maps of the image's size, one facet an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import captum.attr
import torch
from captum.attr import Attribution, LayerAttribution
from torch import Tensor, nn

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.activations.capture import guard
from captum_mfv.activations.layers import spatial_layers, trace
from captum_mfv.attr.attribution import FacetAttribution, LayerFacetAttribution
from captum_mfv.attr.methods import check_method
from captum_mfv.attr.model import FacetModel
from captum_mfv.display.progress import Progress
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import InputSpec

__all__ = ["facet_maps"]

_BATCH = 16  # images explained together, at most


def facet_maps(
    model: nn.Module,
    facets: FacetSet,
    images: Tensor | Sequence[Tensor],
    targets: Sequence[int],
    *,
    method: str | None = None,
    input_spec: InputSpec | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """Where each image shows its facet: attributions of the facet against the others.

    Args:
        model: the model in which the facets were found; left as it was.
        facets: the facets.
        images: (N, C, H, W) in [0, 1], all of one size.
        targets: the facet of each image.
        method: name of a class of `captum.attr`, to inputs or to a layer, which is the code's. By default
            gradient times activation of the code's layer where that has positions: of a pooled code it
            is exact, each position's own share of the facet's score. Elsewhere integrated gradients.
        input_spec: what turns images into the model's input.
        progress: show a progress bar.
        **options: what the method's ``attribute`` takes, such as ``n_steps``.

    Returns:
        (N, H, W), summed over channels, on the CPU; of a layer's positions, interpolated bilinearly.

    Raises:
        FacetError: if there is no such method, or it can't explain facets.
    """
    spec, images = input_spec or InputSpec(), torch.stack(tuple(images))
    feed = spec.feed(model)
    method = method or _default(model, facets, feed(images[:1]))
    with guard(model):
        explain = _explainer(method, FacetModel(model, facets), contrast=len(facets) > 1)
        with Progress(total=len(images), desc="attributions", unit="image", disable=not progress) as bar:

            def explained(rows: slice) -> Tensor:
                found = _summed(explain.attribute(feed(images[rows]), target=list(targets[rows]), **options))
                bar.update(len(found))
                return found

            found = AdaptiveBatches(cpu_batch_size(model, spec, _BATCH))(len(images), explained)
    maps = torch.cat(found)[:, None]
    shape = tuple(images.shape[-2:])
    if maps.shape[-2:] != shape:
        maps = torch.nn.functional.interpolate(maps, shape, mode="bilinear", align_corners=False)
    return maps[:, 0]


def _default(model: nn.Module, facets: FacetSet, x: Tensor) -> str:
    calls = trace(model, x, until=(facets.code.layer, facets.unit.layer_name))
    found = next(call for call in calls if call.name == facets.code.layer)
    in_positions = len(found.shape) == 4 and found.name in spatial_layers(calls, facets.unit.layer_name)
    return "LayerGradientXActivation" if in_positions and facets.code.channels != "last" else "IntegratedGradients"


def _explainer(name: str, model: FacetModel, contrast: bool) -> Attribution:
    check_method(name)
    method = getattr(captum.attr, name)
    if issubclass(method, LayerAttribution):
        return LayerFacetAttribution(method, model, model.model.get_submodule(model.code.layer), contrast=contrast)
    return FacetAttribution(method, model, contrast=contrast)


def _summed(attributions: Tensor) -> Tensor:
    if attributions.ndim != 4:
        shape = tuple(attributions.shape)
        raise FacetError(f"attributions of shape {shape} have no positions to make a map of; attribute to inputs")
    return attributions.sum(1).float().cpu()
