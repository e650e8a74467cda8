"""Objective terms that are measured on the facets' images: channels' distributions, and probes of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import Subset

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.codes import collect
from captum_mfv.activations.layers import spatial_layers, trace
from captum_mfv.display.progress import Progress
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.images import Images, InputSpec, stack
from captum_mfv.images.loading import in_advance
from captum_mfv.optvis.arguments import Facets, as_facets, check_same_layers
from captum_mfv.optvis.terms import Tensors, Term, activation_term, make_term
from captum_mfv.units import Code, Unit, channels_second

__all__ = [
    "Probe",
    "Reference",
    "distribution_term",
    "measure_probe",
    "measure_reference",
    "measure_terms",
    "probe_term",
]

_N_LAYERS = 4  # layers in which distributions are matched
_N_OTHERS = 300  # images, evenly spread over the dataset, that probes separate a facet's images from
_MAX_SIDE = 14  # maps are averaged down to this side before they are sorted


@dataclass(frozen=True, eq=False)
class Reference:
    """The distribution of each channel's activations on the images of facets, by layer (VITAL, arXiv 2503.22399).

    Args:
        values: (n_facets, C, P) sorted activations, averaged over a facet's images.
        variances: (n_facets,) mean variance of a channel within the facets of the facet's set.
        weights: (n_facets, C) root of the mean positive gradient times activation, of mean 1: what drives the unit.
    """

    values: Tensors
    variances: Tensors
    weights: Tensors


@dataclass(frozen=True, eq=False)
class Probe:
    """Linear probes that separate the images of facets from others (Goh et al. 2021, "Multimodal neurons").

    Args:
        layer: the layer that the probes read.
        weights: (n_facets, C) weights of the layer's channels.
        scales: (n_facets,) mean magnitude of the probes' part in the unit on the facet's own images.
    """

    layer: str
    weights: Tensor
    scales: Tensor


def measure_terms(
    names: Iterable[str], model: nn.Module, facets: Sequence[Facet], images: Images, spec: InputSpec, progress: bool
) -> dict[str, Term]:
    """Return terms by name, measured on the facets' images where they need it; raises as `terms.make_term` does."""
    options: dict[str, Any] = {"input_spec": spec, "progress": progress}
    terms = {}
    for name in names:
        if name == "distribution":
            terms[name] = distribution_term(measure_reference(model, facets, images, **options))
        elif name == "probe":
            terms[name] = probe_term(facets, measure_probe(model, facets, images, **options))
        else:
            terms[name] = make_term(name, facets)
    return terms


