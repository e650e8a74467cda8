"""A unit's facets as a model with one output per facet, which any attribution method can explain."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.containers import find_tensor, split_name, with_tensor
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import InputSpec
from captum_mfv.units import Unit, first_floating_point

__all__ = [
    "Contrast",
    "FacetModel",
    "LayerOutput",
    "cast_inputs",
    "explained",
    "facet_targets",
    "to_float",
    "unit_forward",
]


class FacetModel(nn.Module):
    """A unit's facets as a classifier: inputs to (N, n_facets), for any Captum method's ``target=k``.

    A set of one facet has no other facet to compare with: its single output is the unit's activation,
    whatever ``output`` is. Codes of models in half precision are read in float32, and so is the output.

    Args:
        model: the model in which the facets were found, in the mode in which it is to run: call ``model.eval()`` first.
        facets: the facets; those of a run are ``FacetSet.load("out/run")``.
        output: ``logits`` are linear in the code; the largest is the nearest center's. The forward pass ends with the
            code's layer, so that attributions to a later layer need ``gated``. ``gated`` is the unit's activation
            times the softmax of the logits, so that the columns sum to the unit's activation.
        input_spec: preprocessing from images in [0, 1] to the model's input; None: inputs are preprocessed already.

    Raises:
        UnitError: if the model lacks the unit's or the code's layer.
        FacetError: if ``output`` isn't ``logits`` or ``gated``.
    """

    def __init__(
        self, model: nn.Module, facets: FacetSet, output: str = "logits", input_spec: InputSpec | None = None
    ) -> None:
        super().__init__()
        if output not in ("logits", "gated"):
            raise FacetError(f"output must be logits or gated, not {output!r}")
        for layer in (facets.code.layer, facets.unit.layer_name):
            layer_name(model, layer)
        weight = first_floating_point(model)
        weight = torch.zeros(0) if weight is None else weight
        self.model, self.output, self.input_spec = model, output, input_spec
        self.unit, self.code = facets.unit, facets.code
        self.head = facets.head().to(weight.device, torch.promote_types(weight.dtype, torch.float32))

    @property
    def n_facets(self) -> int:
        """Number of outputs."""
        return self.head.linear.out_features

    def forward(self, x: Tensor, *args: object) -> Tensor:
        """Outputs, (N, n_facets), for inputs (N, C, H, W) and the model's further inputs."""
        code, unit = self.code.layer, self.unit.layer_name
        layers = [unit] if self.n_facets == 1 else [code] if self.output == "logits" else [code, unit]
        with capture(self.model, layers) as run:
            x = x if self.input_spec is None else self.input_spec(x)
            outputs = run(*cast_inputs(self.model, x, *args))
        logits: Tensor | None = None if self.n_facets == 1 else self.head(self.code.read(to_float(outputs[code])))
        if logits is not None and self.output == "logits":
            return logits
        activation = self.unit.read(to_float(outputs[unit]))[:, None]
        return activation if logits is None else activation * logits.softmax(1)

    def extra_repr(self) -> str:
        """Unit, code and output, for ``print``."""
        return f"unit={self.unit}, code={self.code.layer}, output={self.output}"


class Contrast(nn.Module):
    """Each facet's output minus the mean of the others: a linear layer, for which DeepLift and LRP have rules."""

    def __init__(self, forward_func: nn.Module, model: FacetModel) -> None:
        super().__init__()
        n = model.n_facets
        if n < 2:
            raise FacetError("contrast needs at least 2 facets; there is 1")
        minus = nn.Linear(n, n, bias=False, device="meta").to_empty(device="cpu").to(model.head.linear.weight)
        with torch.no_grad():
            minus.weight.copy_((n * torch.eye(n) - 1) / (n - 1))
        self.forward_func, self.minus = forward_func, minus.requires_grad_(False)

    def forward(self, *inputs: object) -> Tensor:
        """Differences, (N, n_facets)."""
        differences: Tensor = self.minus(self.forward_func(*inputs))
        return differences


class LayerOutput(nn.Module):
    """A tensor in a layer's output as a layer to which Captum attributes; Captum accepts tuples of tensors only.

    ``name`` is ``layer`` or ``layer[key]``. Only forward hooks are supported.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.name, self.layer = name, model.get_submodule(split_name(name)[0])

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """Register a hook that receives the tensor and may return another one."""

        def on_tensor(module: nn.Module, args: object, output: object) -> Any:
            key, tensor = find_tensor(self.name, output)
            changed = hook(module, args, tensor)
            return None if changed is None else with_tensor(output, key, changed)

        return self.layer.register_forward_hook(on_tensor, **options)


def explained(facets: FacetSet) -> str:
    """Return a sentence about the quantity that `facet_maps` attributes to the image, for captions."""
    if len(facets) == 1:
        return f"Attributions explain the activation of unit {facets.unit}."
    return (
        "Attributions explain the facet's logit minus the mean logit of the other facets: "
        f"what makes the image one of this facet rather than of another facet of {facets.unit}."
    )


def unit_forward(model: nn.Module, unit: Unit | str) -> Callable[..., Tensor]:
    """Return a forward function to the unit's activation, (N,), in float32 or the model's wider precision."""
    unit = Unit.parse(unit)
    name = layer_name(model, unit.layer)

    def forward(*inputs: object) -> Tensor:
        with guard(model), capture(model, [name]) as run:
            return unit.read(to_float(run(*cast_inputs(model, *inputs))[name]))

    return forward


def facet_targets(target: Any, n_inputs: int, n_facets: int) -> int | list[int]:
    """Return checked targets: a facet for all inputs, or a list of one for each.

    Targets are integers of any kind, or a sequence, array or tensor of them.

    Raises:
        FacetError: if a target isn't a facet, or there isn't one for each input.
    """
    listed = target.tolist() if isinstance(target, (Tensor, np.ndarray)) else target
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        return _facet(listed, n_facets)
    facets = [_facet(facet, n_facets) for facet in listed]
    if len(facets) != n_inputs:
        raise FacetError(f"there must be a target for each of the {n_inputs} inputs, not {len(facets)}")
    return facets


def _facet(target: Any, n_facets: int) -> int:
    one = target[0] if isinstance(target, (tuple, list)) and len(target) == 1 else target
    try:
        facet = operator.index(one)
    except TypeError:
        facet = -1
    if not 0 <= facet < n_facets:
        raise FacetError(f"target must be a facet, 0 to {n_facets - 1}, or one for each input, not {target!r}")
    return facet


def cast_inputs(model: nn.Module, *inputs: Any) -> list[Any]:
    """Return a model's inputs on the device of its weights, floating-point tensors in their dtype."""
    weight = first_floating_point(model)
    if weight is None:
        return list(inputs)
    return [
        value.to(weight.device, weight.dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for value in inputs
    ]


def to_float(output: Tensor) -> Tensor:
    """Return a layer's output in float32, or unchanged if its precision is wider."""
    return output.to(torch.promote_types(output.dtype, torch.float32))
