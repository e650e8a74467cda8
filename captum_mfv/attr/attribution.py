"""Attributions of facets by any of Captum's methods, for one facet or for all facets at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import captum.attr
import torch
from captum.attr import Attribution, LayerAttribution, NeuronAttribution
from captum.log import log_usage
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captum_mfv.attr.model import Contrast, FacetModel, facet_targets
from captum_mfv.errors import FacetError
from captum_mfv.images import InputSpec
from captum_mfv.images.loading import check_range

__all__ = ["REFUSED", "FacetAttribution", "LayerFacetAttribution"]

_NOISE = 8.0  # how far NoiseTunnel and sensitivity measures may perturb images; bytes are beyond

Layer: TypeAlias = nn.Module | list[nn.Module]
Method: TypeAlias = Callable[..., Attribution]

# These call the forward function from outside and treat every row alike, so that facets can share its passes.
_SHARING = (
    captum.attr.Saliency,
    captum.attr.InputXGradient,
    captum.attr.IntegratedGradients,
    captum.attr.FeatureAblation,
    captum.attr.ShapleyValueSampling,
)
_NOT_SHARING = (captum.attr.FeaturePermutation,)  # an ablation that mixes rows

_TEXT = "it explains text, not images"
REFUSED = {
    "LayerActivation": "activations have no target: they are the same for every facet",
    "LayerFeaturePermutation": "Captum 0.9 fails on every model with a target",
    "DataLoaderAttribution": "its argument is a method, not a forward function; give it a FacetAttribution",
    **dict.fromkeys(("LLMAttribution", "LLMGradientAttribution", "RemoteLLMAttribution"), _TEXT),
}
"""Methods that can't explain facets, and why."""

_PER_ROW = ("baselines", "feature_mask", "additional_forward_args")  # arguments that may have a row per input

_RULES = ("DeepLift", "LRP")  # in the names of methods that replace the gradients of modules


class _Wrapper(Attribution):  # type: ignore[misc]
    """A method of Captum's around a facet model, with that method's properties."""

    attribution_method: Attribution
    n_facets: int
    _input_spec: InputSpec | None

    def _wrap(
        self, method: Method, forward_func: nn.Module, layers: tuple[Layer, ...], contrast: bool, options: Any
    ) -> nn.Module:
        """Construct a method that attributes to inputs or to one layer, and return the module that it explains."""
        model = forward_func.module if isinstance(forward_func, nn.DataParallel) else forward_func
        if not isinstance(model, FacetModel):
            raise TypeError(f"forward_func must be a FacetModel, or a DataParallel of one, not {type(model).__name__}")
        explained = Contrast(forward_func, model) if contrast else forward_func
        self.attribution_method = _make(method, (explained, *layers), options, model)
        self.n_facets, self._input_spec = model.n_facets, model.input_spec
        return explained

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether the method multiplies attributions by the inputs."""
        return bool(self.attribution_method.multiplies_by_inputs)

    def has_convergence_delta(self) -> bool:
        """Whether the method can compute its approximation error."""
        return bool(self.attribution_method.has_convergence_delta())

    def compute_convergence_delta(self, *args: Any, **options: Any) -> Tensor:
        """The method's approximation error."""
        delta: Tensor = self.attribution_method.compute_convergence_delta(*args, **options)
        return delta

    def _ready(self, inputs: Any) -> Any:
        """Check images, and return inputs that require gradients, detached from the caller's."""
        if self._input_spec is not None:
            check_range(_first(inputs), slack=_NOISE)
        return _leaves(inputs)

    def _each(self, inputs: Any, target: Any, explain: Callable[[Any], Any]) -> Any:
        """Attributions of one target, or of every facet in turn, stacked along axis 1."""
        if target is None:
            return _stack([_map(explain(k), Tensor.detach) for k in range(self.n_facets)])
        return _map(explain(facet_targets(target, len(_first(inputs)), self.n_facets)), Tensor.detach)


