"""Facets: clusters of the images that activate a unit, found with t-SNE and k-means or with any clusterer."""

from captum_mfv.facets.facet_set import Facet, FacetHead, FacetSet, nearest
from captum_mfv.facets.finder import FacetFinder, cluster, find_facets, stability

__all__ = ["Facet", "FacetFinder", "FacetHead", "FacetSet", "cluster", "find_facets", "nearest", "stability"]
