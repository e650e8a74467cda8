"""Codes from attributions: facets are images in which different features cause the unit's activation."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerAttribution, LayerGradientXActivation
from torch import Tensor, nn

from captum_mfv.activations.capture import batch_axis
from captum_mfv.activations.layers import resolve
from captum_mfv.attr.model import cast_inputs, to_float, unit_forward
from captum_mfv.images import InputSpec, check_range
from captum_mfv.units import Unit, channels_second

__all__ = ["AttributionCode", "pure_code"]


class AttributionCode:
    """Codes from attributions to a layer: they group images by the features that cause the unit's activation.

    A function from images in [0, 1], (N, C, H, W), to codes, (N, D), for `find_facets(…, code=…)`:
    attributions summed over positions, those of several layers concatenated.

    Args:
        attribution: any of Captum's layer attributions, of the model in which facets are to be found.
        positive: set negative attributions to 0 before the sum, as PURE does.
        input_spec: preprocessing from images in [0, 1] to the model's input.
        **arguments: the arguments of the attribution's ``attribute`` other than inputs, such as ``target``.

    Raises:
        TypeError: if ``attribution`` isn't a `captum.attr.LayerAttribution`.
    """

    def __init__(
        self,
        attribution: LayerAttribution,
        *,
        positive: bool = True,
        input_spec: InputSpec | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(attribution, LayerAttribution):
            raise TypeError(f"attribution must be a captum.attr.LayerAttribution, not {type(attribution).__name__}")
        self.attribution, self.positive, self.arguments = attribution, positive, arguments
        self.input_spec = input_spec or InputSpec()

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the codes, (N, D), detached, on the CPU, in float32 or the model's wider precision.

        Raises:
            ImageError: if the images aren't in [0, 1].
        """
        inputs, model = self.input_spec(check_range(images)), self.attribution.forward_func
        if isinstance(model, nn.Module):
            (inputs,) = cast_inputs(model, inputs)
        layers = self._attributions(inputs)
        axes = [batch_axis(layer.shape, len(inputs)) for layer in layers]
        if None in axes:  # as many tokens as images: the layers' shapes for one image show which axis is the batch
            axes = [batch_axis(layer.shape, 1) for layer in self._attributions(inputs[:1])]
        return torch.cat(
            [self._pooled(layer.movedim(axis or 0, 0)) for layer, axis in zip(layers, axes, strict=True)], dim=1
        )

    def _attributions(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():  # the weights are frozen, so that the inputs must require gradients
            found = self.attribution.attribute(inputs.detach().requires_grad_(), **self.arguments)
        return tuple(to_float(layer.detach()).cpu() for layer in (found if isinstance(found, tuple) else (found,)))

    def _pooled(self, layer: Tensor) -> Tensor:
        channels = channels_second(layer.clamp_min(0) if self.positive else layer)
        return channels if channels.ndim == 2 else channels.flatten(2).sum(2)


def pure_code(
    model: nn.Module, unit: Unit | str, layer: str | nn.Module | None = None, *, input_spec: InputSpec | None = None
) -> AttributionCode:
    """Return PURE's code: the positive part of gradient times activation of an earlier layer, for the unit.

    Args:
        model: the model.
        unit: a unit of any layer.
        layer: the layer whose channels are attributed to; by default the last layer with positions before the unit.
        input_spec: preprocessing from images in [0, 1] to the model's input.

    Raises:
        UnitError: if the model has no such unit or layer.

    Source: Dreyer et al. 2024, "PURE: Turning polysemantic neurons into pure features", arXiv 2404.06453.
    """
    spec = input_spec or InputSpec()
    unit, code = resolve(model, unit, layer, spec)
    attribution = LayerGradientXActivation(unit_forward(model, unit), model.get_submodule(code.layer))
    return AttributionCode(attribution, input_spec=spec)
