"""Checks of arguments that several functions share: facets and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from captum_mfv.errors import FacetError, MFVError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.storage.schema import check_integer

__all__ = ["Facets", "Seeds", "as_facets", "as_seeds", "check_same_layers"]

Facets: TypeAlias = Facet | Sequence[Facet]
"""A facet, or several."""

Seeds: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer]
"""A seed or several: integers of Python or NumPy."""


def as_facets(facet: Facets) -> tuple[Facet, ...]:
    """Return one facet or several as a tuple; TypeError if an item is not a `Facet`, FacetError if there is none."""
    facets = (facet,) if isinstance(facet, Facet) else tuple(facet)
    for item in facets:
        if not isinstance(item, Facet):
            raise TypeError(f"facet must be a Facet or a sequence of them, not {type(item).__name__}")
    if not facets:
        raise FacetError("at least one facet is needed")
    return facets


def check_same_layers(facets: Sequence[Facet]) -> None:
    """Raise FacetError unless one forward pass serves all facets: same layers, reductions and encoder (the object)."""
    first = facets[0]
    for item in facets[1:]:
        if item.unit.encoder != first.unit.encoder:
            raise FacetError(
                f"facets of one batch must have the same encoder object, unlike {first.unit} and {item.unit}; "
                f"call once for each encoder"
            )
        for name, one, other in zip(("unit layer", "code"), _layers(first), _layers(item), strict=True):
            if one != other:
                raise FacetError(
                    f"facets of one batch must read the same layers, but the {name} is {one} for facet "
                    f"{first.index} of {first.unit} and {other} for facet {item.index} of {item.unit}; "
                    f"call once for each group of facets that read the same layers"
                )


def _layers(facet: Facet) -> tuple[str, str]:
    unit, code = facet.unit, facet.code
    return (
        f"{unit.layer_name} (reduce={unit.reduce}, channels={unit.channels}, n_prefix={unit.n_prefix})",
        f"{code.layer} (reduce={code.reduce}, channels={code.channels}, n_prefix={code.n_prefix})",
    )


def as_seeds(seed: Seeds) -> tuple[int, ...]:
    """Return a seed or several as integers; TypeError if a seed is no integer, MFVError if there is none."""
    given = cast("Sequence[SupportsIndex]", seed if np.ndim(seed) else [seed])  # type: ignore[arg-type]
    seeds = tuple(check_integer(one, "seed") for one in given)
    if not seeds:
        raise MFVError("at least one seed is needed")
    return seeds
