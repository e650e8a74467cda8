"""What the network does with the images of facets, measured for the objectives that need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.codes import collect
from captum_mfv.activations.layers import spatial_layers, trace
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.images import Images, InputSpec, stack
from captum_mfv.optvis.initializer import as_facets
from captum_mfv.units import Code, channels_second

__all__ = [
    "Probe",
    "Reference",
    "activation_maps",
    "measure_probe",
    "measure_reference",
    "probed",
    "rearranged",
    "sorted_activations",
]

_N_LAYERS = 4  # layers in which distributions are matched
_MAX_SIDE = 14  # maps are averaged down to this side before they are sorted


@dataclass(frozen=True, eq=False)
class Reference:
    """The distribution of each channel's activations on the images of facets (VITAL, arXiv 2503.22399).

    Args:
        values: layer → (n_facets, C, P), sorted activations, averaged over a facet's images.
        variances: layer → mean variance of a channel within the facets, a mean over all that were measured.
        weights: layer → (n_facets, C), how much each channel drives the unit on a facet's images: square
            root of the mean positive gradient times activation, of mean 1.
    """

    values: Mapping[str, Tensor]
    variances: Mapping[str, float]
    weights: Mapping[str, Tensor]


def measure_reference(
    model: nn.Module,
    facet: Facet | Sequence[Facet],
    images: Images,
    *,
    layers: Sequence[str] | None = None,
    n_images: int = 30,
    input_spec: InputSpec | None = None,
    progress: bool = False,
) -> Reference:
    """How activations are distributed on the images of facets, for `distribution` and `facet`.

    Args:
        model: the model; left as it was.
        facet: a facet or several.
        images: the dataset in which they were found.
        layers: where to look; by default four layers with positions, spread evenly over the later part
            of the network up to the code.
        n_images: how many of a facet's nearest images are used.
        input_spec: what turns images in [0, 1] into the model's input.
        progress: show a progress bar.
    """
    facets = as_facets(facet)
    spec = input_spec or InputSpec()
    names = [layer_name(model, layer) for layer in layers or default_layers(model, facets[0], spec)]
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    variances: dict[str, list[Tensor]] = {name: [] for name in names}
    weights: dict[str, list[Tensor]] = {name: [] for name in names}
    for outputs, gradients in _responses(model, facets, images, names, n_images, spec, progress):
        for name, output, gradient in zip(names, outputs, gradients, strict=True):
            found = sorted_activations(output)
            values[name].append(found.mean(0))
            variances[name].append(found.var(dim=(0, 2), correction=0).mean())
            weights[name].append(_drive(output, gradient))
    return Reference(
        {name: torch.stack(found) for name, found in values.items()},
        {name: max(float(torch.stack(found).mean()), 1e-12) for name, found in variances.items()},
        {name: torch.stack(found) for name, found in weights.items()},
    )


@dataclass(frozen=True, eq=False)
class Probe:
    """Linear probes that tell the images of facets from others (Goh et al. 2021, "Multimodal neurons").

    Args:
        layer: the layer they read.
        weights: (n_facets, C) of its channels.
        scales: (n_facets,) mean magnitude of the probes' part in the unit on the facet's own images.
    """

    layer: str
    weights: Tensor
    scales: Tensor


def probed(weights: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """(N,) the part of a unit that probes see, wᵀ(output ⊙ ReLU(gradient)), summed over positions.

    Args:
        weights: (N, C) or (1, C) of the layer's channels.
        output: the layer's output.
        gradient: the unit's with respect to it, taken as given.
    """
    driving = channels_second(output).float() * channels_second(gradient).detach().clamp_min(0)
    positions = driving.flatten(2).sum(2) if driving.ndim > 2 else driving
    return (weights.to(positions) * positions).sum(1)


def measure_probe(
    model: nn.Module,
    facet: Facet | Sequence[Facet],
    images: Images,
    *,
    layer: str | nn.Module | None = None,
    n_images: int = 30,
    n_others: int = 300,
    input_spec: InputSpec | None = None,
    progress: bool = False,
) -> Probe:
    """Probes of a layer's channels, averaged over positions: a facet's images against the dataset's others.

    Args:
        model: the model; left as it was.
        facet: a facet or several.
        images: the dataset in which they were found.
        layer: where to look; by default the first of those where `measure_reference` does.
        n_images: how many of a facet's nearest images are used.
        n_others: how many images of the dataset, evenly spread, they are told from.
        input_spec: what turns images in [0, 1] into the model's input.
        progress: show progress bars.

    Raises:
        FacetError: if the dataset has no images but a facet's.
    """
    facets = as_facets(facet)
    spec = input_spec or InputSpec()
    name = layer_name(model, layer or default_layers(model, facets[0], spec)[0])
    spread = np.unique(np.linspace(0, len(images) - 1, n_others).astype(int))
    sample = Subset(images, spread.tolist())  # type: ignore[arg-type,var-annotated]
    seen = collect(model, facets[0].unit, sample, code=Code(name), input_spec=spec, progress=progress)
    rows, scales = [], []
    responses = _responses(model, facets, images, [name], n_images, spec, progress)
    for item, ([output], [gradient]) in zip(facets, responses, strict=True):
        others = seen.codes[np.setdiff1d(seen.indices, np.flatnonzero(np.isin(spread, item.members)))]
        if not len(others):
            raise FacetError(f"facet {item.index} holds every image; a probe needs others to tell it from")
        weights = _separating(Code(name).read(output).cpu().numpy(), others)
        part = probed(weights[None], output, gradient)
        rows.append(weights)
        scales.append(part.abs().mean().clamp_min(1e-12))
    return Probe(name, torch.stack(rows), torch.stack(scales))


def _responses(
    model: nn.Module,
    facets: Sequence[Facet],
    images: Images,
    names: Sequence[str],
    n_images: int,
    spec: InputSpec,
    progress: bool,
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Of each facet's nearest images, float32: layers' outputs, and the unit's gradients with respect to them."""
    unit, feed, portions = facets[0].unit, spec.feed(model), AdaptiveBatches(cpu_batch_size(model, spec, n_images))
    with guard(model), torch.enable_grad(), capture(model, [*names, unit.layer_name]) as run:
        for item in tqdm(facets, "nearest images", unit="facet", disable=not progress):
            nearest = stack(images, item.members[:n_images])

            def respond(rows: slice, nearest: Tensor = nearest) -> list[Tensor]:
                outputs = run(feed(nearest[rows].requires_grad_()))
                wanted, activation = [outputs[name] for name in names], unit.read(outputs[unit.layer_name]).sum()
                gradients = torch.autograd.grad(activation, wanted, allow_unused=True, materialize_grads=True)
                return [found.detach().float() for found in (*wanted, *gradients)]

            every = [torch.cat(found) for found in zip(*portions(len(nearest), respond), strict=True)]
            yield every[: len(names)], every[len(names) :]


