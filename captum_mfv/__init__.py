"""Multifaceted feature visualization for Lucent, Captum and scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_mfv._lazy import importer
from captum_mfv._version import __version__

if TYPE_CHECKING:
    from captum_mfv import attr, concept, datasets, errors, figures, images, labels, metrics, models, optvis, report
    from captum_mfv.activations.top_k import TopImages, top_images
    from captum_mfv.errors import MFVError
    from captum_mfv.facets.facet_set import Facet, FacetSet
    from captum_mfv.facets.finder import FacetFinder, find_facets
    from captum_mfv.images import ImageFolder, InputSpec
    from captum_mfv.runs.atlas import AtlasFolder
    from captum_mfv.runs.folder import RunFolder
    from captum_mfv.units import Code, Unit

__all__ = [
    "AtlasFolder",
    "Code",
    "Facet",
    "FacetFinder",
    "FacetSet",
    "ImageFolder",
    "InputSpec",
    "MFVError",
    "RunFolder",
    "TopImages",
    "Unit",
    "__version__",
    "attr",
    "collect",
    "concept",
    "datasets",
    "errors",
    "figures",
    "find_facets",
    "images",
    "labels",
    "metrics",
    "models",
    "optvis",
    "report",
    "top_images",
]

__getattr__, __dir__ = importer(
    __name__,
    {
        "activations": ("TopImages", "collect", "top_images"),
        "attr": (),
        "concept": (),
        "datasets": (),
        "errors": ("MFVError",),
        "facets": ("Facet", "FacetFinder", "FacetSet", "find_facets"),
        "figures": (),
        "images": ("ImageFolder", "InputSpec"),
        "labels": (),
        "metrics": (),
        "models": (),
        "optvis": (),
        "report": (),
        "runs.atlas": ("AtlasFolder",),
        "runs.folder": ("RunFolder",),
        "units": ("Code", "Unit"),
    },
)
