"""Facets from attributions: images told apart by what caused the unit's activation."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerAttribution, LayerGradientXActivation
from torch import Tensor, nn

from captum_mfv.activations.resolve import resolve
from captum_mfv.attr.model import unit_forward
from captum_mfv.images import InputSpec
from captum_mfv.units import Unit, channels_second

__all__ = ["AttributionCode", "pure_code"]


class AttributionCode:
    """Codes from attributions: images told apart by what *caused* the unit's activation.

    A function from images in [0, 1], (N, C, H, W), to (N, D), for `find_facets(…, code=…)`: attributions
    summed over positions, several layers' side by side.

    Args:
        attribution: any of Captum's layer attributions, on the model in which facets are to be found.
        positive: leave negative attributions out before the sum, as PURE does.
        input_spec: what turns images in [0, 1] into the model's input.
        **arguments: what the attribution's ``attribute`` takes beside inputs, such as ``target``.
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
        self.attribution = attribution
        self.positive = positive
        self.input_spec = input_spec or InputSpec()
        self.arguments = arguments

    def __call__(self, images: Tensor) -> Tensor:
        """The codes, (N, D), detached, on the CPU."""
        with torch.enable_grad():  # inputs require gradients, since the weights are frozen
            inputs = self.input_spec(images).requires_grad_()
            found = self.attribution.attribute(inputs, **self.arguments)
        layers = found if isinstance(found, tuple) else (found,)
        return torch.cat([self._pooled(layer.detach().cpu()) for layer in layers], dim=1)

    def _pooled(self, layer: Tensor) -> Tensor:
        layer = layer.clamp_min(0) if self.positive else layer
        channels = channels_second(layer)
        return channels if channels.ndim == 2 else channels.flatten(2).sum(2)


def pure_code(
    model: nn.Module, unit: Unit | str, layer: str | nn.Module | None = None, *, input_spec: InputSpec | None = None
) -> AttributionCode:
    """PURE's code: gradient times activation of an earlier layer, from the unit alone, its positive part.

    Args:
        model: the model.
        unit: the unit; any layer's.
        layer: whose channels may cause it; by default the last layer with positions before the unit.
        input_spec: what turns images in [0, 1] into the model's input.

    Source: Dreyer et al. 2024, "PURE: Turning polysemantic neurons into pure features", arXiv 2404.06453.
    """
    spec = input_spec or InputSpec()
    unit, code = resolve(model, unit, layer, spec)
    attribution = LayerGradientXActivation(unit_forward(model, unit), model.get_submodule(code.layer))
    return AttributionCode(attribution, input_spec=spec)