def measure_reference(
    model: nn.Module,
    facet: Facets,
    images: Images,
    *,
    layers: Sequence[str] | None = None,
    n_images: int = 30,
    input_spec: InputSpec | None = None,
    progress: bool = False,
) -> Reference:
    """Measure the distribution of activations on the images of facets, for `distribution` and `facet`.

    Args:
        model: the model; unchanged afterwards.
        facet: a facet or several, of any units that read the same layers.
        images: the dataset in which they were found.
        layers: names of the layers; by default four with positions, spread evenly over the later part of the network.
        n_images: how many of a facet's nearest images are used.
        input_spec: what turns images in [0, 1] into the model's input.
        progress: show a progress bar.

    Raises:
        FacetError: if the facets read different layers.
    """
    facets = as_facets(facet)
    check_same_layers(facets)
    spec = input_spec or InputSpec()
    names = [layer_name(model, layer) for layer in layers or _default_layers(model, facets[0], spec)]

    def key(item: Facet, members: NDArray[np.int64]) -> tuple[Unit, tuple[int, ...]]:
        return item.unit, tuple(members[:n_images].tolist())

    measured = {
        key(item, group): replace(item, members=group) for item in facets for group in (item.members, *item.groups)
    }

    def read(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        return [*map(_sorted_activations, outputs), *map(_driven, outputs, gradients)]

    found = {}
    responses = _responses(model, list(measured.values()), images, names, n_images, spec, progress, read)
    for place, response in zip(measured, responses, strict=True):
        maps, driven = response[: len(names)], response[len(names) :]
        spread = torch.stack([(one - one.mean(2).mean(0)[:, None]).square().mean() for one in maps])
        found[place] = [one.mean(0) for one in maps], spread, list(map(_drive, driven))
    own = [found[key(item, item.members)] for item in facets]
    spreads = [torch.stack([found[key(item, group)][1] for group in item.groups]).mean(0) for item in facets]
    return Reference(
        values={name: torch.stack([values[i] for values, _, _ in own]) for i, name in enumerate(names)},
        variances={name: torch.stack([one[i] for one in spreads]).clamp_min(1e-12) for i, name in enumerate(names)},
        weights={name: torch.stack([weights[i] for _, _, weights in own]) for i, name in enumerate(names)},
    )


def measure_probe(
    model: nn.Module,
    facet: Facets,
    images: Images,
    *,
    layer: str | nn.Module | None = None,
    n_images: int = 30,
    input_spec: InputSpec | None = None,
    progress: bool = False,
) -> Probe:
    """Fit probes of a layer's channels, averaged over positions: a facet's images against others of the dataset.

    Arguments are those of `measure_reference`, and ``layer``, by default the first layer that it measures.

    Raises:
        FacetError: if the dataset has no images but a facet's, or the facets read different layers.
    """
    facets = as_facets(facet)
    check_same_layers(facets)
    spec = input_spec or InputSpec()
    name = layer_name(model, layer or _default_layers(model, facets[0], spec)[0])
    spread = np.unique(np.linspace(0, len(images) - 1, _N_OTHERS).astype(int))
    sample = Subset(images, spread.tolist())  # type: ignore[arg-type,var-annotated]
    collected = collect(model, facets[0].unit, sample, code=Code(name), input_spec=spec, progress=progress)
    rows, scales = [], []
    responses = _responses(model, facets, images, [name], n_images, spec, progress, lambda found, its: [*found, *its])
    for item, (output, gradient) in zip(facets, responses, strict=True):
        others = collected.codes[np.setdiff1d(collected.indices, np.flatnonzero(np.isin(spread, item.members)))]
        if not len(others):
            raise FacetError(f"facet {item.index} holds every image; a probe needs others to separate it from")
        weights = _separating(collected.code.read(output).cpu().numpy(), others)
        part = _probed(weights[None], output, gradient)
        rows.append(weights)
        scales.append(part.abs().mean().clamp_min(1e-12))
    return Probe(name, torch.stack(rows), torch.stack(scales))


def distribution_term(reference: Reference) -> Term:
    """Return the mean square distance of sorted activations to the facet's, in variances; a mean over layers.

    Channels are weighted by how much they drive the unit, so that content that the unit ignores isn't copied.
    """
    layers = tuple(reference.values)

    def loss(outputs: Tensors, constants: Tensors) -> Tensor:
        losses = []
        for layer in layers:
            maps = _activation_maps(outputs[layer])
            distances = (maps - _rearranged(constants[f"{layer} values"].to(maps), maps)).square()
            channels = distances.mean(dim=tuple(range(2, maps.ndim))) * constants[f"{layer} weights"].to(maps)
            losses.append(channels.mean(1) / constants[f"{layer} variances"].to(maps))
        return torch.stack(losses).mean(0)

    parts = {"values": reference.values, "variances": reference.variances, "weights": reference.weights}
    return Term(layers, loss, {f"{layer} {name}": part[layer] for name, part in parts.items() for layer in layers})


def probe_term(facets: Sequence[Facet], probe: Probe) -> Term:
    """Return minus the part of the unit that separates the facet's images from others (faceted visualization)."""
    read, layer = activation_term(facets), probe.layer

    def loss(outputs: Tensors, constants: Tensors) -> Tensor:
        activation = read.loss(outputs, constants).sum()
        (gradient,) = torch.autograd.grad(activation, outputs[layer], retain_graph=True)
        part = _probed(constants["weights"], outputs[layer], gradient)
        return -part / constants["scales"].to(part)

    constants = {**read.constants, "weights": probe.weights, "scales": probe.scales}
    return Term((layer, *read.layers), loss, constants)


def _probed(weights: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """Return (N,) parts of a unit that probes (N, C) see, wᵀ(output ⊙ ReLU(gradient)), summed over positions."""
    driving = channels_second(output).float() * channels_second(gradient).detach().clamp_min(0)
    positions = driving.flatten(2).sum(2) if driving.ndim > 2 else driving
    return (weights.to(positions) * positions).sum(1)


def _default_layers(model: nn.Module, facet: Facet, spec: InputSpec) -> list[str]:
    """Return three blocks spread evenly over the later two thirds of the network up to the code, and its layer."""
    calls = trace(model, spec.feed(model)(spec.gray()), until=(facet.unit.layer_name, facet.code.layer))
    spatial = spatial_layers(calls, facet.unit.layer_name)
    last = facet.code.layer
    before = spatial[: spatial.index(last)] if last in spatial else spatial
    blocks = [name for name in before if not any(name.startswith(f"{other}.") for other in [*before, last])]
    later = blocks[len(blocks) // 3 :]
    picks = torch.linspace(0, len(later) - 1, min(_N_LAYERS - 1, len(later))).round().int().tolist()
    return [*(later[i] for i in picks), last]


def _responses(
    model: nn.Module,
    facets: Sequence[Facet],
    images: Images,
    names: Sequence[str],
    n_images: int,
    spec: InputSpec,
    progress: bool,
    read: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
) -> Iterator[list[Tensor]]:
    """Yield for each facet what ``read`` returns, with one row per image, of its nearest images.

    ``read`` takes float32 outputs of the layers and the gradients of the facet's unit there, batch by batch.
    """
    layer, feed = facets[0].unit.layer_name, spec.feed(model)
    batches = AdaptiveBatches(cpu_batch_size(model, spec, n_images))
    with guard(model), torch.enable_grad(), capture(model, [*names, layer]) as run:
        stacks = in_advance(lambda item: stack(images, item.members[:n_images]), facets)
        for item, nearest in zip(
            Progress(facets, "nearest images", unit="facet", disable=not progress), stacks, strict=True
        ):

            def respond(rows: slice, nearest: Tensor = nearest, item: Facet = item) -> list[Tensor]:
                outputs = run(feed(nearest[rows].requires_grad_()))
                wanted, activation = [outputs[name] for name in names], item.unit.read(outputs[layer]).sum()
                gradients = torch.autograd.grad(activation, wanted, allow_unused=True, materialize_grads=True)
                return read([one.detach().float() for one in wanted], [one.float() for one in gradients])

            yield [torch.cat(found) for found in zip(*batches(len(nearest), respond), strict=True)]


def _separating(own: NDArray[np.float32], others: NDArray[np.float32]) -> Tensor:
    """Return weights (C,) of a logistic regression on standardized channels, per unit of activation."""
    every = np.concatenate([own, others])
    spread = np.maximum(every.std(0), 1e-6 * max(float(every.std()), 1e-12))
    probe = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    probe.fit((every - every.mean(0)) / spread, np.arange(len(every)) < len(own))
    return torch.from_numpy((probe.coef_[0] / spread).astype(np.float32))


def _driven(output: Tensor, gradient: Tensor) -> Tensor:
    """Return the positive part of gradient times activation of each channel, summed over positions, (N, C)."""
    maps = channels_second(output)
    driven = (maps * channels_second(gradient)).clamp_min_(0)
    return driven.reshape(*maps.shape[:2], -1).sum(2)


def _drive(driven: Tensor) -> Tensor:
    """Return how much each channel drives the unit, (C,), of mean 1; 1 for all where no channel does."""
    drive = driven.mean(0).sqrt()
    return drive / drive.mean() if drive.any() else torch.ones_like(drive)


def _activation_maps(output: Tensor) -> Tensor:
    """Return (N, C, P) or (N, C, H, W) float activations of each channel; large maps are averaged down."""
    maps = channels_second(output).float()
    if maps.ndim == 4 and (factor := -(-max(maps.shape[2:]) // _MAX_SIDE)) > 1:
        maps = _AveragedDown.apply(maps, factor)
    return maps if maps.ndim > 2 else maps[:, :, None]


class _AveragedDown(torch.autograd.Function):
    """Average pooling whose gradient keeps the maps' memory layout; PyTorch's own copies it twice on a CPU."""

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


def _sorted_activations(output: Tensor) -> Tensor:
    """Return (N, C, P) float activations of each channel in ascending order, without gradient."""
    rows = _activation_maps(output).detach().flatten(2)
    # NumPy sorts several times faster than PyTorch does on a CPU
    return torch.from_numpy(np.sort(rows.contiguous().numpy())) if rows.device.type == "cpu" else rows.sort(2).values


def _rearranged(values: Tensor, maps: Tensor) -> Tensor:
    """Put sorted values (N, C, P), resampled if P differs, into each map: the largest where the map is largest.

    The square distance of sorted activations is the distance of the maps to the result, so no gradient has to go
    through a sort.
    """
    rows = maps.detach().flatten(2)
    n_positions = rows.shape[2]
    if values.shape[2] != n_positions:
        values = torch.nn.functional.interpolate(values, n_positions, mode="linear", align_corners=True)
    found = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)  # scattering to channels-last is slow
    return found.scatter_(2, _order(rows), values.expand_as(rows)).view(maps.shape)


def _order(rows: Tensor) -> Tensor:
    """Return positions in ascending order of (N, C, P) values, to 15 bits of precision on a CPU."""
    n_positions = rows.shape[2]
    if rows.device.type != "cpu" or n_positions > 256:
        return rows.argsort(dim=2)
    # A CPU sorts numbers several times faster than numbers with their positions. Floats compare as their bits do,
    # if the bits below the sign of negative ones are inverted; the position replaces the last eight bits.
    bits = rows.contiguous().view(torch.int32)
    keys = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits).bitwise_and_(~255)
    keys.bitwise_or_(torch.arange(n_positions, dtype=torch.int32)).numpy().sort(axis=2)
    return keys.bitwise_and_(255).long()