class FacetAttribution(_Wrapper):
    """Attributions of facets to the inputs, by any of Captum's methods.

    ``FacetAttribution(IntegratedGradients, FacetModel(model, facets)).attribute(x)`` has the shape
    (N, n_facets, C, H, W); with ``target=k`` it has Captum's own, (N, C, H, W).

    Args:
        method: a class of Captum's, or a function from a forward function to an attribution, such as
            ``lambda forward: NoiseTunnel(Saliency(forward))``.
        forward_func: a `FacetModel`, or a `torch.nn.DataParallel` of one.
        contrast: explain each facet's output minus the mean of the other facets' outputs.
        **options: the constructor's other arguments, such as ``multiply_by_inputs=False``.

    Attributes:
        attribution_method: Captum's attribution.
        n_facets: number of facets.

    Raises:
        TypeError: if ``method`` doesn't attribute to inputs, or ``forward_func`` isn't a `FacetModel`.
        FacetError: if the method can't explain facets, or not this output of the facet model.
    """

    def __init__(self, method: Method, forward_func: nn.Module, *, contrast: bool = False, **options: Any) -> None:
        explained = self._wrap(method, forward_func, (), contrast, options)
        Attribution.__init__(self, explained)
        self._shared = method(_shared(explained, self.n_facets), **options) if _shares_passes(method) else None

    @log_usage()  # type: ignore[untyped-decorator]  # NoiseTunnel unwraps it
    def attribute(self, inputs: Tensor | tuple[Tensor, ...], target: Any = None, **options: Any) -> Any:
        """Compute attributions to the inputs.

        All facets together share the forward passes of Saliency, InputXGradient, IntegratedGradients, ablation,
        occlusion and Shapley values. These need memory for n_facets copies of the inputs.

        Args:
            inputs: (N, …), or a tuple of tensors; images in [0, 1] if the facet model has an ``input_spec``.
            target: the facet to explain: an integer, or a list, array or tensor of one per input; None: all.
            **options: other arguments of the method's ``attribute``, such as ``n_steps``,
                ``additional_forward_args`` or ``return_convergence_delta``.

        Returns:
            The method's result; for all facets, every tensor is (N, n_facets, …).

        Raises:
            FacetError: if there is no such facet, or not one target for each input.
            ImageError: if the facet model has an ``input_spec`` and images aren't in [0, 1].
        """
        inputs = self._ready(inputs)
        options = {name: value for name, value in options.items() if value is not None}
        if target is not None or self._shared is None:
            explain = self.attribution_method.attribute
            return self._each(inputs, target, lambda k: explain(inputs, target=k, **options))
        copies, options = _repeat_rows(inputs, options, self.n_facets)
        facets = torch.arange(self.n_facets, device=_first(inputs).device).repeat(len(_first(inputs)))
        found = self._shared.attribute(_leaves(copies), target=facets, **options)
        return _map(found, lambda x: x.detach().reshape(-1, self.n_facets, *x.shape[1:]))


class LayerFacetAttribution(_Wrapper, LayerAttribution):  # type: ignore[misc]
    """Attributions of facets to the channels and positions of a layer, by any of Captum's layer methods.

    The other arguments, the attributes and the errors are those of `FacetAttribution`.

    Args:
        layer: a module of the model, or a list of modules if the method accepts several. For the output ``logits``
            the code's layer or an earlier one.
    """

    def __init__(
        self, method: Method, forward_func: nn.Module, layer: Layer, *, contrast: bool = False, **options: Any
    ) -> None:
        LayerAttribution.__init__(self, self._wrap(method, forward_func, (layer,), contrast, options), layer)

    @property
    def layer(self) -> Layer:
        """The layer or layers; Captum's TCAV assigns another."""
        layer: Layer = self.attribution_method.layer
        return layer

    @layer.setter
    def layer(self, layer: Layer) -> None:
        self.attribution_method.layer = layer

    @log_usage()  # type: ignore[untyped-decorator]  # NoiseTunnel unwraps it
    def attribute(self, inputs: Tensor | tuple[Tensor, ...], target: Any = None, **options: Any) -> Any:
        """Compute attributions to the layer.

        Arguments, returns and errors are those of `FacetAttribution.attribute`. All facets together cost as much
        as one after the other.
        """
        inputs, explain = self._ready(inputs), self.attribution_method.attribute
        return self._each(inputs, target, lambda k: explain(inputs, target=k, **options))


def _repeat_rows(inputs: Any, options: Mapping[str, Any], n_copies: int) -> tuple[Any, dict[str, Any]]:
    """Repeat each row of the inputs, and of the arguments that have a row per input, n_copies times in succession."""
    rows = len(inputs if isinstance(inputs, Tensor) else inputs[0])

    def repeat(value: Any, shared: bool = False) -> Any:
        if isinstance(value, tuple):
            return tuple(repeat(part, shared) for part in value)
        if not isinstance(value, Tensor) or not value.ndim or len(value) != rows or (shared and rows == 1):
            return value
        return value.repeat_interleave(n_copies, 0)

    aligned = {name: repeat(options[name], name != "additional_forward_args") for name in _PER_ROW if name in options}
    return repeat(inputs), {**options, **aligned}


