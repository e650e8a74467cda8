"""Attributions of facets: any method of Captum's, for one facet, or for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from captum import attr as captum_attr
from captum.attr import Attribution, LayerAttribution, NeuronAttribution, NeuronConductance
from captum.log import log_usage
from torch import Tensor, nn

from captum_mfv.attr.integrated import integrate
from captum_mfv.attr.methods import Method, make, name_of, shares_passes
from captum_mfv.attr.model import FacetModel
from captum_mfv.attr.sharing import Shared, repeat_rows
from captum_mfv.errors import FacetError

__all__ = ["FacetAttribution", "LayerFacetAttribution", "NeuronFacetAttribution"]

Layer: TypeAlias = nn.Module | list[nn.Module]

_INTEGRATED = {"baselines", "n_steps", "internal_batch_size"}  # of IntegratedGradients, what `integrate` takes too


class _Wrapper(Attribution):  # type: ignore[misc]
    """A method of Captum's around a facet model, and what it says of itself."""

    attribution_method: Attribution
    n_facets: int

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are multiplied by the inputs, as the method has it."""
        return bool(self.attribution_method.multiplies_by_inputs)

    def has_convergence_delta(self) -> bool:
        """Whether the method knows its approximation error."""
        return bool(self.attribution_method.has_convergence_delta())

    def compute_convergence_delta(self, *args: Any, **options: Any) -> Tensor:
        """The method's approximation error."""
        delta: Tensor = self.attribution_method.compute_convergence_delta(*args, **options)
        return delta


class FacetAttribution(_Wrapper):
    """Which inputs drive which facet, by any of Captum's methods.

    ``FacetAttribution(IntegratedGradients, FacetModel(model, facets)).attribute(x)`` has the shape
    (N, n_facets, C, H, W), and with ``target=k`` Captum's own, (N, C, H, W).

    Args:
        method: a class of Captum's, or a function from a forward function to an attribution, such as
            ``lambda forward: NoiseTunnel(Saliency(forward))``.
        forward_func: a `FacetModel`, or a `torch.nn.DataParallel` of one.
        contrast: explain each facet against the mean of the others.
        **options: what the class's constructor takes, such as ``multiply_by_inputs=False``.

    Attributes:
        attribution_method: the method as it was made.
        n_facets: how many facets there are.

    Raises:
        TypeError: if ``method`` doesn't attribute to inputs, or ``forward_func`` isn't a `FacetModel`.
        FacetError: if the method can't explain facets, or not those of this output, saying why.
    """

    def __init__(self, method: Method, forward_func: nn.Module, *, contrast: bool = False, **options: Any) -> None:
        model = _facet_model(forward_func)
        explained = _Against(forward_func) if contrast else forward_func
        Attribution.__init__(self, explained)
        self.n_facets = model.n_facets
        self.attribution_method = make(method, (explained,), options, model)
        if isinstance(self.attribution_method, (LayerAttribution, NeuronAttribution)):
            raise TypeError(f"{name_of(method)} doesn't attribute to inputs; use Layer- or NeuronFacetAttribution")
        self._shared = method(Shared(explained, self.n_facets), **options) if shares_passes(method) else None

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        **options: Any,
    ) -> Any:
        """Attributions to the inputs.

        All facets together share the forward pass where the method allows it: Saliency, InputXGradient,
        IntegratedGradients, ablation, occlusion and Shapley values. They hold n_facets copies of the
        inputs in memory; integrated gradients don't where the model begins with a convolution or a
        linear layer.

        Args:
            inputs: as the method takes them.
            target: facet to explain, as Captum has targets: an int, or a list or tensor of one per row;
                None: all of them.
            additional_forward_args: as the method takes them.
            **options: the method's own, such as ``n_steps`` or ``return_convergence_delta``.

        Returns:
            What the method returns; for all facets every tensor has the facets second, (N, n_facets, …).

        Raises:
            FacetError: if there is no such facet.
        """
        if additional_forward_args is not None:
            options["additional_forward_args"] = additional_forward_args
        inputs = _leaves(inputs)
        if target is None and self._shared is not None:
            quick = self._integrated(inputs, **options) if set(options) <= _INTEGRATED else None
            return self._all(self._shared, inputs, options) if quick is None else quick
        return _each(self.n_facets, target, lambda k: self.attribution_method.attribute(inputs, target=k, **options))

    def _integrated(
        self, inputs: Any, baselines: Any = None, n_steps: int = 50, internal_batch_size: int | None = None
    ) -> Tensor | None:
        """All facets' integrated gradients by `integrate`, where that can be."""
        method, start = self.attribution_method, 0.0 if baselines is None else baselines
        if type(method) is not captum_attr.IntegratedGradients or not isinstance(inputs, Tensor):
            return None
        if not isinstance(start, (int, float, Tensor)) or _parallel(self.forward_func):
            return None
        found = integrate(self.forward_func, inputs, start, n_steps, internal_batch_size)
        if found is None or not method.multiplies_by_inputs:
            return found
        return found * (inputs.detach() - start)[:, None]

    def _all(self, method: Attribution, inputs: Tensor | tuple[Tensor, ...], options: Mapping[str, Any]) -> Any:
        """Every row once per facet, one after the other, each copy with another facet as its target."""
        first = inputs if isinstance(inputs, Tensor) else inputs[0]
        copies, options = repeat_rows(inputs, options, self.n_facets)
        facets = torch.arange(self.n_facets, device=first.device).repeat(len(first))
        found = method.attribute(_leaves(copies), target=facets, **options)
        return _map(found, lambda x: x.detach().reshape(-1, self.n_facets, *x.shape[1:]))


