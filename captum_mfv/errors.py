"""Errors and warnings of captum-mfv.

::

    MFVError                 everything below, to catch at once
    ├── ModelError           a model or its weights can't be loaded
    ├── UnitError            a unit or a layer isn't in the model, or isn't one number
    ├── ImageError           an image or a folder of images can't be used
    ├── FacetError           facets can't be found in, or told from, what was given
    ├── RecipeError          a recipe isn't known or doesn't fit
    ├── RenderError          an image can't be synthesised (no gradient, not finite)
    └── RunError             a run's settings or folder can't be used

    MFVWarning               what the result survived but the user should know

Every error is a ValueError too, so that callers need not know this tree.
"""

__all__ = [
    "FacetError",
    "ImageError",
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
    """A unit or a layer isn't in the model, or can't be read as one number."""


class ImageError(MFVError):
    """An image or a folder of images can't be used."""


class FacetError(MFVError):
    """Facets can't be found in, or told from, what was given."""


class RecipeError(MFVError):
    """A recipe isn't known or doesn't fit."""


class RenderError(MFVError):
    """An image can't be synthesised."""


class RunError(MFVError):
    """A run's settings are invalid, or its folder can't be read or continued."""


class MFVWarning(UserWarning):
    """Something the result survived but the user should know."""
