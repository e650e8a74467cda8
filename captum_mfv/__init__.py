"""Multifaceted feature visualization for Lucent, Captum and scikit-learn."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from captum_mfv._version import __version__

if TYPE_CHECKING:
    from captum_mfv import attr, concept, datasets, errors, figures, images, metrics, models, optvis, report
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
    "metrics",
    "models",
    "optvis",
    "report",
    "top_images",
]

_MEMBERS = {
    "activations": ("TopImages", "collect", "top_images"),
    "errors": ("MFVError",),
    "facets": ("Facet", "FacetFinder", "FacetSet", "find_facets"),
    "images": ("ImageFolder", "InputSpec"),
    "runs.atlas": ("AtlasFolder",),
    "runs.folder": ("RunFolder",),
    "units": ("Code", "Unit"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that ``import captum_mfv`` is quick."""
    for module, members in _MEMBERS.items():
        if name in members:
            return getattr(importlib.import_module(f"captum_mfv.{module}"), name)
    if name in __all__:
        return importlib.import_module(f"captum_mfv.{name}")
    raise AttributeError(f"module 'captum_mfv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
