"""Nearest facet center: as a function of arrays and as a PyTorch module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["FacetHead", "nearest"]


def nearest(codes: NDArray[Any], centers: NDArray[Any]) -> NDArray[np.intp]:
    """Return the index of the center, (n_facets, D), nearest to each code, (N, D), by Euclidean distance, (N,).

    The centers' mean is subtracted in float64 first, so that codes far from zero keep their precision.
    """
    origin = centers.mean(0, dtype=np.float64)
    codes, centers = codes - origin, centers - origin
    return np.asarray(((centers**2).sum(1) / 2 - codes @ centers.T).argmin(1))


class FacetHead(nn.Module):
    """Linear classifier from codes, (N, D), to facet logits, (N, n_facets); frozen.

    The largest logit is that of the nearest center. The softmax is the posterior of equally likely spherical
    Gaussians around the centers. The mean of the centers is subtracted from codes before the linear layer: folded into
    the bias, it would cost float32 the precision of codes far from zero. Logits therefore compare each center with the
    mean of all centers; those of a single facet are 0.

    Args:
        centers: (n_facets, D) facet centers.
        variance: variance of the Gaussians along each direction.

    Attributes:
        origin: (D,) mean of the centers.
        linear: layer from codes minus the origin to logits.
    """

    origin: Tensor

    def __init__(self, centers: NDArray[Any], variance: float) -> None:
        super().__init__()
        self.register_buffer("origin", torch.from_numpy(centers.mean(0, dtype=np.float64)).float())
        offsets = torch.from_numpy(centers).double() - self.origin.double()
        n_facets, n_features = offsets.shape
        linear = nn.Linear(n_features, n_facets, device="meta")  # draws no random numbers
        self.linear = linear.to_empty(device="cpu")
        with torch.no_grad():
            self.linear.weight.copy_(offsets / variance)
            self.linear.bias.copy_(-offsets.square().sum(1) / (2 * variance))
        self.requires_grad_(False)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits, (N, n_facets), in the dtype of the head."""
        logits: Tensor = self.linear(codes.to(self.origin.dtype) - self.origin)
        return logits
