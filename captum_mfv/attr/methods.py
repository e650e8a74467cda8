"""Captum's methods: which can explain facets, and which let facets share a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import captum.attr
from captum.attr import Attribution, LayerAttribution, NeuronAttribution

from captum_mfv.attr.model import FacetModel
from captum_mfv.errors import FacetError

__all__ = ["Method", "check_method", "make", "name_of", "shares_passes"]

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
_REFUSED = {
    "LayerActivation": "activations have no target: they are the same for every facet",
    "LayerFeaturePermutation": "Captum 0.9 fails on every model with a target",
    "DataLoaderAttribution": "its argument is a method, not a forward function; give it a FacetAttribution",
    **dict.fromkeys(("LLMAttribution", "LLMGradientAttribution", "RemoteLLMAttribution"), _TEXT),
}
_NO_MAP = {"FeaturePermutation": "its values depend on which images share a batch", **_REFUSED}
_NEEDS = {"ShapleyValues": {"feature_mask"}}  # beside parameters without a default: n features take n! orders
_RULES = ("DeepLift", "LRP")  # in the names of methods that replace the gradients of modules
_GIVEN = {"self", "forward_func", "model", "inputs", "sliding_window_shapes"}  # `facet_maps` passes these itself
_SUCH_AS = "choose one such as IntegratedGradients"


def shares_passes(method: Method) -> bool:
    """Whether all facets can share the forward passes of a method."""
    return inspect.isclass(method) and issubclass(method, _SHARING) and not issubclass(method, _NOT_SHARING)


def make(
    kind: str, method: Method, arguments: tuple[Any, ...], options: Mapping[str, Any], model: FacetModel
) -> Attribution:
    """Construct an attribution to inputs, a layer or a neuron (the kind) for a facet model.

    The first arguments are a forward function and, for layers and neurons, a layer; the options are the others.

    Raises:
        TypeError: if ``method`` doesn't return an attribution of this kind.
        FacetError: if the attribution can't explain facets, or not this output; the message gives the reason.
    """
    if not callable(method):
        raise TypeError(f"method must be a class of captum.attr, or a function that makes one, not {method!r}")
    if inspect.isclass(method):
        _refuse(method, model)
    made = method(*arguments, **options)
    if not isinstance(made, Attribution):
        raise TypeError(f"{name_of(method)} made a {type(made).__name__}, not an attribution of captum.attr")
    inner = made
    while hasattr(inner, "attribution_method"):
        inner = inner.attribution_method
    _refuse(type(inner), model)
    found = "a layer" if isinstance(made, LayerAttribution) else "inputs"
    found = "a neuron" if isinstance(made, NeuronAttribution) else found
    if found != kind:
        other = {"inputs": "FacetAttribution", "a layer": "LayerFacetAttribution", "a neuron": "NeuronFacetAttribution"}
        raise TypeError(f"{name_of(method)} attributes to {found}, not to {kind}; use {other[found]}")
    return made


def _refuse(method: type, model: FacetModel) -> None:
    name = method.__name__
    if name in _REFUSED:
        raise FacetError(f"{name} can't explain facets: {_REFUSED[name]}")
    if model.output == "gated" and model.n_facets > 1 and any(rules in name for rules in _RULES):
        raise FacetError(
            f"{name} can't explain output='gated': it has no rule for a softmax or a product; explain 'logits'"
        )


def name_of(method: Method) -> str:
    """Return the name of a class or function, or of the class of another callable."""
    return getattr(method, "__name__", type(method).__name__)


def check_method(name: str | None, options: Collection[str] = ()) -> None:
    """Raise an error if `facet_maps` can't use a method; nothing is run.

    Args:
        name: name of a class of `captum.attr`; None is the default method.
        options: names of the arguments that the caller gives to the method's ``attribute``.

    Raises:
        FacetError: if `captum.attr` has no attribution of that name to inputs or to a layer, the method can't
            explain facets, it lacks an argument, or it has no argument of a given name.
    """
    if name is None:
        return
    method = getattr(captum.attr, name, None)
    if not (isinstance(method, type) and issubclass(method, Attribution) and "attribute" in dir(method)):
        raise FacetError(f"captum.attr has no attribution {name!r}; {_SUCH_AS}")
    if issubclass(method, NeuronAttribution):
        raise FacetError(f"{name} attributes to a neuron of a layer, not to inputs or to a layer; {_SUCH_AS}")
    if reason := _NO_MAP.get(name):
        raise FacetError(f"{name} can't explain facets: {reason}; {_SUCH_AS}")
    if more := _required(method) - ({"layer"} if issubclass(method, LayerAttribution) else set()):
        raise FacetError(
            f"{name} must be constructed with {', '.join(sorted(more))}, which facet_maps can't pass; construct a "
            f"FacetAttribution with it, or {_SUCH_AS}"
        )
    attribute = getattr(method, "attribute")  # noqa: B009
    if missing := (_required(attribute) | _NEEDS.get(name, set())) - set(options):
        raise FacetError(f"{name} needs {', '.join(sorted(missing))}: pass it to attr.facet_maps, or {_SUCH_AS}")
    parameters = inspect.signature(attribute).parameters.values()
    unknown = set(options) - {parameter.name for parameter in parameters}
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise FacetError(f"{name} has no argument {', '.join(sorted(unknown))}")


def _required(function: Callable[..., Any]) -> set[str]:
    """Names of the parameters without a default that the caller has to give."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.default is p.empty and p.kind in kinds} - _GIVEN