class LayerFacetAttribution(_Wrapper, LayerAttribution):  # type: ignore[misc]
    """Which channels or positions of a layer drive which facet, by any of Captum's layer methods.

    Args:
        method: a layer class of Captum's, or a function from forward function and layer to an attribution.
        forward_func: a `FacetModel`, or a `torch.nn.DataParallel` of one.
        layer: a module of the model, or several, as the method takes them. Before the code's layer, or it,
            where the output is ``logits``.
        contrast: explain each facet against the mean of the others.
        **options: what the class's constructor takes.

    Attributes:
        attribution_method: the method as it was made.
        n_facets: how many facets there are.

    Raises:
        TypeError: if ``method`` doesn't attribute to a layer, or ``forward_func`` isn't a `FacetModel`.
        FacetError: if the method can't explain facets, or not those of this output, saying why.
    """

    def __init__(
        self, method: Method, forward_func: nn.Module, layer: Layer, *, contrast: bool = False, **options: Any
    ) -> None:
        model = _facet_model(forward_func)
        explained = _Against(forward_func) if contrast else forward_func
        self.attribution_method = make(method, (explained, layer), options, model)
        if not isinstance(self.attribution_method, LayerAttribution):
            raise TypeError(f"{name_of(method)} doesn't attribute to a layer; use FacetAttribution")
        LayerAttribution.__init__(self, explained, layer)
        self.n_facets = model.n_facets

    @property
    def layer(self) -> Layer:
        """The layer, or layers; TCAV sets another."""
        layer: Layer = self.attribution_method.layer
        return layer

    @layer.setter
    def layer(self, layer: Layer) -> None:
        self.attribution_method.layer = layer

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        **options: Any,
    ) -> Any:
        """Attributions to the layer; for all facets (``target=None``) every tensor has the facets second.

        Arguments and returns are those of `FacetAttribution.attribute`; all facets together cost as much as
        one after the other.

        Raises:
            FacetError: if there is no such facet.
        """
        if additional_forward_args is not None:
            options["additional_forward_args"] = additional_forward_args
        inputs = _leaves(inputs)
        return _each(self.n_facets, target, lambda k: self.attribution_method.attribute(inputs, target=k, **options))


