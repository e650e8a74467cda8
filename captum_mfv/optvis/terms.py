"""Terms: what an image of a facet should do to the network, as losses.

A `Term` maps layer outputs to one loss per image of the batch, so that every facet of a unit can be
synthesised in one batch, each image after its own facet. Losses are minimised and in normalised units: one
weight serves all units, layers, models and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from captum_mfv.errors import FacetError, RecipeError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.images import Images, InputSpec
from captum_mfv.optvis.reference import (
    Probe,
    Reference,
    activation_maps,
    measure_probe,
    measure_reference,
    probed,
    rearranged,
)

__all__ = [
    "INPUT",
    "TERMS",
    "Term",
    "boundary_term",
    "code_term",
    "distribution_term",
    "grey_term",
    "make_term",
    "measure_terms",
    "probability_term",
    "probe_term",
    "total_variation_term",
    "unit_term",
]

INPUT = "input"
"""The image itself, in [0, 1], among the layers; Lucent's name for it."""

_SHARPNESS = 10.0  # of the soft maximum over the other facets' cosines
_KNEE = 0.1  # width of the bend where a unit's activation levels off, as a share of the cap
_CAP = 1.5  # where recipes let it, in largest activations on real images

Tensors: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Term:
    """A loss per image of the batch.

    Args:
        layers: dotted names of the layers that it reads; `INPUT` is the image.
        loss: from the layers' outputs and ``facts``, by name, to (B,) losses.
        facts: what it knows of each facet, by name, a row for each image of the batch.
    """

    layers: tuple[str, ...]
    loss: Callable[[Tensors, Tensors], Tensor]
    facts: Tensors = field(default_factory=dict)

    def rows(self, rows: Sequence[int], device: torch.device | None = None) -> Term:
        """The same for some of the facets, or for some several times, there where it is used."""
        return replace(self, facts={name: fact[list(rows)].to(device) for name, fact in self.facts.items()})

    def __call__(self, outputs: Tensors) -> Tensor:
        """(B,) losses of layers' outputs."""
        return self.loss(outputs, self.facts)


def unit_term(facets: Sequence[Facet], cap: float | None = None) -> Term:
    """Minus the unit's activation, in units of its mean magnitude on each facet's images.

    With ``cap``, it levels off about so many times the largest activation on any real image: one that drives a unit
    far beyond that, as is easy for a unit that is read at its peak, shows what is not in the world. Where no real
    image activates the unit, it never does.
    """
    unit = facets[0].unit
    mean = torch.tensor([float(abs(item.activations).mean()) for item in facets]).clamp_min(1e-6)
    peak = facets[0].peak if cap is not None else 0.0

    def loss(outputs: Tensors, facts: Tensors) -> Tensor:
        activation = unit.read(outputs[unit.layer_name]).float()
        if cap is not None and peak > 0:
            high, knee = cap * peak, _KNEE * cap * peak
            activation = high - knee * torch.nn.functional.softplus((high - activation) / knee)
        return -activation / facts["mean"].to(activation)

    return Term((unit.layer_name,), loss, {"mean": mean})


def probability_term(facets: Sequence[Facet]) -> Term:
    """Minus the log of the unit's share in its layer's softmax.

    Raises:
        RecipeError: if the unit is a direction, of which that isn't defined.
    """
    unit = facets[0].unit
    index = unit.index
    if not isinstance(index, int):
        raise RecipeError("the probability of a direction isn't defined; use a recipe without it")

    def loss(outputs: Tensors, facts: Tensors) -> Tensor:
        logits = unit.read_channels(outputs[unit.layer_name]).float()
        return -logits.log_softmax(1)[:, index]

    return Term((unit.layer_name,), loss)


def code_term(facets: Sequence[Facet], contrast: float = 0.0) -> Term:
    """Minus the cosine between the image's code and its facet's center, both less the mean code.

    With ``contrast``, plus so many times the largest cosine (a soft maximum) to the other facets' centers.
    """
    code, origin = facets[0].code, torch.from_numpy(facets[0].origin)
    centers = torch.from_numpy(facets[0].centers) - origin
    every = torch.arange(len(centers))
    facts = {"directions": centers[[item.index for item in facets]]}
    if contrast and len(centers) > 1:
        facts["others"] = torch.stack([centers[every != item.index] for item in facets])

    def loss(outputs: Tensors, facts: Tensors) -> Tensor:
        codes = code.read(outputs[code.layer]).float()
        codes = codes - origin.to(codes)
        own = torch.cosine_similarity(codes, facts["directions"].to(codes), dim=1)
        if "others" not in facts:
            return -own
        cosines = torch.cosine_similarity(codes[:, None], facts["others"].to(codes), dim=2)
        return contrast * (_SHARPNESS * cosines).logsumexp(1) / _SHARPNESS - own

    return Term((code.layer,), loss, facts)


