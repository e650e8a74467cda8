"""A unit's facets as a model with one output per facet, which any attribution method can explain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import InputSpec
from captum_mfv.units import Unit

__all__ = ["FacetModel", "unit_forward"]


class FacetModel(nn.Module):
    """A unit's facets as a classifier: inputs to (N, n_facets), for any Captum method's ``target=k``.

    ``logits`` end with the code's layer, and so does the forward pass; an attribution to a later layer needs
    ``gated``.

    Args:
        model: the model in which the facets were found. It is called as it is: put it in evaluation mode.
        facets: the facets; those of a run are ``FacetSet.load("out/run")``.
        output: ``logits`` are linear in the code, the largest being the nearest center's; ``gated`` is
            the unit's activation times their softmax, so that the columns sum to the unit's activation.
        input_spec: given, the first input is images in [0, 1], normalised here; by default inputs are the
            model's own, normalised already.

    Raises:
        UnitError: if the model lacks the unit's or the code's layer.
        FacetError: if ``output`` isn't logits or gated.
    """

    def __init__(
        self,
        model: nn.Module,
        facets: FacetSet,
        output: str = "logits",
        input_spec: InputSpec | None = None,
    ) -> None:
        super().__init__()
        if output not in ("logits", "gated"):
            raise FacetError(f"output must be logits or gated, not {output!r}")
        for layer in (facets.code.layer, facets.unit.layer_name):
            layer_name(model, layer)
        weight = next(model.parameters(), torch.zeros(0))
        self.model = model
        self.head = facets.head().to(weight)
        self.unit = facets.unit
        self.code = facets.code
        self.output = output
        self.input_spec = input_spec

    @property
    def n_facets(self) -> int:
        """How many outputs there are."""
        return self.head.linear.out_features

    def forward(self, x: Tensor, *args: object) -> Tensor:
        """(N, n_facets) for inputs (N, C, H, W) and whatever else the model takes."""
        layers = [self.code.layer] if self.output == "logits" else [self.code.layer, self.unit.layer_name]
        with capture(self.model, layers) as run:
            outputs = run(x if self.input_spec is None else self.input_spec(x), *args)
        logits: Tensor = self.head(self.code.read(outputs[self.code.layer]))
        if self.output == "logits":
            return logits
        return self.unit.read(outputs[self.unit.layer_name])[:, None] * logits.softmax(1)

    def extra_repr(self) -> str:
        """Unit, code and output, for ``print``."""
        return f"unit={self.unit}, code={self.code.layer}, output={self.output}"


def unit_forward(model: nn.Module, unit: Unit | str) -> Callable[..., Tensor]:
    """A forward function to the unit's activation, (N,): what attributions of any layer's unit start from."""
    unit = Unit.of(unit)
    name = layer_name(model, unit.layer)

    def forward(*inputs: Tensor) -> Tensor:
        with guard(model), capture(model, [name]) as run:
            return unit.read(run(*inputs)[name])

    return forward
