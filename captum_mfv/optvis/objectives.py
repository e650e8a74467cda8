"""Facet objectives: what an image of a facet should do to the network, as Lucent objectives.

A `Term` maps layer outputs to one loss per image of the batch, so that every facet of a unit can be
synthesised in one batch, each image after its own facet. Our render loop sums terms; in Lucent's the
functions `unit`, `code`, `distribution` and `facet` give `lucent.optvis.objectives.Objective` objects,
which add up and multiply with Lucent's own. Losses are minimised and in normalised terms: one weight
serves all units, layers and models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from captum_mfv.activations import capture, guard, layer_name, spatial_layers, trace
from captum_mfv.errors import FacetError, RecipeError
from captum_mfv.facets import Facet
from captum_mfv.images import Images, InputSpec, stack
from captum_mfv.optvis.initializer import as_facets
from captum_mfv.units import Code, Unit, channels_second

__all__ = [
    "FACET_WEIGHTS",
    "Reference",
    "Term",
    "code",
    "distribution",
    "facet",
    "make_term",
    "measure_reference",
    "unit",
]

FACET_WEIGHTS: Mapping[str, float] = {"unit": 0.5, "code": 3.0, "distribution": 6.0}
"""Weights of the terms in `facet` and in the default recipe."""

_N_LAYERS = 4  # layers in which distributions are matched
_MAX_SIDE = 14  # maps are averaged down to this side before they are sorted


class Term(Protocol):
    """A loss per image of the batch, from layer outputs."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of the layers that it reads."""
        ...

    def __call__(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """(B,) losses."""
        ...


@dataclass(frozen=True, eq=False)
class UnitTerm:
    """Minus the unit's activation, in units of its mean magnitude on each facet's images."""

    unit: Unit
    scale: Tensor

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.unit.layer_name,)

    def __call__(self, outputs: Mapping[str, Tensor]) -> Tensor:
        activation = self.unit.read(outputs[self.unit.layer_name])
        return -activation / self.scale.to(activation)


@dataclass(frozen=True)
class ProbabilityTerm:
    """Minus the log of the unit's share in its layer's softmax."""

    unit: Unit

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.unit.layer_name,)

    def __call__(self, outputs: Mapping[str, Tensor]) -> Tensor:
        if not isinstance(self.unit.index, int):
            raise RecipeError("the probability of a direction isn't defined; use a recipe without it")
        logits = self.unit.read_channels(outputs[self.unit.layer_name])
        return -logits.log_softmax(1)[:, self.unit.index]


@dataclass(frozen=True, eq=False)
class CodeTerm:
    """Minus the cosine between the image's code and its facet's center, both less the mean code."""

    code: Code
    origin: Tensor
    directions: Tensor

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.code.layer,)

    def __call__(self, outputs: Mapping[str, Tensor]) -> Tensor:
        codes = self.code.read(outputs[self.code.layer])
        return -torch.cosine_similarity(codes - self.origin.to(codes), self.directions.to(codes), dim=1)


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

    def rows(self, rows: Sequence[int]) -> Reference:
        """The same for some of the facets, or for some several times."""
        chosen = list(rows)
        return Reference(
            {layer: values[chosen] for layer, values in self.values.items()},
            self.variances,
            {layer: weights[chosen] for layer, weights in self.weights.items()},
        )


@dataclass(frozen=True, eq=False)
class DistributionTerm:
    """Mean square distance of sorted activations to the facet's, in variances; a mean over layers.

    Channels count by how much they drive the unit, so that content it ignores isn't copied.
    """

    reference: Reference

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.reference.values)

    def __call__(self, outputs: Mapping[str, Tensor]) -> Tensor:
        losses = []
        for layer, values in self.reference.values.items():
            found = _sorted(outputs[layer])
            wanted = _resampled(values.to(found), found.shape[-1])
            squares = (found - wanted).square().mean(2) * self.reference.weights[layer].to(found)
            losses.append(squares.mean(1) / self.reference.variances[layer])
        return torch.stack(losses).mean(0)