def distribution_term(reference: Reference) -> Term:
    """Mean square distance of sorted activations to the facet's, in variances; a mean over layers.

    Channels count by how much they drive the unit, so that content it ignores isn't copied.
    """
    layers = tuple(reference.values)

    def loss(outputs: Tensors, facts: Tensors) -> Tensor:
        losses = []
        for layer in layers:
            maps = activation_maps(outputs[layer])
            distances = (maps - rearranged(facts[f"{layer} values"].to(maps), maps)).square()
            channels = distances.mean(dim=tuple(range(2, maps.ndim))) * facts[f"{layer} weights"].to(maps)
            losses.append(channels.mean(1) / reference.variances[layer])
        return torch.stack(losses).mean(0)

    values = {f"{layer} values": reference.values[layer] for layer in layers}
    return Term(layers, loss, {**values, **{f"{layer} weights": reference.weights[layer] for layer in layers}})


def probe_term(facets: Sequence[Facet], probe: Probe) -> Term:
    """Minus the part in the unit of what tells the facet's images from others (faceted feature visualization)."""
    unit, layer = facets[0].unit, probe.layer

    def loss(outputs: Tensors, facts: Tensors) -> Tensor:
        activation = unit.read(outputs[unit.layer_name]).sum()
        (gradient,) = torch.autograd.grad(activation, outputs[layer], retain_graph=True)
        part = probed(facts["weights"], outputs[layer], gradient)
        return -part / facts["scales"].to(part)

    return Term((layer, unit.layer_name), loss, {"weights": probe.weights, "scales": probe.scales})


def total_variation_term() -> Term:
    """How often a line across the image goes from black to white, a mean over rows, columns and channels."""

    def loss(outputs: Tensors, facts: Tensors) -> Tensor:
        images = outputs[INPUT].float()
        swings = [images.diff(dim=axis).abs().flatten(1).mean(1) * (images.shape[axis] - 1) for axis in (2, 3)]
        return torch.stack(swings).mean(0)

    return Term((INPUT,), loss)


def boundary_term(width: float = 0.1) -> Term:
    """Mean square difference of a border from the image's mean colour, so that what matters is in the middle."""

    def loss(outputs: Tensors, facts: Tensors) -> Tensor:
        images = outputs[INPUT].float()
        top, left = (max(1, round(width * side)) for side in images.shape[2:])
        border = torch.ones_like(images[0, 0])
        border[top:-top, left:-left] = 0
        squares = (images - images.mean(dim=(2, 3), keepdim=True)).square().mean(1)
        return (squares * border).sum(dim=(1, 2)) / border.sum()

    return Term((INPUT,), loss)


def grey_term() -> Term:
    """Mean square difference from mid-grey, which keeps colours from saturating."""
    return Term((INPUT,), lambda outputs, facts: (outputs[INPUT].float() - 0.5).square().flatten(1).mean(1))


_TERMS: Mapping[str, Callable[[Sequence[Facet]], Term]] = {
    "unit": unit_term,
    "capped_unit": lambda facets: unit_term(facets, cap=_CAP),
    "probability": probability_term,
    "code": code_term,
    "contrastive_code": lambda facets: code_term(facets, contrast=1.0),
    "total_variation": lambda facets: total_variation_term(),
    "boundary": lambda facets: boundary_term(),
    "grey": lambda facets: grey_term(),
}

_MEASURED: Mapping[str, Callable[[nn.Module, Sequence[Facet], Images, InputSpec, bool], Term]] = {
    "distribution": lambda model, facets, images, spec, progress: distribution_term(
        measure_reference(model, facets, images, input_spec=spec, progress=progress)
    ),
    "probe": lambda model, facets, images, spec, progress: probe_term(
        facets, measure_probe(model, facets, images, input_spec=spec, progress=progress)
    ),
}


TERMS: tuple[str, ...] = (*_TERMS, *_MEASURED)
"""Names of the terms, as recipes use them."""


def make_term(name: str, facets: Sequence[Facet]) -> Term:
    """A term by the name that recipes use, of what the facets themselves say.

    Raises:
        RecipeError: if there is none of that name.
        FacetError: if it is to be measured in the network first.
    """
    if name in _MEASURED:
        raise FacetError(f"the {name} of a facet is measured on its images; give what was measured")
    if name not in _TERMS:
        raise RecipeError(f"no objective {name!r}; there are {', '.join(TERMS)}")
    return _TERMS[name](facets)


def measure_terms(
    names: Iterable[str],
    model: nn.Module,
    facets: Sequence[Facet],
    images: Images,
    input_spec: InputSpec,
    progress: bool = False,
) -> dict[str, Term]:
    """Terms by name, measured on the facets' images where they need it; raises as `make_term` does."""
    return {
        name: _MEASURED[name](model, facets, images, input_spec, progress)
        if name in _MEASURED
        else make_term(name, facets)
        for name in names
    }
