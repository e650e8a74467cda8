"""Attributions as maps of the image's size, one facet per image, and as codes in which facets can be found."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import captum.attr
import numpy as np
import torch
from captum.attr import Attribution, LayerAttribution, LayerGradientXActivation, NeuronAttribution
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.activations.capture import batch_axis, guard
from captum_mfv.activations.layers import LayerCall, resolve, spatial_layers, trace
from captum_mfv.attr.attribution import REFUSED, FacetAttribution, LayerFacetAttribution
from captum_mfv.attr.model import FacetModel, LayerOutput, cast_inputs, facet_targets, to_float, unit_forward
from captum_mfv.display.progress import Progress
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, InputSpec, stack
from captum_mfv.images.loading import check_range
from captum_mfv.units import Unit, channels_second

__all__ = ["AttributionCode", "check_method", "facet_maps", "pure_code"]

_BATCH = 16  # images explained together, at most
_PATCHES = 8  # patches along each side of the image, for methods that replace parts of it
_NO_MAP = {"FeaturePermutation": "its values depend on which images share a batch", **REFUSED}
_NEEDS = {"ShapleyValues": {"feature_mask"}}  # beside parameters without a default: n features take n! orders
_GIVEN = {"self", "forward_func", "model", "inputs", "sliding_window_shapes"}  # `facet_maps` passes these itself
_SUCH_AS = "choose one such as IntegratedGradients"


def facet_maps(
    model: nn.Module,
    facets: FacetSet,
    images: Images,
    targets: int | Sequence[int] | NDArray[np.integer[Any]] | Tensor,
    *,
    method: str | None = None,
    input_spec: InputSpec | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """Map the parts of each image that distinguish its facet from the others, by any of Captum's methods.

    The explained quantity is the facet's logit minus the mean logit of the other facets, and for a set of one
    facet the unit's activation (`explained` returns the sentence for captions).

    Args:
        model: the model in which the facets were found; unchanged afterwards.
        facets: the facets.
        images: images in [0, 1], all of one size: a tensor, (N, C, H, W), a list or a dataset.
        targets: the facet of each image, or one for all images.
        method: name of a class of `captum.attr` that attributes to inputs, or to a layer, which is the code's. By
            default gradient times activation of the code's layer if its output is (N, C, H, W), which for a pooled
            code is exactly each position's share of the facet's score; otherwise integrated gradients. Methods that
            replace parts of the image use square patches of an eighth of its side, and occlusion moves by half a
            patch, unless ``feature_mask`` or ``sliding_window_shapes`` is given.
        input_spec: preprocessing from images in [0, 1] to the model's input.
        seed: seed of methods that draw at random, such as ShapleyValueSampling.
        progress: show a progress bar.
        **options: other arguments of the method's ``attribute``, such as ``n_steps``, the same for each batch.

    Returns:
        (N, H, W) float32 on the CPU, summed over channels; maps of a layer are upsampled bilinearly.

    Raises:
        FacetError: if there is no such method, it can't explain facets or lacks an argument, or a target isn't a
            facet, all checked before the model runs; or if attributions aren't finite.
        ImageError: if images aren't in [0, 1] or differ in size.
    """
    check_method(method, options)
    if not len(images):
        raise FacetError("images must hold at least one image")
    batch, spec = stack(images, range(len(images))), input_spec or InputSpec()
    one = facet_targets(targets, len(batch), len(facets))
    each = [one] * len(batch) if isinstance(one, int) else one
    needed = (facets.code.layer, facets.unit.layer_name)
    calls = {call.name: call for call in trace(model, spec.feed(model)(batch[:1]), until=needed)}
    method = method or _default(calls, facets)
    device = next((weight.device for weight in model.parameters()), None)
    options = {**_patches(method, spec, device), **options}
    bar = Progress(total=len(batch), desc="attributions", unit="image", disable=not progress)
    with guard(model), _seeded(seed), bar:
        explainer = _explainer(method, FacetModel(model, facets), calls[facets.code.layer])

        def explain(rows: slice) -> Tensor:
            inputs = spec(batch[rows].to(device)).contiguous(memory_format=torch.channels_last)
            found = _summed(explainer.attribute(inputs, target=each[rows], **options), facets, explainer)
            bar.update(len(found))
            return found

        limit = 1 if method in ("Lime", "KernelShap") else _BATCH  # Captum fits one linear model per image
        found = AdaptiveBatches(cpu_batch_size(model, spec, limit))(len(batch), explain)
    maps = torch.cat(found)[:, None]
    if not maps.isfinite().all():
        raise FacetError(f"{method} gives attributions that aren't finite; use a model in float32, or another method")
    if maps.shape[-2:] != batch.shape[-2:]:
        maps = torch.nn.functional.interpolate(maps, batch.shape[-2:], mode="bilinear", align_corners=False)
    return maps[:, 0]


def _default(calls: dict[str, LayerCall], facets: FacetSet) -> str:
    layer = calls[facets.code.layer]
    before = spatial_layers(list(calls.values()), facets.unit.layer_name)
    in_positions = len(layer.shape) == 4 and layer.name in before and facets.code.channels != "last"
    return "LayerGradientXActivation" if in_positions else "IntegratedGradients"


def _patches(method: str, spec: InputSpec, device: torch.device | None) -> dict[str, Any]:
    """Default arguments of methods that replace parts of the image: one feature per patch, not per pixel."""
    side = max(1, spec.size // _PATCHES)
    if method == "Occlusion":
        step = max(1, side // 2)
        return {"sliding_window_shapes": (spec.channels, side, side), "strides": (spec.channels, step, step)}
    if method in ("FeatureAblation", "ShapleyValueSampling", "KernelShap", "Lime"):
        place = torch.arange(spec.size, device=device) // side
        return {"feature_mask": (place[:, None] * (int(place[-1]) + 1) + place)[None, None]}
    return {}


def _explainer(name: str, model: FacetModel, layer: LayerCall) -> Attribution:
    method, contrast = getattr(captum.attr, name), model.n_facets > 1
    if not issubclass(method, LayerAttribution):
        return FacetAttribution(method, model, contrast=contrast)
    if len(layer.shape) != 4 or (model.code.channels == "last" and name == "LayerGradCam"):
        form = "(N, C, H, W)" if name == "LayerGradCam" else "a map, (N, C, H, W) or (N, H, W, C)"
        raise FacetError(
            f"{name} attributes to the code's layer {layer.name}, whose output of shape {layer.shape} is not {form}; "
            f"choose a method that attributes to inputs, such as IntegratedGradients"
        )
    module = LayerOutput(model.model, layer.name) if layer.container else model.model.get_submodule(layer.name)
    return LayerFacetAttribution(method, model, module, contrast=contrast)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of PyTorch and NumPy, from which Captum draws, and restore them."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def _summed(attributions: Any, facets: FacetSet, explainer: Attribution) -> Tensor:
    """Sum attributions over channels, in float32 on the CPU."""
    if not isinstance(attributions, Tensor) or attributions.ndim != 4:
        raise FacetError("facet_maps needs attributions of shape (N, C, H, W), and nothing beside them")
    last = facets.code.channels if isinstance(explainer, LayerFacetAttribution) else None
    return channels_second(attributions.float(), last or "first").sum(1).cpu()


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
        layer: the layer whose channels are attributed to; by default that of the default code (`find_facets`).
        input_spec: preprocessing from images in [0, 1] to the model's input.

    Raises:
        UnitError: if the model has no such unit or layer.

    Source: Dreyer et al. 2024, "PURE: Turning polysemantic neurons into pure features", arXiv 2404.06453.
    """
    spec = input_spec or InputSpec()
    unit, code = resolve(model, unit, layer, spec)
    attribution = LayerGradientXActivation(unit_forward(model, unit), LayerOutput(model, code.layer))
    return AttributionCode(attribution, input_spec=spec)
