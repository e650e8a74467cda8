"""The k largest activations of units over a dataset: read from layers' outputs, kept, and merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_mfv.activations.layers import PatchGrid
from captum_mfv.units import Unit

__all__ = ["TopValues", "read_units"]


_RANKED = ("values", "means", "indices", "peaks")


class TopValues:
    """The k largest activations above zero of each unit, and where they are; memory is units x k numbers.

    Of equal activations, such as maxima at which a ReLU6 saturates, the larger mean over positions comes first, then
    the lower index, so that the result does not depend on batches. Unused places hold -inf, or -1 as an index.
    """

    def __init__(self, n_units: int, k: int) -> None:
        self.values = torch.full((n_units, k), float("-inf"))  # in descending order
        self.means = torch.zeros(n_units, k)  # of units read at their maximum: over positions; else 0
        self.indices = torch.full((n_units, k), -1)
        self.peaks = torch.full((n_units, k, 2), -1)  # row and column of the maximum; -1 for units without one
        self.n_not_finite = torch.zeros(n_units, dtype=torch.int64)  # images on which the unit is not finite
        self.n_read = torch.tensor(0)  # images that could be read
        self.n_done = torch.tensor(0)  # images processed, from the first on

    def add(self, indices: Sequence[int], activations: Tensor, peaks: Tensor, means: Tensor | None = None) -> None:
        """Add images: activations and means over positions, (N, n_units), and peaks, (N, n_units, 2)."""
        finite = activations.isfinite()
        values = activations.where(finite & (activations > 0), -torch.inf).T
        means = torch.zeros_like(values) if means is None else means.T.where(values > 0, 0)  # without NaN
        rows = torch.tensor(list(indices), device=activations.device).expand(activations.shape[1], -1)
        self._keep(values, means, rows, peaks.transpose(0, 1))
        self.n_not_finite = self.n_not_finite.to(activations.device) + (~finite).sum(0)
        self.n_read += len(indices)

    def merge(self, other: TopValues) -> None:
        """Add the values of other images; the order of merges doesn't matter."""
        self._keep(*(getattr(other, name).to(self.values.device) for name in _RANKED))
        for name in ("n_not_finite", "n_read", "n_done"):
            own = getattr(self, name)
            setattr(self, name, own + getattr(other, name).to(own.device))

    def _keep(self, *new: Tensor) -> None:
        """Keep the largest of the own and of new values, whose tensors come in the order of the names."""
        device, k = new[0].device, self.values.shape[1]
        values, means, indices, peaks = (
            torch.cat([getattr(self, name).to(device), its], 1) for name, its in zip(_RANKED, new, strict=True)
        )
        order = indices.argsort(dim=1)
        for keys in (means, values):  # the last sort decides first
            order = order.gather(1, keys.gather(1, order).argsort(dim=1, descending=True, stable=True))
        order = order[:, :k]
        self.values, self.means, self.indices = (every.gather(1, order) for every in (values, means, indices))
        self.peaks = peaks.gather(1, order[:, :, None].expand(-1, -1, 2))

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
    """Return units' ``activations``, (N, n_units); of maxima also ``means`` over positions, and ``peaks``, (…, 2).

    Units that differ only in their index are read together, and their latents are encoded once.
    """
    device = outputs[units[0].layer_name].device
    n_rows = len(outputs[units[0].layer_name])
    activations = torch.empty(n_rows, len(units), device=device)
    means = torch.zeros_like(activations)
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
        if maps is None or maps.ndim < 3:
            continue
        places = _pick(together, maps).flatten(2)
        means[:, positions] = (
            places.mean(2).bfloat16().to(means)
        )  # coarse: rounding doesn't decide between equal images
        grid = grids.get(one.layer_name)
        if grid or maps.ndim == 4:
            n_prefix, columns = (grid.n_prefix, grid.columns) if grid else (0, maps.shape[3])
            largest = places[:, :, n_prefix:].argmax(2)
            peaks[:, positions] = torch.stack([largest // columns, largest % columns], 2).to(device)
    return {"activations": activations, "means": means, "peaks": peaks}


def _pick(units: Sequence[Unit], channels: Tensor) -> Tensor:
    """Return the units' channels or directions, (N, units, …), of (N, C, …)."""
    indices = [unit.index for unit in units if isinstance(unit.index, int)]
    if len(indices) == len(units):
        return channels[:, indices]
    return torch.stack([unit.pick(channels) for unit in units], 1)
