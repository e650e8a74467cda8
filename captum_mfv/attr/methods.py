"""Captum's methods: which can explain facets, and which let facets share a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import captum.attr
from captum.attr import Attribution, NeuronAttribution

from captum_mfv.attr.model import FacetModel
from captum_mfv.errors import FacetError

__all__ = ["Method", "check_method", "make", "name_of", "shares_passes"]

Method: TypeAlias = Callable[..., Attribution]

# These see the forward function from outside and treat every row alike, so that facets can share its passes.
_SHARING = (
    captum.attr.Saliency,
    captum.attr.InputXGradient,
    captum.attr.IntegratedGradients,
    captum.attr.FeatureAblation,
    captum.attr.ShapleyValueSampling,
)
_NOT_SHARING = (captum.attr.FeaturePermutation,)  # an ablation that mixes rows

_REFUSED = {
    "LayerActivation": "activations have no target: they are the same for every facet",
    "LayerFeaturePermutation": "Captum 0.9 fails on every model with a target",
    "DataLoaderAttribution": "it takes a method rather than a forward function; give it a FacetAttribution",
    "LLMAttribution": "it explains text, not images",
    "LLMGradientAttribution": "it explains text, not images",
    "RemoteLLMAttribution": "it explains text, not images",
}
_RULES = ("DeepLift", "LRP")  # in the names of methods that replace the gradients of modules


def shares_passes(method: Method) -> bool:
    """Whether all facets can share the forward passes of a method."""
    return inspect.isclass(method) and issubclass(method, _SHARING) and not issubclass(method, _NOT_SHARING)


def make(method: Method, arguments: tuple[Any, ...], options: Mapping[str, Any], model: FacetModel) -> Attribution:
    """An attribution by a method, for a facet model.

    Args:
        method: a class of Captum's, or a function that makes an attribution.
        arguments: what it takes first: a forward function and, of layers and neurons, a layer.
        options: what else it takes.
        model: the facet model that is explained.

    Raises:
        TypeError: if that is no attribution.
        FacetError: if it can't explain facets, or not this output's, saying why.
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
    return made


def _refuse(method: type, model: FacetModel) -> None:
    name = method.__name__
    if name in _REFUSED:
        raise FacetError(f"{name} can't explain facets: {_REFUSED[name]}")
    if model.output == "gated" and any(rules in name for rules in _RULES):
        raise FacetError(
            f"{name} can't explain output='gated': its rules don't see a softmax and a product; explain 'logits'"
        )


def name_of(method: Method) -> str:
    """What a method is called."""
    return getattr(method, "__name__", type(method).__name__)


def check_method(name: str | None) -> None:
    """Refuse the name of a method that `facet_maps` can't take.

    Raises:
        FacetError: if `captum.attr` has no attribution to inputs or to a layer of that name.
    """
    method = None if name is None else getattr(captum.attr, name, None)
    known = isinstance(method, type) and issubclass(method, Attribution) and not issubclass(method, NeuronAttribution)
    if name is not None and not known:
        raise FacetError(
            f"captum.attr has no attribution {name!r} to inputs or to a layer, such as IntegratedGradients"
        )