class NeuronFacetAttribution(_Wrapper, NeuronAttribution):  # type: ignore[misc]
    """Neuron methods of Captum's for facets.

    The neurons are the facets themselves: ``neuron_selector=k``. Conductance alone has a neuron of a layer
    *and* a target: which inputs drive the facet through that neuron.

    Args:
        method: a neuron class of Captum's, or a function from forward function and layer to an attribution.
        forward_func: a `FacetModel`, or a `torch.nn.DataParallel` of one.
        layer: for conductance, a module of the model.
        contrast: explain each facet against the mean of the others.
        **options: what the class's constructor takes.

    Attributes:
        attribution_method: the method as it was made.
        n_facets: how many facets there are.

    Raises:
        TypeError: if ``method`` doesn't attribute to a neuron, or ``forward_func`` isn't a `FacetModel`.
        FacetError: if the method can't explain facets, or not those of this output, or a layer is missing
            or too many.
    """

    def __init__(
        self,
        method: Method,
        forward_func: nn.Module,
        layer: nn.Module | None = None,
        *,
        contrast: bool = False,
        **options: Any,
    ) -> None:
        model = _facet_model(forward_func)
        explained = (_Against if contrast else _Scores)(forward_func)
        self.attribution_method = make(method, (explained, layer or explained.scores), options, model)
        if not isinstance(self.attribution_method, NeuronAttribution):
            raise TypeError(f"{name_of(method)} doesn't attribute to a neuron; use FacetAttribution")
        self._through = isinstance(self.attribution_method, NeuronConductance)
        if self._through != (layer is not None):
            raise FacetError(
                f"{name_of(method)} needs the layer of the neuron"
                if self._through
                else f"{name_of(method)} has no target beside its neuron: the neurons are the facets; leave layer out"
            )
        NeuronAttribution.__init__(self, explained, self.attribution_method.layer)
        self.n_facets = model.n_facets

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self, inputs: Tensor | tuple[Tensor, ...], neuron_selector: Any = None, target: Any = None, **options: Any
    ) -> Any:
        """Attributions to the inputs.

        Args:
            inputs: as the method takes them.
            neuron_selector: the facet, or None for all; for conductance the neuron, as Captum selects it.
            target: for conductance the facet, or None for all.
            **options: the method's own.

        Returns:
            What the method returns; for all facets every tensor has the facets second, (N, n_facets, …).

        Raises:
            FacetError: if there is no such facet, or conductance was given no neuron.
        """
        inputs, explain = _leaves(inputs), self.attribution_method.attribute
        if not self._through:
            return _each(self.n_facets, neuron_selector, lambda k: explain(inputs, k, **options))
        if neuron_selector is None:
            raise FacetError("conductance needs a neuron_selector, the neuron of the layer")
        return _each(self.n_facets, target, lambda k: explain(inputs, neuron_selector, target=k, **options))


class _Scores(nn.Module):
    """A facet model whose outputs are a layer's, ``scores``."""

    def __init__(self, forward_func: nn.Module) -> None:
        super().__init__()
        self.forward_func = forward_func
        self.scores: nn.Module = nn.Identity()

    def forward(self, *inputs: object) -> Tensor:
        scores: Tensor = self.scores(self.forward_func(*inputs))
        return scores


class _Against(_Scores):
    """Each facet minus the mean of the others; linear, so that rules of modules see it."""

    def __init__(self, forward_func: nn.Module) -> None:
        super().__init__(forward_func)
        model = _facet_model(forward_func)
        n = model.n_facets
        if n < 2:
            raise FacetError("contrast needs another facet; there is one")
        minus = nn.Linear(n, n, bias=False, device="meta").to_empty(device="cpu").to(model.head.linear.weight)
        with torch.no_grad():
            minus.weight.copy_((n * torch.eye(n) - 1) / (n - 1))
        self.scores = minus.requires_grad_(False)


def _facet_model(forward_func: nn.Module) -> FacetModel:
    model = forward_func.module if isinstance(forward_func, nn.DataParallel) else forward_func
    if not isinstance(model, FacetModel):
        raise TypeError(f"forward_func must be a FacetModel, or a DataParallel of one, not {type(model).__name__}")
    return model


def _parallel(module: nn.Module) -> bool:
    return any(isinstance(part, nn.DataParallel) for part in module.modules())


def _leaves(inputs: Any) -> Any:
    """The caller's inputs, ready for gradients and left as they were."""
    return _map(inputs, lambda x: x.detach().requires_grad_(x.is_floating_point()))


def _each(n_facets: int, target: Any, explain: Callable[[Any], Any]) -> Any:
    """What a method says of a target, or of every facet in turn, stacked second."""
    if target is None:
        return _stack([_map(explain(k), Tensor.detach) for k in range(n_facets)])
    _check_target(target, n_facets)
    return _map(explain(target), Tensor.detach)


def _check_target(target: Any, n_facets: int) -> None:
    if isinstance(target, Tensor):
        target = target.tolist()
    for facet in target if isinstance(target, list) else [target]:
        if isinstance(facet, tuple) and len(facet) == 1:
            (facet,) = facet
        if not isinstance(facet, int) or not 0 <= facet < n_facets:
            raise FacetError(f"target must be a facet, 0 to {n_facets - 1}, or one for each input, not {facet!r}")


def _stack(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.stack(parts, dim=1)
    return type(parts[0])(_stack(list(part)) for part in zip(*parts, strict=True))


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(value) if isinstance(value, Tensor) else type(value)(_map(part, change) for part in value)
