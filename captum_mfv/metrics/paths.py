"""The path check: layer by layer, does a network process a facet's image as it processes the facet's real images?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.utils.data import Subset

from captum_mfv.activations.batching import cpu_batch_size
from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.layers import LayerCall, spatial_layers, trace
from captum_mfv.errors import FacetError, UnitError
from captum_mfv.images import Images, InputSpec, batches
from captum_mfv.metrics.intervals import Estimate, estimate_ratio
from captum_mfv.units import channels_second

__all__ = ["PathCheck", "path_check"]

Doubles = NDArray[np.float64]

_BATCH_SIZE = 32
_MOST_LAYERS = 12


@dataclass(frozen=True, eq=False)
class PathCheck:
    """Similarity of each facet's image to real images, by layer; (n_layers, n_facets) each.

    Args:
        layers: names of the layers, from the first to the last.
        similarity: mean similarity of the facet's image to the facet's real images.
        within: mean similarity of two of the facet's real images; NaN for a facet of one real image.
        between: mean similarity of the facet's real images to others.
    """

    layers: tuple[str, ...]
    similarity: Doubles
    within: Doubles
    between: Doubles

    @property
    def scaled(self) -> Doubles:
        """Similarity where 1 is that of two of the facet's real images and 0 that of one of them and another image.

        NaN where the facet's real images are not more similar to each other than to others: the layer does not
        distinguish the facet. An image of another facet has about 0, an image unlike any real image less.
        """
        return np.asarray((self.similarity - self.between) / self._span)

    @property
    def estimates(self) -> list[Estimate | None]:
        """Means over facets for each layer, scaled as `scaled`, with intervals; None if the layer distinguishes none.

        These are ratios of means, so that facets which the layer hardly distinguishes count little.
        """
        return [
            estimate_ratio(above[(kept := np.isfinite(span))], span[kept])
            for above, span in zip(self.similarity - self.between, self._span, strict=True)
        ]

    @property
    def _span(self) -> Doubles:
        return np.where(self.within > self.between, self.within - self.between, np.nan)


def path_check(
    model: nn.Module,
    images: Sequence[Tensor],
    real: Images,
    labels: NDArray[np.integer[Any]],
    *,
    layers: Sequence[str] | None = None,
    others: Images | None = None,
    input_spec: InputSpec | None = None,
) -> PathCheck:
    """Return how similar a network's activations on facets' images are to those on real images, layer by layer.

    The similarity of two images in a layer is Spearman's rank correlation of the layer's channels, averaged over
    positions, because real images of one facet show the same content at different places.

    Args:
        model: the model that has the unit, or an independent network; its state is not changed.
        images: (C, H, W) in [0, 1], one for each facet, in order.
        real: the dataset in which the facets were found.
        labels: (n,) facet index of each real image, -1 for none.
        layers: names of the layers; by default those with positions, at most 12, evenly spread over the network.
        others: the images with which a facet's real images are compared; by default those of the other facets.
        input_spec: preprocessing of images in [0, 1].

    Raises:
        FacetError: if there isn't one image and at least one real image for each facet, or there is one facet and no
            other image.
        UnitError: if a layer isn't in the model or doesn't run once.

    Source: Geirhos et al. 2024, "Don't trust your eyes: on the (un)reliability of feature visualizations", arXiv
    2306.04719, who compare classes.
    """
    labels, spec = np.asarray(labels), input_spec or InputSpec()
    if labels.shape != (len(real),):
        raise FacetError(f"labels must have one entry for each of the {len(real)} real images, not {labels.shape}")
    counts = np.bincount(labels[labels >= 0], minlength=len(images))
    if not len(images) or len(counts) > len(images) or not counts.all():
        raise FacetError(f"there must be one image and real images for each facet: {len(images)} images, {counts}")
    if len(images) == 1 and others is None:
        raise FacetError("one facet has no other real images to compare with; pass others=")
    calls = {call.name: call for call in trace(model, spec.feed(model)(spec.gray()))}
    names = _spread(list(calls.values())) if layers is None else [layer_name(model, layer) for layer in layers]
    if wrong := [name for name in names if name not in calls or calls[name].runs > 1]:
        raise UnitError(f"layer {wrong[0]} must run once in the model's forward pass")
    kept = np.flatnonzero(labels >= 0)
    members, own = _profiles(model, Subset(real, kept.tolist()), names, calls, spec)  # type: ignore[arg-type]
    made, _ = _profiles(model, images, names, calls, spec)
    different, _ = (None, None) if others is None else _profiles(model, others, names, calls, spec)
    found = np.array(
        [
            _similarities(made[name], members[name], labels[kept][own], None if different is None else different[name])
            for name in names
        ]
    )
    return PathCheck(tuple(names), found[:, 0], found[:, 1], found[:, 2])


def _spread(calls: list[LayerCall]) -> list[str]:
    """Return the layers with positions, at most 12, evenly spread."""
    last = next(call.name for call in reversed(calls) if call.runs == 1 and call.first)
    if not (names := spatial_layers(calls, last)):
        raise UnitError("the model has no layer with positions; pass layers=")
    picks = np.linspace(0, len(names) - 1, min(_MOST_LAYERS, len(names))).round().astype(int)
    return [names[i] for i in picks]


def _profiles(
    model: nn.Module, images: Images | Sequence[Tensor], names: list[str], calls: dict[str, LayerCall], spec: InputSpec
) -> tuple[dict[str, Doubles], list[int]]:
    """Return ranks of the channels of each layer, scaled to length 1, (n, C), and the images that could be read."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    rows: list[int] = []
    feed = spec.feed(model)
    size = cpu_batch_size(model, spec, _BATCH_SIZE)
    with guard(model), torch.no_grad(), capture(model, names) as run:
        for indices, batch in batches(images, size):
            rows += indices
            for name, output in run(feed(batch)).items():
                maps = channels_second(output, "last" if calls[name].last else "first")
                found[name].append(maps.float().flatten(2).mean(2).cpu() if maps.ndim > 2 else maps.float().cpu())
    return {name: _ranks(torch.cat(parts).numpy()) for name, parts in found.items()}, rows


def _ranks(profiles: NDArray[np.float32]) -> Doubles:
    """Return centered ranks of each row, scaled to length 1; a constant row is 0."""
    ranks = rankdata(profiles, axis=1) - (profiles.shape[1] + 1) / 2
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.asarray(ranks / np.where(lengths > 0, lengths, 1))


def _similarities(
    made: Doubles, members: Doubles, own: NDArray[np.integer[Any]], others: Doubles | None
) -> tuple[list[float], list[float], list[float]]:
    """Return the similarity of each facet's image to its members, of its members, and of its members to others.

    Each is a mean, or NaN for a facet of which no image could be read.
    """
    similarity, within, between = [], [], []
    for k, image in enumerate(made):
        mine, different = members[own == k], members[own != k] if others is None else others
        n, pairs = len(mine), mine @ mine.T
        similarity.append(float((mine @ image).mean()) if n else np.nan)
        within.append(float((pairs.sum() - np.trace(pairs)) / (n * (n - 1))) if n > 1 else np.nan)
        between.append(float((mine @ different.T).mean()) if n else np.nan)
    return similarity, within, between