def measure_reference(
    model: nn.Module,
    facet: Facet | Sequence[Facet],
    images: Images,
    *,
    layers: Sequence[str] | None = None,
    n_images: int = 30,
    input_spec: InputSpec | None = None,
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
    """
    facets = as_facets(facet)
    spec = input_spec or InputSpec()
    feed = spec.feed(model)
    names = [layer_name(model, layer) for layer in layers or _default_layers(model, facets[0], feed(spec.grey()))]
    unit = facets[0].unit
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    variances: dict[str, list[Tensor]] = {name: [] for name in names}
    weights: dict[str, list[Tensor]] = {name: [] for name in names}
    with guard(model), torch.enable_grad(), capture(model, [*names, unit.layer_name]) as run:
        for item in facets:
            outputs = run(feed(stack(images, item.members[:n_images]).requires_grad_()))
            wanted = [outputs[name] for name in names]
            gradients = torch.autograd.grad(unit.read(outputs[unit.layer_name]).sum(), wanted, allow_unused=True)
            for name, output, gradient in zip(names, wanted, gradients, strict=True):
                found = _sorted(output.detach()).float()
                values[name].append(found.mean(0))
                variances[name].append(found.var(dim=(0, 2), correction=0).mean())
                weights[name].append(_drive(output.detach(), gradient))
    return Reference(
        {name: torch.stack(found) for name, found in values.items()},
        {name: max(float(torch.stack(found).mean()), 1e-12) for name, found in variances.items()},
        {name: torch.stack(found) for name, found in weights.items()},
    )


def _drive(output: Tensor, gradient: Tensor | None) -> Tensor:
    """How much each channel drives the unit, (C,), of mean 1; all alike where nothing does."""
    maps = channels_second(output).float()
    if gradient is None:
        return torch.ones(maps.shape[1], device=maps.device)
    driven = (maps * channels_second(gradient)).clamp_min(0)
    drive = driven.reshape(*maps.shape[:2], -1).sum(2).mean(0).sqrt()
    return drive / drive.mean() if drive.any() else torch.ones_like(drive)


def _default_layers(model: nn.Module, facet: Facet, grey: Tensor) -> list[str]:
    spatial = spatial_layers(trace(model, grey), facet.unit.layer_name)
    last = facet.code.layer
    before = spatial[: spatial.index(last)] if last in spatial else spatial
    blocks = [name for name in before if not any(name.startswith(f"{other}.") for other in [*before, last])]
    later = blocks[len(blocks) // 3 :]
    picks = torch.linspace(0, len(later) - 1, min(_N_LAYERS - 1, len(later))).round().int().tolist()
    return [*(later[i] for i in picks), last]


def _sorted(output: Tensor) -> Tensor:
    """(N, C, P) activations of each channel in ascending order; large maps averaged down first."""
    maps = channels_second(output)
    if maps.ndim == 4 and (factor := -(-max(maps.shape[2:]) // _MAX_SIDE)) > 1:
        maps = torch.nn.functional.avg_pool2d(maps, factor)
    return maps.reshape(*maps.shape[:2], -1).sort(dim=2).values


def _resampled(values: Tensor, n_values: int) -> Tensor:
    """Sorted values at as many quantiles, for images of another size than the reference's."""
    if values.shape[-1] == n_values:
        return values
    return torch.nn.functional.interpolate(values, n_values, mode="linear", align_corners=True)


def _unit_term(facets: Sequence[Facet], reference: Reference | None) -> Term:
    scale = torch.tensor([float(abs(item.activations).mean()) for item in facets])
    return UnitTerm(facets[0].unit, scale.clamp_min(1e-6))


def _probability_term(facets: Sequence[Facet], reference: Reference | None) -> Term:
    return ProbabilityTerm(facets[0].unit)


def _code_term(facets: Sequence[Facet], reference: Reference | None) -> Term:
    origin = torch.from_numpy(facets[0].origin)
    centers = torch.stack([torch.from_numpy(item.center) for item in facets])
    return CodeTerm(facets[0].code, origin, centers - origin)


def _distribution_term(facets: Sequence[Facet], reference: Reference | None) -> Term:
    if reference is None:
        raise FacetError("the distribution of a facet is measured on its images; give a reference")
    return DistributionTerm(reference)


_TERMS: dict[str, Callable[[Sequence[Facet], Reference | None], Term]] = {
    "unit": _unit_term,
    "probability": _probability_term,
    "code": _code_term,
    "distribution": _distribution_term,
}


def make_term(name: str, facets: Sequence[Facet], reference: Reference | None = None) -> Term:
    """The term of a name: unit, probability, code or distribution.

    Raises:
        RecipeError: if there is no such term.
        FacetError: if the term needs a reference and there is none.
    """
    if name not in _TERMS:
        raise RecipeError(f"no objective {name!r}; there are {', '.join(_TERMS)}")
    return _TERMS[name](facets, reference)


def unit(facet: Facet | Sequence[Facet]) -> Any:
    """Lucent objective: the facet's unit, in units of its mean activation on the facet's images."""
    return _objective({"unit": 1.0}, as_facets(facet), None)


def code(facet: Facet | Sequence[Facet]) -> Any:
    """Lucent objective: the cosine between the image's code and the facet's center, less the mean code."""
    return _objective({"code": 1.0}, as_facets(facet), None)


def distribution(facet: Facet | Sequence[Facet], reference: Reference) -> Any:
    """Lucent objective: each channel's activations distributed as on the facet's images.

    Args:
        facet: the facet or facets that the reference was measured on.
        reference: what `measure_reference` gives for them.
    """
    return _objective({"distribution": 1.0}, as_facets(facet), reference)


def facet(
    facet: Facet | Sequence[Facet],
    reference: Reference | None = None,
    *,
    weights: Mapping[str, float] | None = None,
) -> Any:
    """Lucent objective: the image of a facet, or a batch of images, each of its own facet.

    Args:
        facet: a facet; or several, as many as the batch has images.
        reference: what `measure_reference` gives for the facets; without it distributions aren't matched.
        weights: weight of each term; by default those of the recipe ``facet``.

    Returns:
        A `lucent.optvis.objectives.Objective`: a mean over the batch, to be minimised.
    """
    chosen = dict(weights or FACET_WEIGHTS)
    if reference is None and weights is None:
        del chosen["distribution"]
    return _objective(chosen, as_facets(facet), reference)


def _objective(weights: Mapping[str, float], facets: Sequence[Facet], reference: Reference | None) -> Any:
    from lucent.optvis.objectives import Objective  # here, since it takes seconds to import

    terms = [(weight, make_term(name, facets, reference)) for name, weight in weights.items()]

    def loss(outputs_of: Callable[[str], Tensor]) -> Tensor:
        outputs = _LucentOutputs(outputs_of)
        return torch.stack([weight * term(outputs).mean() for weight, term in terms]).sum()

    name = " + ".join(weights)
    return Objective(loss, f"{name} of {facets[0].unit}", f"facets {[item.index for item in facets]}")


class _LucentOutputs(dict[str, Tensor]):
    """Layer outputs by dotted name, from Lucent's, which join names with underscores."""

    def __init__(self, outputs_of: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._outputs_of = outputs_of

    def __missing__(self, layer: str) -> Tensor:
        return self._outputs_of(layer.replace(".", "_"))
