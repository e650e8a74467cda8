"""The k largest activations of each of several units, updated batch by batch on the model's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_mfv.units import Unit, channels_second

__all__ = ["TopValues", "read_units"]


def read_units(units: Sequence[Unit], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the units' ``activations``, (N, units), and the ``peaks`` of maxima of maps, (N, units, 2).

    Units that differ in nothing but their channel are read together.

    Args:
        units: the units, their layers by name.
        outputs: outputs of their layers, the batch first.
    """
    device = outputs[units[0].layer_name].device
    n_rows = len(outputs[units[0].layer_name])
    activations = torch.empty(n_rows, len(units), device=device)
    peaks = torch.full((n_rows, len(units), 2), -1, dtype=torch.int64, device=device)
    groups: dict[tuple[str, str, str | None], list[int]] = {}
    for position, unit in enumerate(units):
        groups.setdefault((unit.layer_name, unit.reduce, unit.channels), []).append(position)
    for (layer, reduce, channels), positions in groups.items():
        together = [units[position] for position in positions]
        activations[:, positions] = _pick(together, together[0].read_channels(outputs[layer])).to(activations)
        maps = channels_second(outputs[layer], channels)
        if reduce == "max" and maps.ndim == 4:
            places = _pick(together, maps).flatten(2).argmax(2)
            peaks[:, positions] = torch.stack([places // maps.shape[3], places % maps.shape[3]], 2).to(device)
    return {"activations": activations, "peaks": peaks}


def _pick(units: Sequence[Unit], channels: Tensor) -> Tensor:
    """Return the units' channels or directions, (N, units, …), of (N, C, …)."""
    indices = [unit.index for unit in units if isinstance(unit.index, int)]
    if len(indices) == len(units):
        return channels[:, indices]
    return torch.stack([unit.pick(channels) for unit in units], 1)


class TopValues:
    """The k largest activations above zero of each unit, and where they are; memory is units x k numbers.

    Of equal activations the image with the lower index comes first, so that the result does not depend on batches.

    Args:
        n_units: number of units.
        k: how many activations per unit.

    Attributes:
        values: (n_units, k) float32 in descending order; -inf where there are fewer.
        indices: (n_units, k) indices of the images; -1 where there are fewer.
        peaks: (n_units, k, 2) row and column of the maximum; -1 for units without one.
        n_not_finite: (n_units,) number of images on which the unit is not finite.
        n_read: () number of images that could be read.
        n_done: () number of images processed, from the first on.
    """

    def __init__(self, n_units: int, k: int) -> None:
        self.values = torch.full((n_units, k), float("-inf"))
        self.indices = torch.full((n_units, k), -1)
        self.peaks = torch.full((n_units, k, 2), -1)
        self.n_not_finite = torch.zeros(n_units, dtype=torch.int64)
        self.n_read = torch.tensor(0)
        self.n_done = torch.tensor(0)

    def add(self, indices: Sequence[int], activations: Tensor, peaks: Tensor) -> None:
        """Add images with higher indices than all before: activations (N, n_units), peaks (N, n_units, 2)."""
        device, k = activations.device, self.values.shape[1]
        finite = activations.isfinite()
        rows = torch.tensor(list(indices), device=device).expand(activations.shape[1], -1)
        values = activations.where(finite & (activations > 0), -torch.inf).T
        values, rows, places = (
            torch.cat([own.to(device), new], 1)
            for own, new in ((self.values, values), (self.indices, rows), (self.peaks, peaks.transpose(0, 1)))
        )
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
        self.values, self.indices = values.gather(1, order), rows.gather(1, order)
        self.peaks = places.gather(1, order[:, :, None].expand(-1, -1, 2))
        self.n_not_finite = self.n_not_finite.to(device) + (~finite).sum(0)
        self.n_read += len(indices)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name; `load` takes them."""
        return dict(vars(self))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all tensors by those of `state`.

        Raises:
            ValueError: if names, shapes or types are not those of this object.
        """
        own = {name: (value.shape, value.dtype) for name, value in self.state().items()}
        if own != {name: (value.shape, value.dtype) for name, value in state.items()}:
            raise ValueError("its tensors have other shapes or types")
        vars(self).update(state)
