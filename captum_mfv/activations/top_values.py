"""The k largest activations of units over a dataset: read from layers' outputs, kept, and merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_mfv.activations.layers import PatchGrid
from captum_mfv.units import Unit

__all__ = ["TopValues", "read_units"]


_RANKED = ("values", "indices", "peaks")


class TopValues:
    """The k largest activations above zero of each unit, and where they are; memory is units x k numbers.

    Of equal activations the image with the lower index comes first, so that the result does not depend on batches.
    Unused places hold -inf, or -1 as an index.
    """

    def __init__(self, n_units: int, k: int) -> None:
        self.values = torch.full((n_units, k), float("-inf"))  # in descending order
        self.indices = torch.full((n_units, k), -1)
        self.peaks = torch.full((n_units, k, 2), -1)  # row and column of the maximum; -1 for units without one
        self.n_not_finite = torch.zeros(n_units, dtype=torch.int64)  # images on which the unit is not finite
        self.n_read = torch.tensor(0)  # images that could be read
        self.n_done = torch.tensor(0)  # images processed, from the first on

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

    def merge(self, other: TopValues) -> None:
        """Add the values of other images; the order of merges doesn't matter."""
        values, indices, peaks = (
            torch.cat([getattr(self, name).cpu(), getattr(other, name).cpu()], 1) for name in _RANKED
        )
        by_index = indices.argsort(dim=1, stable=True)
        order = values.gather(1, by_index).sort(dim=1, descending=True, stable=True).indices
        places = by_index.gather(1, order[:, : self.values.shape[1]])
        self.values, self.indices = values.gather(1, places), indices.gather(1, places)
        self.peaks = peaks.gather(1, places[:, :, None].expand(-1, -1, 2))
        for name in ("n_not_finite", "n_read", "n_done"):
            setattr(self, name, getattr(self, name).cpu() + getattr(other, name).cpu())

    def rows(self, units: Sequence[int]) -> TopValues:
        """Return the values of some units, on the CPU."""
        found = TopValues(len(units), self.values.shape[1])
        for name in (*_RANKED, "n_not_finite"):
            setattr(found, name, getattr(self, name).cpu()[list(units)])
        found.n_read, found.n_done = self.n_read.cpu(), self.n_done.cpu()
        return found

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name, as `load` takes them."""
        return dict(vars(self))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all tensors; ValueError if their names, shapes or types are not those of this object."""
        own = {name: (value.shape, value.dtype) for name, value in self.state().items()}
        if own != {name: (value.shape, value.dtype) for name, value in state.items()}:
            raise ValueError("its tensors have other shapes or types")
        vars(self).update(state)


def read_units(
    units: Sequence[Unit], outputs: Mapping[str, Tensor], grids: Mapping[str, PatchGrid]
) -> dict[str, Tensor]:
    """Return the units' ``activations``, (N, units), and the ``peaks`` of maxima of maps and patches, (N, units, 2).

    Units that differ only in their index are read together, and their latents are encoded once.
    """
    device = outputs[units[0].layer_name].device
    n_rows = len(outputs[units[0].layer_name])
    activations = torch.empty(n_rows, len(units), device=device)
    peaks = torch.full((n_rows, len(units), 2), -1, dtype=torch.int64, device=device)
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, unit in enumerate(units):
        key = (unit.layer_name, unit.reduce, unit.channels, unit.n_prefix, unit.encoder)
        groups.setdefault(key, []).append(position)
    for positions in groups.values():
        together = [units[position] for position in positions]
        one, output = together[0], outputs[together[0].layer_name]
        maps = one.read_positions(output) if one.reduce == "max" else None
        channels = one.read_channels(output) if maps is None else one.reduce_positions(maps)
        activations[:, positions] = _pick(together, channels).to(activations)
        grid = grids.get(one.layer_name)
        if maps is not None and (grid or maps.ndim == 4):
            n_prefix, columns = (grid.n_prefix, grid.columns) if grid else (0, maps.shape[3])
            places = _pick(together, maps).flatten(2)[:, :, n_prefix:].argmax(2)
            peaks[:, positions] = torch.stack([places // columns, places % columns], 2).to(device)
    return {"activations": activations, "peaks": peaks}


def _pick(units: Sequence[Unit], channels: Tensor) -> Tensor:
    """Return the units' channels or directions, (N, units, …), of (N, C, …)."""
    indices = [unit.index for unit in units if isinstance(unit.index, int)]
    if len(indices) == len(units):
        return channels[:, indices]
    return torch.stack([unit.pick(channels) for unit in units], 1)
