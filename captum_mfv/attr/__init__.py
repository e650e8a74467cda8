"""Attributions of facets by any of Captum's methods, and codes from attributions."""

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
