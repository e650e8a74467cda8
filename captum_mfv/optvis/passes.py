"""What the network says of a batch of images, and what would change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from captum_mfv.activations.batching import AdaptiveBatches
from captum_mfv.optvis.terms import INPUT, Term

__all__ = ["Pass", "Seen"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What the network says of a batch of images.

    Args:
        losses: each term, (B,), unweighted.
        total: (B,) their weighted sum.
        activation: (B,) the unit's.
        views: (B, C, H, W) the total's gradient with respect to what the network sees.
        images: the same with respect to the images themselves; zero where no term reads them.
    """

    losses: Mapping[str, Tensor]
    total: Tensor
    activation: Tensor
    views: Tensor
    images: Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """Forward and backward through the network, a portion of the batch at a time.

    Args:
        run: from the network's input to layers' outputs.
        feed: from images in [0, 1] to the network's input.
        activation: each image's own unit, a row for each image of the batch.
        terms: objective terms by name, a row for each image of the batch.
        weights: their weights.
        dtype: precision of the network under autocast, or None for its own.
        portions: how many images at once.
    """

    run: Callable[[Tensor], dict[str, Tensor]]
    feed: Callable[[Tensor], Tensor]
    activation: Term
    terms: Mapping[str, Term]
    weights: Mapping[str, float]
    dtype: torch.dtype | None
    portions: AdaptiveBatches
    _parts: dict[tuple[int, int], tuple[Term, Mapping[str, Term]]] = field(default_factory=dict, init=False)

    def __call__(self, images: Tensor, views: Tensor) -> Seen:
        """Of images, and of what the network is to see of them, both (B, C, H, W)."""
        images, views = images.detach(), views.detach()
        parts = self.portions(len(views), lambda rows: self._see(images[rows], views[rows], rows))
        return Seen(
            {name: torch.cat([part.losses[name] for part in parts]) for name in self.terms},
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("total", "activation", "views", "images")
            ),
        )

    def _terms(self, rows: slice, views: Tensor) -> tuple[Term, Mapping[str, Term]]:
        """The terms of a portion, on the images' device."""
        key = (rows.start, rows.stop)
        if key not in self._parts:
            terms = {name: term.rows(range(*key), views.device) for name, term in self.terms.items()}
            self._parts[key] = self.activation.rows(range(*key), views.device), terms
        return self._parts[key]

    def _see(self, images: Tensor, views: Tensor, rows: slice) -> Seen:
        read, terms = self._terms(rows, views)
        wanted = [views.requires_grad_(), images.requires_grad_()]
        with torch.autocast(views.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.run(self.feed(views))
        for output in outputs.values():
            _keep_layout(output)
        outputs[INPUT] = images
        losses = {name: term(outputs).float() for name, term in terms.items()}
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum(0)
        gradients = torch.autograd.grad(total.sum(), wanted, allow_unused=True, materialize_grads=True)
        activation = read(outputs).detach()
        return Seen({name: loss.detach() for name, loss in losses.items()}, total.detach(), activation, *gradients)


def _keep_layout(output: Tensor) -> None:
    """Hand a layer's gradient on in its own layout; one that terms leave in another is copied in each layer before."""
    if output.ndim == 4 and output.requires_grad and output.is_contiguous(memory_format=torch.channels_last):
        output.register_hook(partial(Tensor.contiguous, memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
