"""Attributions of facets by any of Captum's methods, and codes from attributions; Captum is imported when used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_mfv._lazy import importer

if TYPE_CHECKING:
    from captum_mfv.attr.attribution import FacetAttribution, LayerFacetAttribution
    from captum_mfv.attr.maps import AttributionCode, check_method, facet_maps, pure_code
    from captum_mfv.attr.model import FacetModel, explained, unit_forward

__all__ = [
    "AttributionCode",
    "FacetAttribution",
    "FacetModel",
    "LayerFacetAttribution",
    "check_method",
    "explained",
    "facet_maps",
    "pure_code",
    "unit_forward",
]

__getattr__, __dir__ = importer(
    __name__,
    {
        "attribution": ("FacetAttribution", "LayerFacetAttribution"),
        "maps": ("AttributionCode", "check_method", "facet_maps", "pure_code"),
        "model": ("FacetModel", "explained", "unit_forward"),
    },
)
