"""Errors and warnings of captum-mfv. `MFVError`, a ValueError, is the base of all errors."""

__all__ = [
    "FacetError",
    "ImageError",
    "LabelError",
    "MFVError",
    "MFVWarning",
    "ModelError",
    "RecipeError",
    "RenderError",
    "RunError",
    "UnitError",
]


class MFVError(ValueError):
    """Base of all errors of this package."""


class ModelError(MFVError):
    """A model or its weights can't be loaded."""


class UnitError(MFVError):
    """A unit or a layer isn't in the model, or isn't one number."""


class ImageError(MFVError):
    """An image or a folder of images can't be used."""


class FacetError(MFVError):
    """Facets can't be found in, or assigned to, the images."""


class LabelError(MFVError):
    """Words or scores can't be used to label facets."""


class RecipeError(MFVError):
    """A recipe isn't known or doesn't fit."""


class RenderError(MFVError):
    """An image can't be synthesized."""


class RunError(MFVError):
    """A run's settings or folder can't be used."""


class MFVWarning(UserWarning):
    """A problem that does not stop the run."""
