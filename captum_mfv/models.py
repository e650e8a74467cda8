"""Load models and their preprocessing: by name or from a user's function, with a weights file if given."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from captum_mfv.display.progress import on_terminal
from captum_mfv.errors import ModelError
from captum_mfv.images import InputSpec
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.untrusted import is_file

__all__ = ["autocast_dtype", "load", "names"]

_SAFE_PICKLES = "2.10"  # in earlier versions, weights_only=True may run code: CVE-2025-32434, CVE-2026-24747
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def names() -> list[str]:
    """Return the names of torchvision's image classifiers."""
    import torchvision.models  # here, since it takes a second to import

    return list(torchvision.models.list_models(module=torchvision.models))


def load(
    name: str, weights: str | Path | None = None, *, pretrained: bool = True, progress: bool = True
) -> tuple[nn.Module, InputSpec]:
    """Load a model in evaluation mode, and the preprocessing of its input.

    Args:
        name: a torchvision model (``"resnet50"``), or a function without arguments that returns the model, or the
            model and its `InputSpec`: ``"path/to/file.py:function"`` or ``"package.module:function"``. Such a file is
            *run*: name only files that you trust.
        weights: a ``.safetensors`` file, or (from PyTorch 2.10 on) a ``.pt`` or ``.pth`` file that holds only tensors.
            By default torchvision's pretrained weights, which torchvision downloads.
        pretrained: False initializes a torchvision model at random, without a download.
        progress: show torchvision's progress bar during a download, on a terminal.

    Raises:
        ModelError: if there is no such model or function, or the weights can't be read, don't fit or aren't finite.
    """
    path = None if weights is None else Path(weights)
    state = None if path is None else _read_weights(path)
    preset = {"pretrained": pretrained and state is None, "progress": progress and on_terminal()}
    with torch.random.fork_rng():  # fresh weights are drawn from torch's global generators
        model, spec = _from_function(name) if ":" in name else _from_torchvision(name, **preset)
    if state is not None:
        _fill(model, state, f"{name} and {path}")
    _check_finite(model, str(path or name))
    return model.eval(), spec


def autocast_dtype(name: str | None) -> torch.dtype | None:
    """Return the type that a name stands for, for `torch.autocast`; None, the model's own type, for None."""
    if name is not None and name not in _DTYPES:
        raise ModelError(f"--dtype must be one of {', '.join(_DTYPES)}, not {name!r}")
    return None if name is None else _DTYPES[name]


def _from_torchvision(name: str, pretrained: bool, progress: bool) -> tuple[nn.Module, InputSpec]:
    import torchvision.models  # here, as in names

    if name not in (known := names()):
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
        raise ModelError(f"no torchvision model {name!r} (the nearest are {near}), and no file.py:function either")
    preset = torchvision.models.get_model_weights(name).DEFAULT
    options = {"weights": preset if pretrained else None, "progress": progress}
    if not pretrained and name in ("googlenet", "inception_v3"):  # they warn and start slowly otherwise
        options["init_weights"] = False
    try:
        model = torchvision.models.get_model(name, **options)
    except OSError as error:
        raise ModelError(f"the weights of {name} can't be downloaded ({error}); give a weights file") from error
    transforms = preset.transforms()
    size, short_side = transforms.crop_size[0], transforms.resize_size[0]
    interpolation = transforms.interpolation.value
    return model, InputSpec(size, transforms.mean, transforms.std, min(1.0, size / short_side), interpolation)


def _from_function(name: str) -> tuple[nn.Module, InputSpec]:
    source, _, function = name.rpartition(":")
    try:
        module = _run_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
        if not callable(getattr(module, function, None)):
            raise ModelError(f"{source} has no function {function!r}")
        made = getattr(module, function)()
    except ModelError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"{name} failed with {type(error).__name__}: {error}") from error
    model, spec = made if isinstance(made, tuple) and len(made) == 2 else (made, InputSpec())
    if not isinstance(model, nn.Module) or not isinstance(spec, InputSpec):
        raise ModelError(f"{name} must return a torch.nn.Module, or one and an InputSpec, not {type(made).__name__}")
    return model, spec


def _run_file(path: Path) -> ModuleType:
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


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not is_file(path):
        raise ModelError(f"there is no weights file {str(path)!r}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} isn't a state dict: a flat table of names and tensors")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} isn't a safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    if torch.__version__ < _SAFE_PICKLES:
        raise ModelError(
            f"{path} may be a pickle that runs code, and PyTorch {torch.__version__} has known holes; save the state "
            f"dict as safetensors, or update PyTorch to {_SAFE_PICKLES}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many types on hostile bytes
        raise ModelError(
            f"{path} isn't a file of tensors alone, and nothing else is loaded; save the state dict as safetensors"
        ) from error
    return state.get("state_dict", state) if isinstance(state, dict) else state


def _fill(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    own = model.state_dict()
    wrong = {
        "lacking": {name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked")},
        "unknown": state.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape},
    }
    problems = [
        f"{label} {', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''}"
        for label, names in wrong.items()
        if names
    ]
    if problems:
        raise ModelError(f"weights and model don't fit ({what}): {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)


def _check_finite(model: nn.Module, source: str) -> None:
    """Raise ModelError for a parameter that isn't finite or a buffer with NaN; attention masks may be infinite."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        wrong = (~value.isfinite() if name in parameters else value.isnan()).sum().item()
        if wrong:
            raise ModelError(f"{source}: {name} has {wrong} numbers that aren't finite, of {value.numel()}")