def _separating(own: NDArray[np.float32], others: NDArray[np.float32]) -> Tensor:
    """Weights (C,) of a logistic regression on standardised channels, per unit of activation."""
    every = np.concatenate([own, others])
    spread = np.maximum(every.std(0), 1e-6 * max(float(every.std()), 1e-12))
    probe = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    probe.fit((every - every.mean(0)) / spread, np.arange(len(every)) < len(own))
    return torch.from_numpy((probe.coef_[0] / spread).astype(np.float32))


def _drive(output: Tensor, gradient: Tensor) -> Tensor:
    """How much each channel drives the unit, (C,), of mean 1; all alike where nothing does."""
    maps = channels_second(output)
    driven = (maps * channels_second(gradient)).clamp_min(0)
    drive = driven.reshape(*maps.shape[:2], -1).sum(2).mean(0).sqrt()
    return drive / drive.mean() if drive.any() else torch.ones_like(drive)


def default_layers(model: nn.Module, facet: Facet, spec: InputSpec) -> list[str]:
    """Three blocks spread evenly over the later two thirds of the network up to the code, and the code's layer."""
    spatial = spatial_layers(trace(model, spec.feed(model)(spec.grey())), facet.unit.layer_name)
    last = facet.code.layer
    before = spatial[: spatial.index(last)] if last in spatial else spatial
    blocks = [name for name in before if not any(name.startswith(f"{other}.") for other in [*before, last])]
    later = blocks[len(blocks) // 3 :]
    picks = torch.linspace(0, len(later) - 1, min(_N_LAYERS - 1, len(later))).round().int().tolist()
    return [*(later[i] for i in picks), last]


def activation_maps(output: Tensor) -> Tensor:
    """(N, C, P) or (N, C, H, W) float activations of each channel; large maps averaged down."""
    maps = channels_second(output).float()
    if maps.ndim == 4 and (factor := -(-max(maps.shape[2:]) // _MAX_SIDE)) > 1:
        maps = _AveragedDown.apply(maps, factor)
    return maps if maps.ndim > 2 else maps[:, :, None]


class _AveragedDown(torch.autograd.Function):
    """Average pooling whose gradient keeps the maps' layout in memory, where PyTorch's copies it twice on a CPU."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, factor: int) -> Tensor:
        ctx.factor, ctx.sides = factor, maps.shape[2:]
        ctx.last = maps.is_contiguous(memory_format=torch.channels_last)
        return torch.nn.functional.avg_pool2d(maps, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        each = (gradients[0] / ctx.factor**2).contiguous(memory_format=layout)
        spread = torch.nn.functional.interpolate(each, scale_factor=ctx.factor, mode="nearest")
        below, right = (side - have for side, have in zip(ctx.sides, spread.shape[2:], strict=True))
        return torch.nn.functional.pad(spread, (0, right, 0, below)), None


def sorted_activations(output: Tensor) -> Tensor:
    """(N, C, P) float activations of each channel in ascending order, without gradient."""
    rows = activation_maps(output).detach().flatten(2)
    return rows.gather(2, _order(rows))


def rearranged(values: Tensor, maps: Tensor) -> Tensor:
    """Sorted values put into each map in its own order, the largest where the map is largest.

    The square distance of sorted activations is the maps' to these, so no gradient has to go through a sort.

    Args:
        values: (N, C, any number) in ascending order; another number than the maps' positions is resampled.
        maps: what `activation_maps` gives.
    """
    rows = maps.detach().flatten(2)
    n_positions = rows.shape[2]
    if values.shape[2] != n_positions:
        values = torch.nn.functional.interpolate(values, n_positions, mode="linear", align_corners=True)
    return torch.empty_like(rows).scatter_(2, _order(rows), values.expand_as(rows)).view(maps.shape)


def _order(rows: Tensor) -> Tensor:
    """Positions in ascending order of (N, C, P) values, to 15 bits of precision on a CPU."""
    n_positions = rows.shape[2]
    if rows.device.type != "cpu" or n_positions > 256:
        return rows.argsort(dim=2)
    # A CPU sorts numbers several times faster than numbers with their positions. Floats order as their bits do,
    # negative ones with the bits below the sign turned round; the position takes the place of the last eight.
    bits = rows.contiguous().view(torch.int32)
    keys = (bits ^ (bits >> 31).bitwise_and_(0x7FFFFFFF)).bitwise_and_(~255)
    keys.bitwise_or_(torch.arange(n_positions, dtype=torch.int32))
    return torch.from_numpy(np.sort(keys.numpy(), axis=2)).bitwise_and_(255).long()
