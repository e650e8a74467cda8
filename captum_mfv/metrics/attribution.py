"""Faithfulness of attributions: deletion, insertion, infidelity and sensitivity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.errors import FacetError
from captum_mfv.storage.schema import check_seed

if TYPE_CHECKING:
    from captum.attr import Attribution

__all__ = ["Curve", "Faithfulness", "deletion_curve", "faithfulness", "insertion_curve", "target_scores"]

Floats = NDArray[np.float64]

_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Curve:
    """Score of a target as pixels are removed or inserted, those of the largest attributions first.

    Args:
        shares: (n_steps + 1,) share of the pixels that were changed, from 0 to 1.
        scores: (N, n_steps + 1) score of the target.
        image, baseline: (N,) score of the whole image, and of the baseline alone.
    """

    shares: Floats
    scores: Floats
    image: Floats
    baseline: Floats

    @property
    def area(self) -> Floats:
        """Area under the curve, (N,), with the image's score scaled to 1 and the baseline's to 0.

        A random order gives about .5 for a score that is a sum over pixels. NaN where the image's score is not above
        the baseline's.
        """
        gain = np.where(self.image > self.baseline, self.image - self.baseline, np.nan)
        scaled = (self.scores - self.baseline[:, None]) / gain[:, None]
        return np.asarray(((scaled[:, 1:] + scaled[:, :-1]) / 2 * np.diff(self.shares)).sum(1))


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Faithfulness of attributions, one value per input, (N,) each.

    Args:
        deletion: area under the deletion curve; smaller is better.
        insertion: area under the insertion curve; larger is better.
        infidelity: Captum's infidelity with Gaussian noise, normalized; smaller is better.
        sensitivity: Captum's maximum sensitivity with uniform noise; smaller is better.
    """

    deletion: Floats
    insertion: Floats
    infidelity: Floats
    sensitivity: Floats


def deletion_curve(
    forward_func: Callable[..., Tensor],
    inputs: Tensor,
    attributions: Tensor,
    target: Any,
    *,
    baselines: Tensor | float = 0.0,
    n_steps: int = 20,
) -> Curve:
    """Return the target's score as pixels are replaced by the baseline, those of the largest attributions first.

    Args:
        forward_func: an `attr.FacetModel`, or any function to (N, n_targets); run without gradients.
        inputs: (N, C, H, W) inputs of the forward function.
        attributions: (N, C, H, W) or (N, 1, H, W); pixels are ordered by the sum over channels.
        target: index of the output, or one index for each input.
        baselines: value of a removed pixel, a number or a tensor that broadcasts to the inputs; 0 is the mean color
            of a normalized input.
        n_steps: number of steps, of the same number of pixels each.

    Raises:
        FacetError: if inputs and attributions differ in rows or pixels, or ``n_steps`` is below 1.

    Source: Petsiuk et al. 2018, "RISE", arXiv 1806.07421.
    """
    if n_steps < 1:
        raise FacetError(f"n_steps must be at least 1, not {n_steps}")
    if len(inputs) != len(attributions) or inputs.shape[2:] != attributions.shape[2:]:
        shapes = f"{tuple(inputs.shape)} and {tuple(attributions.shape)}"
        raise FacetError(f"inputs and attributions must have the same rows and pixels, not {shapes}")
    empty = torch.as_tensor(baselines, dtype=inputs.dtype, device=inputs.device).expand_as(inputs)
    shares = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64).numpy()
    order = attributions.detach().sum(1, keepdim=True).flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(1).reshape(len(inputs), 1, *inputs.shape[2:])
    masks = [ranks < round(share * ranks[0].numel()) for share in shares]
    scores = np.stack([target_scores(forward_func, torch.where(mask, empty, inputs), target) for mask in masks], 1)
    return Curve(shares, scores, scores[:, 0], scores[:, -1])


