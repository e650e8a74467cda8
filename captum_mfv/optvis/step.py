"""One gradient step of a batch: forward pass, losses, gradient, optimizer, and the record of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.activations.batching import AdaptiveBatches
from captum_mfv.errors import RenderError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.optvis.cuda_graph import Recorded
from captum_mfv.optvis.optimizers import DampedAdam, TVAscent
from captum_mfv.optvis.param import ParamF, Transparency
from captum_mfv.optvis.recipes import Phase
from captum_mfv.optvis.terms import ACTIVATION, INPUT, Term
from captum_mfv.optvis.transform import CenterCrop, Transform, compose, make_transform

__all__ = [
    "History",
    "PassResult",
    "Passes",
    "PhaseState",
    "make_optimizer",
    "make_transforms",
    "prefixed",
    "schedule",
]

_READ_EVERY = 25  # steps between two reads of losses; each read waits for the device


@dataclass(frozen=True, eq=False)
class PassResult:
    """Losses and gradients of a forward and a backward pass, on the images' device.

    Losses are (B,) by term, unweighted, and as ``activation`` the unit's activation; the total is weighted. Gradients
    are the total's, (B, C, H, W): through the network's input in [0, 1], and through terms that read `INPUT`.
    """

    losses: Mapping[str, Tensor]
    total: Tensor
    view_gradients: Tensor
    image_gradients: Tensor


@dataclass(frozen=True, eq=False)
class Passes:
    """Forward and backward passes through the network, as many images at a time as memory holds.

    ``terms`` are the phase's terms and, as ``activation``, the unit's activation, with one row per image of the batch.
    """

    run: Callable[[Tensor], dict[str, Tensor]]  # from the network's input to layers' outputs
    feed: Callable[[Tensor], Tensor]  # from images in [0, 1] to the network's input
    terms: Mapping[str, Term]
    weights: Mapping[str, float]
    dtype: torch.dtype | None  # precision of the network under autocast
    batches: AdaptiveBatches
    _parts: dict[tuple[int, int], Callable[[Tensor, Tensor], PassResult]] = field(default_factory=dict, init=False)

    def __call__(self, images: Tensor, views: Tensor) -> PassResult:
        """Return losses and gradients of images and of their transformed views, both (B, C, H, W)."""
        images, views = images.detach(), views.detach()
        parts = self.batches(len(views), lambda rows: self._part(rows, views)(images[rows], views[rows]))
        losses = {name: torch.cat([part.losses[name] for part in parts]) for name in parts[0].losses}
        names = ("total", "view_gradients", "image_gradients")
        return PassResult(losses, *(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def _part(self, rows: slice, views: Tensor) -> Callable[[Tensor, Tensor], PassResult]:
        """Return the pass of some rows, with their terms on the images' device.

        It is recorded if it is of all rows: a recording keeps its memory, so that parts would take that of the whole.
        """
        key = (rows.start, rows.stop)
        if key not in self._parts:
            terms = {name: term.rows(range(*key), views.device) for name, term in self.terms.items()}
            work = partial(self._pass, terms)
            self._parts[key] = Recorded(work) if key == (0, len(views)) else work
        return self._parts[key]

    def _pass(self, terms: Mapping[str, Term], images: Tensor, views: Tensor) -> PassResult:
        images, views = (given.detach().requires_grad_() for given in (images, views))
        with torch.autocast(views.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.run(self.feed(views))
        for output in outputs.values():
            _keep_layout(output)
        outputs |= {INPUT: images, ACTIVATION: terms["activation"](outputs)}
        losses = {name: term(outputs).float() for name, term in terms.items()}
        total = torch.stack([weight * losses[name] for name, weight in self.weights.items()]).sum(0)
        gradients = torch.autograd.grad(total.sum(), [views, images], allow_unused=True, materialize_grads=True)
        return PassResult({name: loss.detach() for name, loss in losses.items()}, total.detach(), *gradients)


def _keep_layout(output: Tensor) -> None:
    """Keep gradients in channels-last layout; in another layout each earlier layer would copy them."""
    if output.ndim == 4 and output.requires_grad and output.is_contiguous(memory_format=torch.channels_last):
        output.register_hook(partial(Tensor.contiguous, memory_format=torch.channels_last))  # type: ignore[no-untyped-call]


@dataclass(eq=False)
class PhaseState:
    """State of a phase after ``step`` steps, with one row of parameters per image; made by `begin`."""

    phase: Phase
    params: list[Tensor]
    image_f: Callable[[], Tensor]
    transform: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    transparency: Transparency
    step: int = 0

    @classmethod
    def begin(cls, phase: Phase, param_f: ParamF, size: int, generators: Sequence[torch.Generator]) -> PhaseState:
        """Return the state before the first step of a phase."""
        transparency = Transparency(param_f)
        params, image_f = transparency()
        transforms = make_transforms(phase, size, generators)
        optimizer = make_optimizer(phase, params, transforms)
        return cls(phase, params, image_f, compose(transforms), optimizer, transparency)

    def advance(self, passes: Passes, history: History) -> Tensor:
        """Do one gradient step, record it, and return the images before it, (B, C, H, W)."""
        schedule(self.optimizer, self.phase, self.step)
        images = self.image_f()
        views = self.transform(images)
        result = passes(images, views)
        gradients = [result.view_gradients, result.image_gradients]
        torch.autograd.backward([views, images], gradients, inputs=self.params)
        self.optimizer.step()
        self.step += 1
        history.add(result, self.params[0])
        self.optimizer.zero_grad()
        return images.detach()

    def state(self) -> dict[str, Tensor]:
        """Return the state needed to resume, apart from the images' generators; tensors are not copied."""
        moments = {
            f"optimizer.{i}.{name}": value
            for i, param in enumerate(self.params)
            for name, value in self.optimizer.state[param].items()
        }
        params = {f"param.{i}": param.detach() for i, param in enumerate(self.params)}
        return {"step": torch.tensor(self.step), **params, **moments, "transparency": self.transparency.total}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a state of the same phase; KeyError, RuntimeError or ValueError for another phase's state."""
        self.step = int(state["step"])
        self.transparency.total = state["transparency"].to(self.params[0].device)
        for i, param in enumerate(self.params):
            param.data.copy_(state[f"param.{i}"])
            moments = prefixed(f"optimizer.{i}.", state)
            if any(value.ndim and value.shape != param.shape for value in moments.values()):
                raise ValueError("the optimizer's moments have another shape than the images")
            self.optimizer.state[param] = {
                name: value.to(param.device if value.ndim else None) for name, value in moments.items()
            }


