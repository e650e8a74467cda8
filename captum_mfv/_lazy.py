"""Packages whose names are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["importer"]


def importer(
    package: str, members: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: the package's name; it has an ``__all__``.
        members: the names of each module that can be used without importing the module.
    """

    def find(name: str) -> Any:
        if name in members:
            return importlib.import_module(f"{package}.{name}")
        for module, names in members.items():
            if name in names:
                return getattr(importlib.import_module(f"{package}.{module}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: list(sys.modules[package].__all__)
