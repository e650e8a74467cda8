"""Do attributions say what drives a facet: deletion, insertion, infidelity and sensitivity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import Attribution
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.errors import FacetError

__all__ = ["Curve", "Faithfulness", "deletion_curve", "faithfulness", "insertion_curve"]

Floats = NDArray[np.float64]

_ROWS = 64  # inputs in one forward pass


@dataclass(frozen=True, eq=False)
class Curve:
    """A target's score as pixels are taken away, or put in, the most attributed first.

    Args:
        shares: (n_steps + 1,) share of the pixels that were changed, from 0 to 1.
        scores: (N, n_steps + 1) the target's score.
        image: (N,) its score of the whole image.
        baseline: (N,) its score of the baseline alone.
    """

    shares: Floats
    scores: Floats
    image: Floats
    baseline: Floats

    @property
    def area(self) -> Floats:
        """(N,) area under the curve with the image's score as 1 and the baseline's as 0.

        Small is good of a deletion curve, large of an insertion curve; a random order is about .5 for a
        score that adds up over pixels. NaN where the image scores no more than the baseline.
        """
        gain = np.where(self.image > self.baseline, self.image - self.baseline, np.nan)
        scaled = (self.scores - self.baseline[:, None]) / gain[:, None]
        area: Floats = ((scaled[:, 1:] + scaled[:, :-1]) / 2 * np.diff(self.shares)).sum(1)
        return area


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How faithful attributions are to what they explain.

    Args:
        deletion: (N,) area under the deletion curve, the smaller the better.
        insertion: (N,) area under the insertion curve, the larger the better.
        infidelity: (N,) Captum's, of Gaussian noise, after the best scaling: the smaller the better.
        sensitivity: (N,) Captum's largest relative change under uniform noise, the smaller the better.
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
    """The target's score as pixels become the baseline, the most attributed first.

    Args:
        forward_func: a `attr.FacetModel`, or any function to (N, n_targets); run without gradients.
        inputs: (N, C, H, W) as the forward function takes them.
        attributions: (N, C, H, W), or (N, 1, H, W), one order for all channels: the sum over them.
        target: index of the output, or one for each input.
        baselines: what a pixel without content is, a number or what broadcasts against the inputs; 0 is the
            mean colour of a normalised input.
        n_steps: in how many steps of equally many pixels.

    Raises:
        FacetError: if inputs and attributions don't match.

    Source: Petsiuk et al. 2018, "RISE", arXiv 1806.07421.
    """
    return _curve(forward_func, inputs, attributions, target, baselines, n_steps, insert=False)


def insertion_curve(
    forward_func: Callable[..., Tensor],
    inputs: Tensor,
    attributions: Tensor,
    target: Any,
    *,
    baselines: Tensor | float = 0.0,
    n_steps: int = 20,
) -> Curve:
    """The target's score as the baseline's pixels become the image's, the most attributed first.

    Arguments, errors and source are those of `deletion_curve`.
    """
    return _curve(forward_func, inputs, attributions, target, baselines, n_steps, insert=True)


def _curve(
    forward_func: Callable[..., Tensor],
    inputs: Tensor,
    attributions: Tensor,
    target: Any,
    baselines: Tensor | float,
    n_steps: int,
    insert: bool,
) -> Curve:
    if n_steps < 1:
        raise FacetError(f"n_steps must be at least 1, not {n_steps}")
    if len(inputs) != len(attributions) or inputs.shape[2:] != attributions.shape[2:]:
        shapes = f"{tuple(inputs.shape)} and {tuple(attributions.shape)}"
        raise FacetError(f"inputs and attributions must have the same rows and pixels, not {shapes}")
    empty = torch.as_tensor(baselines, dtype=inputs.dtype, device=inputs.device).expand_as(inputs)
    shares = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    order = attributions.detach().sum(1, keepdim=True).flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(1).reshape(len(inputs), 1, *inputs.shape[2:])
    before, after = (empty, inputs) if insert else (inputs, empty)
    scores = [
        _scores(forward_func, torch.where(ranks < round(float(share) * ranks[0].numel()), after, before), target)
        for share in shares
    ]
    image, none = (scores[-1], scores[0]) if insert else (scores[0], scores[-1])
    return Curve(shares.numpy(), np.stack(scores, 1), image, none)


def _scores(forward_func: Callable[..., Tensor], inputs: Tensor, target: Any) -> Floats:
    with torch.no_grad():
        outputs = torch.cat([forward_func(rows) for rows in torch.split(inputs, _ROWS)])
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
    """How faithful a method's attributions are for one facet, or for a facet of each input.

    Args:
        explain: a `attr.FacetAttribution`, or any of Captum's attributions to inputs.
        inputs: (N, C, H, W) as the method takes them.
        target: the facet, or one for each input.
        baselines: what a pixel without content is, in the curves.
        curve_steps: steps of the curves.
        noise: standard deviation of infidelity's noise, in units of the input; a fifth of it is the radius of
            sensitivity's.
        n_samples: how often noise is drawn.
        seed: of the noise.
        **options: what the method's ``attribute`` takes, such as ``n_steps`` of integrated gradients.

    Source: Petsiuk et al. 2018, arXiv 1806.07421 (curves); Yeh et al. 2019, arXiv 1901.09392.
    """
    generator = torch.Generator(inputs.device).manual_seed(seed)

    def attribute(x: Any, target: Any = None) -> Any:
        if isinstance(x, tuple):  # as Captum hands it to sensitivity's function
            return (attribute(x[0], target),)
        return explain.attribute(x.detach().requires_grad_(), target=target, **options).detach()

    @infidelity_perturb_func_decorator(bool(explain.multiplies_by_inputs))  # type: ignore[untyped-decorator]
    def gaussian(x: Tensor) -> Tensor:
        return x - noise * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def uniform(x: Any, radius: float) -> tuple[Tensor, ...]:
        return tuple(
            part + radius * (2 * torch.rand(part.shape, generator=generator, device=part.device, dtype=part.dtype) - 1)
            for part in (x if isinstance(x, tuple) else (x,))
        )

    def curve(insert: bool) -> Curve:
        return _curve(forward, inputs, attributions, target, baselines, curve_steps, insert)

    forward, attributions = explain.forward_func, attribute(inputs, target)
    wrong = infidelity(
        forward, gaussian, inputs, attributions, target=target, n_perturb_samples=n_samples, normalize=True
    )
    moved = sensitivity_max(
        attribute, inputs, uniform, perturb_radius=noise / 5, n_perturb_samples=n_samples, target=target
    )
    return Faithfulness(
        deletion=curve(False).area,
        insertion=curve(True).area,
        infidelity=wrong.detach().double().cpu().numpy(),
        sensitivity=moved.detach().double().cpu().numpy(),
    )
