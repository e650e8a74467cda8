"""The patch swap: does the patch that an attribution points at raise the score of other images?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.errors import FacetError
from captum_mfv.metrics.attribution import target_scores
from captum_mfv.metrics.intervals import Estimate, estimate
from captum_mfv.storage.schema import check_integer, check_seed

__all__ = ["PatchSwap", "patch_swap"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PatchSwap:
    """Gains of a target's score by a patch pasted into other images, the hosts; (N, M) for N images and M hosts each.

    Args:
        gains: score of the host with the patch of the image's largest attribution minus that of the host.
        controls: by name, gains of other patches pasted at the same place: ``random place``, from a random place of
            the same image; ``another target``, the patch of the largest attribution of an image of another target, if
            there is one; ``host``, from a random place of the host itself, which shows what the cut alone does.
        places: (N, 2) row and column of the upper left pixel of each image's patch.
    """

    gains: Floats
    controls: Mapping[str, Floats]
    places: NDArray[np.int64]

    @property
    def estimate(self) -> Estimate:
        """Mean gain with its interval over images; a mean over hosts is one observation."""
        return estimate(self.gains.mean(1))

    @property
    def differences(self) -> dict[str, Estimate]:
        """Mean difference of the gain from that of each control, with its interval over images."""
        return {name: estimate((self.gains - gains).mean(1)) for name, gains in self.controls.items()}


def patch_swap(
    forward_func: Callable[..., Tensor],
    images: Tensor,
    attributions: Tensor,
    hosts: Tensor,
    target: Any,
    *,
    side: int,
    others: Sequence[int] | None = None,
    seed: int = 0,
) -> PatchSwap:
    """Return the gain of a target's score when the patch of each image's largest attribution is pasted into hosts.

    The patch is the square with the largest sum of attributions. All patches, also those of controls, are pasted at its
    place, so that only their content differs.

    Args:
        forward_func: an `attr.FacetModel`, or any function to (N, n_targets); run without gradients.
        images: (N, C, H, W) inputs of the forward function.
        attributions: (N, C, H, W) or (N, 1, H, W) attributions of the images; they are summed over channels.
        hosts: (M, C, H, W) inputs of the forward function, such as images on which the unit is not active.
        target: index of the output, or one index for each image.
        side: side of the patch in pixels.
        others: index of the image whose patch is the control ``another target``, for each image; by default the next
            image of another target.
        seed: seed of the random places.

    Raises:
        FacetError: if images, attributions and hosts don't fit each other, a patch isn't smaller than an image, or
            ``others`` doesn't have an image for each image.
        TypeError, ValueError: if the seed is not an integer from 0 to 2**32 - 1.

    Source: after the patch swaps of Kumar & Gupta 2025, "Disentangling polysemantic neurons with a null-calibrated
    polysemanticity index and causal patch interventions", arXiv 2508.16950.
    """
    side, rng = check_integer(side, "side", 1, FacetError), np.random.default_rng(check_seed(seed))
    _check(images, attributions, hosts, side)
    targets = _targets(target, len(images))
    others = _others(targets) if others is None else list(others)
    if others and (len(others) != len(images) or not all(0 <= other < len(images) for other in others)):
        raise FacetError(f"others must have an index of an image for each of the {len(images)} images, not {others}")
    places = _largest(attributions, side)
    bare = {int(t): target_scores(forward_func, hosts, int(t)) for t in np.unique(targets)}

    def gain(i: int, sources: Tensor, corners: NDArray[np.int64]) -> Floats:
        """Return gains by patches of the sources, one for each host, pasted at the place of image i."""
        changed = _pasted(hosts, places[i], sources, np.broadcast_to(corners, (len(hosts), 2)), side)
        return target_scores(forward_func, changed, int(targets[i])) - bare[int(targets[i])]

    def random_corners() -> NDArray[np.int64]:
        return rng.integers([pixels - side + 1 for pixels in images.shape[-2:]], size=(len(hosts), 2))

    own, controls = [], dict[str, list[Floats]]()
    for i, image in enumerate(images):
        same = image.expand_as(hosts)
        own.append(gain(i, same, places[i]))
        found = {"random place": gain(i, same, random_corners())}
        if others:
            found["another target"] = gain(i, images[others[i]].expand_as(hosts), places[others[i]])
        found["host"] = gain(i, hosts, random_corners())
        for name, gains in found.items():
            controls.setdefault(name, []).append(gains)
    return PatchSwap(np.stack(own), {name: np.stack(gains) for name, gains in controls.items()}, places)


def _check(images: Tensor, attributions: Tensor, hosts: Tensor, side: int) -> None:
    """Raise FacetError unless images, attributions, hosts and the side of a patch fit each other."""
    if attributions.shape[:1] != images.shape[:1] or images.shape[-2:] != attributions.shape[-2:]:
        shapes = f"{tuple(images.shape)} and {tuple(attributions.shape)}"
        raise FacetError(f"images and attributions must have the same rows and pixels, not {shapes}")
    if not len(images) or not len(hosts) or hosts.shape[1:] != images.shape[1:]:
        raise FacetError(f"there must be hosts of the shape of the images, {tuple(images.shape)}: {tuple(hosts.shape)}")
    height, width = images.shape[-2:]
    if side >= min(height, width):
        raise FacetError(f"side must be smaller than an image of {height} x {width} pixels, not {side}")
    if not bool(attributions.isfinite().all()):
        raise FacetError("attributions must be finite")


def _targets(target: Any, n: int) -> NDArray[np.int64]:
    """Return the index of the target of each image."""
    targets = torch.as_tensor(target).cpu().numpy()
    if targets.shape not in ((), (n,)):
        raise FacetError(f"target must be an index, or one for each of the {n} images, not {target!r}")
    return np.broadcast_to(targets, n)


def _pasted(hosts: Tensor, place: NDArray[np.int64], sources: Tensor, corners: NDArray[np.int64], side: int) -> Tensor:
    """Return a copy of the hosts with a patch of each one's source, at the source's corner, pasted at the place."""
    (top, left), changed = place, hosts.clone()
    for host, source, (row, column) in zip(changed, sources, corners, strict=True):
        host[:, top : top + side, left : left + side] = source[:, row : row + side, column : column + side]
    return changed


def _others(targets: NDArray[Any]) -> list[int]:
    """Return the next image of another target for each image; empty if all have the same target."""
    n = len(targets)
    if len(np.unique(targets)) < 2:
        return []
    return [next(j % n for j in range(i + 1, i + n) if targets[j % n] != targets[i]) for i in range(n)]


def _largest(attributions: Tensor, side: int) -> NDArray[np.int64]:
    """Return row and column of the square with the largest sum of each image's attributions, (N, 2)."""
    sums = torch.nn.functional.avg_pool2d(attributions.detach().double().sum(1, keepdim=True), side, 1)
    rows, columns = np.unravel_index(sums.flatten(1).argmax(1).cpu().numpy(), sums.shape[-2:])
    return np.stack([rows, columns], 1)
