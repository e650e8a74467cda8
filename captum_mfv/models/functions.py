"""Functions of a user's file or package, and the model or dataset that one returns: ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from captum_mfv.errors import ModelError
from captum_mfv.images import InputSpec
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.untrusted import is_file

__all__ = ["call_function", "from_function", "run_file"]


def from_function(name: str) -> tuple[nn.Module, InputSpec]:
    """Return the model and the preprocessing that a function returns; ModelError if it returns none."""
    made = call_function(name)
    model, spec = made if isinstance(made, tuple) and len(made) == 2 else (made, InputSpec())
    if not isinstance(model, nn.Module) or not isinstance(spec, InputSpec):
        raise ModelError(f"{name} must return a torch.nn.Module, or one and an InputSpec, not {type(made).__name__}")
    return model, spec


def call_function(name: str) -> Any:
    """Return what the function of a name returns, called without arguments; ModelError if there is no such function."""
    source, _, function = name.rpartition(":")
    module = run_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    if not callable(getattr(module, function, None)):
        raise ModelError(f"{source} has no function {function!r}")
    return getattr(module, function)()


def run_file(path: Path) -> ModuleType:
    """Return a Python file as a module, run anew; it may import modules of its folder. ModelError without a file."""
    if not is_file(path):
        raise ModelError(f"there is no file {str(path)!r}")
    name = f"captum_mfv_model_{fingerprint(path=os.fsencode(path.resolve()).hex())}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{str(path)!r} can't be run as Python")
    module, search_path = importlib.util.module_from_spec(spec), list(sys.path)
    sys.modules[name] = module  # where dataclasses look up annotations that are strings, also after loading
    sys.path.insert(0, str(path.parent.resolve()))  # the file may import modules of its folder
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path[:] = search_path
    return module
