"""Facet objectives for Lucent's render loop.

Each function returns a `lucent.optvis.objectives.Objective`, to be minimized, which can be added to Lucent's own and
multiplied. One facet serves a batch of any size. Several facets, of any units that read the same layers, need a batch
with one image for each; the objective is the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_mfv.activations.containers import find_tensor, split_name
from captum_mfv.errors import FacetError, RecipeError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.optvis import terms
from captum_mfv.optvis.arguments import Facets, as_facets
from captum_mfv.optvis.reference import (
    Probe,
    Reference,
    distribution_term,
    measure_probe,
    measure_reference,
    probe_term,
)
from captum_mfv.optvis.terms import Term

__all__ = [
    "FACET_WEIGHTS",
    "boundary",
    "code",
    "distribution",
    "facet",
    "gray",
    "measure_probe",
    "measure_reference",
    "probability",
    "probe",
    "total_variation",
    "unit",
    "weighted_sum",
]

FACET_WEIGHTS: Mapping[str, float] = {"capped_unit": 1.5, "code": 3.0, "distribution": 6.0}
"""Weights of the terms in `facet` and in the default recipe."""


def unit(facet: Facets, *, cap: float | None = None) -> Any:
    """Maximize the facet's unit, in units of its mean activation on the facet's images.

    With a cap, the best activation is about ``cap`` times the largest on any real image.
    """
    facets = as_facets(facet)
    return weighted_sum(facets, {"unit": terms.unit_term(facets, cap)})


def probability(facet: Facets) -> Any:
    """Maximize the logarithm of the unit's probability, a softmax over its layer's units."""
    facets = as_facets(facet)
    return weighted_sum(facets, {"probability": terms.probability_term(facets)})


def code(facet: Facets, *, contrast: float = 0.0) -> Any:
    """Maximize the cosine between the image's code and the facet's center, both minus the mean code.

    The largest cosine to the other facets' centers is subtracted, times ``contrast``.
    """
    facets = as_facets(facet)
    return weighted_sum(facets, {"code": terms.code_term(facets, contrast)})


def distribution(facet: Facets, reference: Reference) -> Any:
    """Match the distribution of each channel's activations on the facet's images (VITAL, arXiv 2503.22399).

    ``reference`` is the output of `measure_reference` for the facets; for another number of facets, raises FacetError.
    """
    facets = as_facets(facet)
    return weighted_sum(facets, {"distribution": distribution_term(reference)})


def probe(facet: Facets, probe: Probe) -> Any:
    """Maximize the part of the unit that a linear probe of a lower layer sees, wᵀ(g ⊙ ReLU(∇f)) (Goh et al. 2021).

    The probe separates the facet's images from others; the gradient counts as a constant. Add `unit` for faceted
    feature visualization. ``probe`` is the output of `measure_probe` for the facets; raises as `distribution` does.
    """
    facets = as_facets(facet)
    return weighted_sum(facets, {"probe": probe_term(facets, probe)})


def facet(facet: Facets, reference: Reference | None = None, *, weights: Mapping[str, float] | None = None) -> Any:
    """Combine the terms of the recipe ``facet``: the unit, the facet's code and, with a reference, the distribution.

    Args:
        facet: a facet; or several, as many as the batch has images.
        reference: output of `measure_reference` for the facets; without it distributions aren't matched.
        weights: weight of each term; by default those of the recipe ``facet``.

    Raises:
        FacetError: if weights name a term that must be measured first, the reference was measured on another number
            of facets, the facets read different layers, or, when it runs, the batch has another number of images.
    """
    facets, chosen = as_facets(facet), dict(weights or FACET_WEIGHTS)
    if reference is None and weights is None:
        del chosen["distribution"]
    measured = {} if reference is None else {"distribution": distribution_term(reference)}
    every = {name: measured.get(name) or terms.make_term(name, facets) for name in chosen}
    return weighted_sum(facets, every, chosen)


def total_variation() -> Any:
    """Minimize how often a line across the image changes from black to white, which smooths the image."""
    return weighted_sum((), {"total_variation": terms.total_variation_term()})


def boundary(width: float = 0.1) -> Any:
    """Minimize the mean square difference of the border, a share of height and width, from the image's mean color.

    Raises:
        RecipeError: if width isn't above 0 and below a half.
    """
    if not 0 < width < 0.5:
        raise RecipeError(f"width must be above 0 and below .5, not {width}")
    return weighted_sum((), {"boundary": terms.boundary_term(width)})


def gray() -> Any:
    """Minimize the mean square difference from mid-gray, which keeps colors from saturating."""
    return weighted_sum((), {"gray": terms.gray_term()})


def weighted_sum(
    facets: Sequence[Facet], losses: Mapping[str, Term], weights: Mapping[str, float] | None = None
) -> Any:
    """Return the sum of terms, weighted by 1 unless weights are given; a mean over the batch."""
    from lucent.optvis.objectives import Objective  # here, since it takes seconds to import

    for name, term in losses.items():
        for values in term.constants.values():
            if len(values) != len(facets):
                raise FacetError(f"the {name} was measured on {len(values)} facets, but {len(facets)} were given")
    layers = {layer for term in losses.values() for layer in term.layers}

    def loss(outputs_of: Callable[[str], Tensor]) -> Tensor:
        named = {layer: split_name(layer)[0].replace(".", "_") for layer in layers}  # as Lucent names layers
        outputs = {layer: find_tensor(layer, outputs_of(name))[1] for layer, name in named.items()}
        for output in outputs.values():
            if len(facets) > 1 and len(output) != len(facets):
                raise FacetError(
                    f"the objective has {len(facets)} facets, but the batch has {len(output)} images; "
                    f"give as many facets as images, or one facet"
                )
        found = {name: term(outputs).mean() for name, term in losses.items()}
        return torch.stack([weights[name] * one if weights else one for name, one in found.items()]).sum()

    name = " + ".join(losses) + (f" of {facets[0].unit}" if facets else "")
    return Objective(loss, name, f"facets {[item.index for item in facets]}")