def make_transforms(phase: Phase, size: int, generators: Sequence[torch.Generator]) -> list[Transform]:
    """Return a phase's transforms, of images with a generator each."""
    return [make_transform(name, arguments, size, generators) for name, arguments in phase.transforms.items()]


def make_optimizer(phase: Phase, params: Sequence[Tensor], transforms: Sequence[Transform]) -> torch.optim.Optimizer:
    """Return a phase's optimizer; `TVAscent` steps within the window of the transforms' crop."""
    if phase.optimizer == "adam":
        return torch.optim.Adam(params, lr=phase.lr.start)
    if phase.optimizer == "damped_adam":
        return DampedAdam(params, lr=phase.lr.start)
    return TVAscent(params, crop=next((one for one in transforms if isinstance(one, CenterCrop)), None))


def schedule(optimizer: torch.optim.Optimizer, phase: Phase, step: int) -> None:
    """Set the optimizer's learning rate and denoiser for a step, 0 … n_steps − 1."""
    for group in optimizer.param_groups:
        group["lr"] = phase.lr.at(step, phase.steps)
        if phase.tv_weight is not None:
            group["tv_weight"] = phase.tv_weight.at(step, phase.steps)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class History:
    """Losses of each step for the facet of each image; on the device until `read`, which is due every 25 steps."""

    def __init__(self, facets: Sequence[Facet]) -> None:
        self.facets = facets
        self.steps: list[dict[str, Tensor]] = []
        self._unread: list[tuple[list[str], Tensor]] = []

    def __len__(self) -> int:
        return len(self.steps) + len(self._unread)

    def add(self, result: PassResult, parameter: Tensor) -> None:
        """Append the losses of a step, whether they are finite, and whether a gradient reaches the parameter."""
        assert parameter.grad is not None
        steepest = parameter.grad.flatten(1).abs().amax(1)  # NaN where any number is
        finite = result.total.isfinite() & result.losses["activation"].isfinite() & steepest.isfinite()
        record = torch.stack([*result.losses.values(), finite.float(), (steepest > 0).float()])
        self._unread.append((list(result.losses), record))
        if len(self._unread) >= _READ_EVERY:
            self.read()

    def read(self) -> None:
        """Copy unread losses to the CPU; RenderError if one isn't finite, or if no gradient reached an image."""
        unread, self._unread = self._unread, []
        if unread:
            records = torch.stack([record for _, record in unread]).cpu()
            fine = records[:, -2:].bool().flatten(1).all(1).tolist()
            for (names, _), record, is_fine in zip(unread, records, fine, strict=True):
                if not is_fine:
                    self._fail(*record[-2:].bool().tolist())
                self.steps.append(dict(zip(names, record, strict=False)))

    def _fail(self, finite: list[bool], alive: list[bool]) -> None:
        for item, is_finite, is_alive in zip(self.facets, finite, alive, strict=True):
            facet, step = f"facet {item.index} of {item.unit}", len(self.steps)
            if not is_finite:
                raise RenderError(f"{facet}: the loss, its gradient or the unit isn't finite at step {step}")
            if not is_alive:
                reason = "is the unit dead, or behind a saturated layer?"
                raise RenderError(f"{facet}: no gradient reaches the image at step {step}; {reason}")

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return (n_steps, B) of each term; NaN in phases without the term."""
        self.read()
        names = {name: None for step in self.steps for name in step}
        missing = torch.full((len(self.facets),), torch.nan)
        return {name: torch.stack([step.get(name, missing) for step in self.steps]).numpy() for name in names}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Resume from the arrays by name."""
        for i in range(len(arrays["activation"])):
            step = {name: values[i] for name, values in arrays.items()}
            self.steps.append({name: values for name, values in step.items() if not values.isnan().all()})