def insertion_curve(
    forward_func: Callable[..., Tensor],
    inputs: Tensor,
    attributions: Tensor,
    target: Any,
    *,
    baselines: Tensor | float = 0.0,
    n_steps: int = 20,
) -> Curve:
    """Return the target's score as the baseline's pixels are replaced by the image's, in the same order.

    Arguments, errors and source are those of `deletion_curve`.
    """
    empty = torch.as_tensor(baselines, dtype=inputs.dtype, device=inputs.device).expand_as(inputs)
    curve = deletion_curve(forward_func, empty, attributions, target, baselines=inputs, n_steps=n_steps)
    return replace(curve, image=curve.baseline, baseline=curve.image)


def target_scores(forward_func: Callable[..., Tensor], inputs: Tensor, target: Any) -> Floats:
    """Return a target's score of each input, (N,), without gradients; arguments as in `deletion_curve`."""
    with torch.no_grad():
        outputs = torch.cat([forward_func(rows) for rows in torch.split(inputs, _BATCH_SIZE)])
    columns = torch.as_tensor(target, device=outputs.device).expand(len(outputs))
    return np.asarray(outputs.gather(1, columns[:, None])[:, 0].double().cpu())


def faithfulness(
    explain: Attribution,
    inputs: Tensor,
    target: Any,
    *,
    baselines: Tensor | float = 0.0,
    curve_steps: int = 20,
    noise: float = 0.1,
    n_samples: int = 10,
    seed: int = 0,
    **options: Any,
) -> Faithfulness:
    """Return the faithfulness of a method's attributions for one facet, or for one facet per input.

    Args:
        explain: an `attr.FacetAttribution`, or any of Captum's attributions to inputs.
        inputs: (N, C, H, W) inputs of the method.
        target: index of the facet, or one index for each input.
        baselines, curve_steps: of the curves, as in `deletion_curve`.
        noise: standard deviation of infidelity's noise, in units of the input; the radius of sensitivity's noise is a
            fifth of it.
        n_samples: number of noise samples.
        seed: seed of the noise.
        **options: keyword arguments of the method's ``attribute``, such as ``n_steps`` of integrated gradients.

    Raises:
        TypeError, ValueError: if the seed is not an integer from 0 to 2**32 - 1.

    Source: Petsiuk et al. 2018, arXiv 1806.07421 (curves); Yeh et al. 2019, arXiv 1901.09392.
    """
    from captum.metrics import (
        infidelity,
        infidelity_perturb_func_decorator,
        sensitivity_max,
    )  # here, since it takes a second

    generator = torch.Generator(inputs.device).manual_seed(check_seed(seed))

    def attribute(x: Any, target: Any = None) -> Any:
        if isinstance(x, tuple):  # Captum passes a tensor or a tuple of it
            return (attribute(x[0], target),)
        return explain.attribute(x.detach().requires_grad_(), target=target, **options).detach()

    @infidelity_perturb_func_decorator(bool(explain.multiplies_by_inputs))  # type: ignore[untyped-decorator]
    def gaussian(x: Tensor) -> Tensor:
        return x - noise * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def uniform(x: Any, radius: float) -> tuple[Tensor]:
        (x,) = x if isinstance(x, tuple) else (x,)
        return (x + radius * (2 * torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) - 1),)

    forward, attributions = explain.forward_func, attribute(inputs, target)
    samples: dict[str, Any] = {"target": target, "n_perturb_samples": n_samples}
    wrong = infidelity(forward, gaussian, inputs, attributions, normalize=True, **samples)
    moved = sensitivity_max(attribute, inputs, uniform, perturb_radius=noise / 5, **samples)
    areas = [
        curve(forward, inputs, attributions, target, baselines=baselines, n_steps=curve_steps).area
        for curve in (deletion_curve, insertion_curve)
    ]
    return Faithfulness(*areas, *(values.detach().double().cpu().numpy() for values in (wrong, moved)))
