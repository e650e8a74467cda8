"""Facet objectives for Lucent's render loop.

Each function gives a `lucent.optvis.objectives.Objective`, to be minimised, which adds up and multiplies with
Lucent's own. Of several facets, it is a mean over a batch with one image of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_mfv.errors import RecipeError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.optvis.initializer import as_facets
from captum_mfv.optvis.reference import Probe, Reference, measure_probe, measure_reference
from captum_mfv.optvis.terms import (
    INPUT,
    Term,
    boundary_term,
    code_term,
    distribution_term,
    grey_term,
    make_term,
    probability_term,
    probe_term,
    total_variation_term,
    unit_term,
)

__all__ = [
    "FACET_WEIGHTS",
    "boundary",
    "code",
    "distribution",
    "facet",
    "grey",
    "measure_probe",
    "measure_reference",
    "probability",
    "probe",
    "total_variation",
    "unit",
]

FACET_WEIGHTS: Mapping[str, float] = {"capped_unit": 1.5, "code": 3.0, "distribution": 6.0}
"""Weights of the terms in `facet` and in the default recipe."""


def unit(facet: Facet | Sequence[Facet], *, cap: float | None = None) -> Any:
    """The facet's unit, in units of its mean activation on the facet's images.

    Args:
        facet: the facet or facets.
        cap: it levels off about so many times the largest activation on any real image; None: never.
    """
    facets = as_facets(facet)
    return _objective({"unit": (1.0, unit_term(facets, cap))}, facets)


def probability(facet: Facet | Sequence[Facet]) -> Any:
    """Minus the log of the unit's probability, a softmax over its layer's units."""
    facets = as_facets(facet)
    return _objective({"probability": (1.0, probability_term(facets))}, facets)


def code(facet: Facet | Sequence[Facet], *, contrast: float = 0.0) -> Any:
    """The cosine between the image's code and the facet's center, both less the mean code.

    Args:
        facet: the facet or facets.
        contrast: how much the largest cosine to the other facets' centers counts against it.
    """
    facets = as_facets(facet)
    return _objective({"code": (1.0, code_term(facets, contrast))}, facets)


def distribution(facet: Facet | Sequence[Facet], reference: Reference) -> Any:
    """Each channel's activations distributed as on the facet's images (VITAL, arXiv 2503.22399).

    Args:
        facet: the facet or facets that the reference was measured on.
        reference: what `measure_reference` gives for them.
    """
    return _objective({"distribution": (1.0, distribution_term(reference))}, as_facets(facet))


def probe(facet: Facet | Sequence[Facet], probe: Probe) -> Any:
    """What tells the facet's images from others, as far as it drives the unit (Goh et al. 2021).

    The part of the unit that a linear probe of a lower layer sees, wᵀ(g ⊙ ReLU(∇f)), the gradient taken as
    given; add it to `unit` for faceted feature visualization.

    Args:
        facet: the facet or facets that the probe was measured on.
        probe: what `measure_probe` gives for them.
    """
    facets = as_facets(facet)
    return _objective({"probe": (1.0, probe_term(facets, probe))}, facets)


def facet(
    facet: Facet | Sequence[Facet],
    reference: Reference | None = None,
    *,
    weights: Mapping[str, float] | None = None,
) -> Any:
    """The image of a facet, or a batch of images, each of its own facet.

    Args:
        facet: a facet; or several, as many as the batch has images.
        reference: what `measure_reference` gives for the facets; without it distributions aren't matched.
        weights: weight of each term; by default those of the recipe ``facet``.

    Raises:
        FacetError: if weights name a term that is to be measured first.
    """
    facets, chosen = as_facets(facet), dict(weights or FACET_WEIGHTS)
    if reference is None and weights is None:
        del chosen["distribution"]
    matched = {} if reference is None else {"distribution": distribution_term(reference)}
    terms = {name: (weight, matched.get(name) or make_term(name, facets)) for name, weight in chosen.items()}
    return _objective(terms, facets)


def total_variation() -> Any:
    """How often a line across the image goes from black to white: smooths it."""
    return _objective({"total_variation": (1.0, total_variation_term())})


def boundary(width: float = 0.1) -> Any:
    """The border's mean square difference from the image's mean colour: moves what matters to the middle.

    Args:
        width: the border's width, as a share of height and width.

    Raises:
        RecipeError: if width isn't above 0 and below a half.
    """
    if not 0 < width < 0.5:
        raise RecipeError(f"width must be above 0 and below .5, not {width}")
    return _objective({"boundary": (1.0, boundary_term(width))})


def grey() -> Any:
    """Mean square difference from mid-grey: keeps colours from saturating."""
    return _objective({"grey": (1.0, grey_term())})


def _objective(terms: Mapping[str, tuple[float, Term]], facets: Sequence[Facet] = ()) -> Any:
    from lucent.optvis.objectives import Objective  # here, since it takes seconds to import

    def loss(outputs_of: Callable[[str], Tensor]) -> Tensor:
        outputs = _LucentOutputs(outputs_of)
        return torch.stack([weight * term(outputs).mean() for weight, term in terms.values()]).sum()

    name = " + ".join(terms)
    return Objective(
        loss, f"{name} of {facets[0].unit}" if facets else name, f"facets {[item.index for item in facets]}"
    )


class _LucentOutputs(dict[str, Tensor]):
    """Layer outputs by dotted name, from Lucent's, which join names with underscores."""

    def __init__(self, outputs_of: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._outputs_of = outputs_of

    def __missing__(self, layer: str) -> Tensor:
        return self._outputs_of(layer if layer == INPUT else layer.replace(".", "_"))
