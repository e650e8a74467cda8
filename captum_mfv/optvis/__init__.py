"""Objectives, parameterizations, transforms and optimizers for Lucent's render loop, and a render loop for facets."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captum_mfv.optvis import (
        initializer,
        objectives,
        optimizers,
        param,
        recipes,
        reference,
        render,
        terms,
        transform,
    )

__all__ = ["initializer", "objectives", "optimizers", "param", "recipes", "reference", "render", "terms", "transform"]


def __getattr__(name: str) -> ModuleType:
    """Import a module on first use, so that ``import captum_mfv`` stays fast."""
    if name in __all__:
        return importlib.import_module(f"captum_mfv.optvis.{name}")
    raise AttributeError(f"module 'captum_mfv.optvis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
