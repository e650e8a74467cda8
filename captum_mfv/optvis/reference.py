"""What a network computes on the images of facets, measured for the objectives that need it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
from captum_mfv.optvis.arguments import as_facets, check_same_layers
from captum_mfv.optvis.maps import sorted_activations
from captum_mfv.optvis.terms import Probe, Reference, Term, distribution_term, make_term, probe_term, probed
from captum_mfv.units import Code, channels_second

__all__ = ["measure_probe", "measure_reference", "measure_terms"]

_N_LAYERS = 4  # layers in which distributions are matched


def measure_terms(
    names: Iterable[str],
    model: nn.Module,
    facets: Sequence[Facet],
    images: Images,
    input_spec: InputSpec,
    progress: bool = False,
) -> dict[str, Term]:
    """Return terms by name, measured on the facets' images where they need it; raises as `terms.make_term` does."""
    options: dict[str, Any] = {"input_spec": input_spec, "progress": progress}
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
    facet: Facet | Sequence[Facet],
    images: Images,
    *,
    layers: Sequence[str] | None = None,
    n_images: int = 30,
    input_spec: InputSpec | None = None,
    progress: bool = False,
) -> Reference:
    """Measure the distribution of activations on the images of facets, for `distribution` and `facet`.

    Args:
        model: the model; left as it was.
        facet: a facet or several, of any units that read the same layers.
        images: the dataset in which they were found.
        layers: names of the layers; by default four layers with positions, spread evenly over the later part
            of the network up to the code.
        n_images: how many of a facet's nearest images are used.
        input_spec: what turns images in [0, 1] into the model's input.
        progress: show a progress bar.

    Raises:
        FacetError: if the facets' units or codes read different layers.
    """
    facets = as_facets(facet)
    check_same_layers(facets)
    spec = input_spec or InputSpec()
    names = [layer_name(model, layer) for layer in layers or default_layers(model, facets[0], spec)]
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    variances: dict[str, list[Tensor]] = {name: [] for name in names}
    weights: dict[str, list[Tensor]] = {name: [] for name in names}
    for outputs, gradients in _responses(model, facets, images, names, n_images, spec, progress):
        for name, output, gradient in zip(names, outputs, gradients, strict=True):
            found = sorted_activations(output)
            values[name].append(found.mean(0))
            variances[name].append(found.var(dim=(0, 2), correction=0).mean().clamp_min(1e-12))
            weights[name].append(_drive(output, gradient))
    parts = ({name: torch.stack(rows) for name, rows in part.items()} for part in (values, variances, weights))
    return Reference(*parts)


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
    """Fit probes of a layer's channels, averaged over positions: a facet's images against others of the dataset.

    Args:
        model: the model; left as it was.
        facet: a facet or several, of any units that read the same layers.
        images: the dataset in which they were found.
        layer: the layer; by default the first of those that `measure_reference` takes.
        n_images: how many of a facet's nearest images are used.
        n_others: how many images of the dataset, evenly spread, they are separated from.
        input_spec: what turns images in [0, 1] into the model's input.
        progress: show progress bars.

    Raises:
        FacetError: if the dataset has no images but a facet's, or the facets read different layers.
    """
    facets = as_facets(facet)
    check_same_layers(facets)
    spec = input_spec or InputSpec()
    name = layer_name(model, layer or default_layers(model, facets[0], spec)[0])
    spread = np.unique(np.linspace(0, len(images) - 1, n_others).astype(int))
    sample = Subset(images, spread.tolist())  # type: ignore[arg-type,var-annotated]
    collected = collect(model, facets[0].unit, sample, code=Code(name), input_spec=spec, progress=progress)
    rows, scales = [], []
    responses = _responses(model, facets, images, [name], n_images, spec, progress)
    for item, ([output], [gradient]) in zip(facets, responses, strict=True):
        others = collected.codes[np.setdiff1d(collected.indices, np.flatnonzero(np.isin(spread, item.members)))]
        if not len(others):
            raise FacetError(f"facet {item.index} holds every image; a probe needs others to separate it from")
        weights = _separating(Code(name).read(output).cpu().numpy(), others)
        part = probed(weights[None], output, gradient)
        rows.append(weights)
        scales.append(part.abs().mean().clamp_min(1e-12))
    return Probe(name, torch.stack(rows), torch.stack(scales))


def default_layers(model: nn.Module, facet: Facet, spec: InputSpec) -> list[str]:
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
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield of each facet, float32: layers' outputs on its nearest images, and its unit's gradients there."""
    layer, feed = facets[0].unit.layer_name, spec.feed(model)
    batches = AdaptiveBatches(cpu_batch_size(model, spec, n_images))
    with guard(model), torch.enable_grad(), capture(model, [*names, layer]) as run:
        for item in Progress(facets, "nearest images", unit="facet", disable=not progress):
            nearest = stack(images, item.members[:n_images])

            def respond(rows: slice, nearest: Tensor = nearest, item: Facet = item) -> list[Tensor]:
                outputs = run(feed(nearest[rows].requires_grad_()))
                wanted, activation = [outputs[name] for name in names], item.unit.read(outputs[layer]).sum()
                gradients = torch.autograd.grad(activation, wanted, allow_unused=True, materialize_grads=True)
                return [found.detach().float() for found in (*wanted, *gradients)]

            every = [torch.cat(found) for found in zip(*batches(len(nearest), respond), strict=True)]
            yield every[: len(names)], every[len(names) :]


def _separating(own: NDArray[np.float32], others: NDArray[np.float32]) -> Tensor:
    """Return weights (C,) of a logistic regression on standardized channels, per unit of activation."""
    every = np.concatenate([own, others])
    spread = np.maximum(every.std(0), 1e-6 * max(float(every.std()), 1e-12))
    probe = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    probe.fit((every - every.mean(0)) / spread, np.arange(len(every)) < len(own))
    return torch.from_numpy((probe.coef_[0] / spread).astype(np.float32))


def _drive(output: Tensor, gradient: Tensor) -> Tensor:
    """Return how much each channel drives the unit, (C,), of mean 1; 1 for all where no channel does."""
    maps = channels_second(output)
    driven = (maps * channels_second(gradient)).clamp_min(0)
    drive = driven.reshape(*maps.shape[:2], -1).sum(2).mean(0).sqrt()
    return drive / drive.mean() if drive.any() else torch.ones_like(drive)