def _shared(forward_func: Callable[..., Tensor], n_copies: int) -> Callable[..., Tensor]:
    """Return a forward function for rows repeated n_copies times in succession; it runs once per distinct row."""

    def forward(*inputs: Any) -> Tensor:
        outputs: Tensor = _Copies.apply(forward_func, n_copies, *inputs)
        return outputs

    return forward


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward_func: Callable[..., Tensor], n_copies: int, *inputs: Any) -> Tensor:
        n_rows = len(inputs[0])
        needed = ctx.needs_input_grad[2:]
        with torch.set_grad_enabled(any(needed)):
            rows = [
                value[::n_copies].detach().requires_grad_(need)
                if isinstance(value, Tensor) and value.ndim and len(value) == n_rows
                else value
                for value, need in zip(inputs, needed, strict=True)
            ]
            outputs = forward_func(*rows)
        ctx.n_copies, ctx.rows, ctx.outputs = n_copies, rows, outputs
        return outputs.detach().repeat_interleave(n_copies, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of each copy, through the graph that all copies share."""
        needed = ctx.needs_input_grad[2:]
        leaves = [row for row, need in zip(ctx.rows, needed, strict=True) if need]
        found = [
            torch.autograd.grad(ctx.outputs, leaves, copy, retain_graph=True, materialize_grads=True)
            for copy in gradient.reshape(-1, ctx.n_copies, *gradient.shape[1:]).unbind(1)
        ]
        rows = iter([torch.stack(parts, 1).flatten(0, 1) for parts in zip(*found, strict=True)])
        return None, None, *(next(rows) if need else None for need in needed)


def _shares_passes(method: Method) -> bool:
    """Whether all facets can share the forward passes of a method."""
    return inspect.isclass(method) and issubclass(method, _SHARING) and not issubclass(method, _NOT_SHARING)


def _make(method: Method, arguments: tuple[Any, ...], options: Mapping[str, Any], model: FacetModel) -> Attribution:
    """Construct an attribution for a facet model; the first arguments are a forward function and, maybe, a layer.

    Raises:
        TypeError: if ``method`` doesn't return an attribution to a layer, or without a layer one to inputs.
        FacetError: if the attribution can't explain facets, or not this output; the message gives the reason.
    """
    if not callable(method):
        raise TypeError(f"method must be a class of captum.attr, or a function that makes one, not {method!r}")
    if inspect.isclass(method):
        _refuse(method, model)
        _check_kind(method, len(arguments) > 1)
    made = method(*arguments, **options)
    if not isinstance(made, Attribution):
        raise TypeError(f"{_name(method)} made a {type(made).__name__}, not an attribution of captum.attr")
    inner = made
    while hasattr(inner, "attribution_method"):
        inner = inner.attribution_method
    _refuse(type(inner), model)
    _check_kind(type(made), len(arguments) > 1)
    return made


def _check_kind(method: type, to_layer: bool) -> None:
    if issubclass(method, NeuronAttribution):
        raise TypeError(f"{method.__name__} attributes to a neuron of a layer; give it the FacetModel itself")
    if issubclass(method, LayerAttribution) != to_layer:
        raise TypeError(f"{method.__name__} needs {'FacetAttribution' if to_layer else 'LayerFacetAttribution'}")


def _refuse(method: type, model: FacetModel) -> None:
    name = method.__name__
    if name in REFUSED:
        raise FacetError(f"{name} can't explain facets: {REFUSED[name]}")
    if model.output == "gated" and model.n_facets > 1 and any(rules in name for rules in _RULES):
        raise FacetError(
            f"{name} can't explain output='gated': it has no rule for a softmax or a product; explain 'logits'"
        )


def _name(method: Method) -> str:
    """Return the name of a class or function, or of the class of another callable."""
    return getattr(method, "__name__", type(method).__name__)


def _first(inputs: Any) -> Tensor:
    first: Tensor = inputs if isinstance(inputs, Tensor) else inputs[0]
    return first


def _leaves(inputs: Any) -> Any:
    return _map(inputs, lambda x: x.detach().requires_grad_(x.is_floating_point()))


def _stack(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.stack(parts, dim=1)
    return type(parts[0])(_stack(list(part)) for part in zip(*parts, strict=True))


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(value) if isinstance(value, Tensor) else type(value)(_map(part, change) for part in value)
