"""Weights files: read tensors and nothing else, and fit them to a model."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_mfv.errors import ModelError
from captum_mfv.storage.untrusted import is_file

__all__ = ["check_finite", "check_fit", "fit_weights", "read_weights"]

_SAFE_PICKLES = "2.10"  # in earlier versions, weights_only=True may run code: CVE-2025-32434, CVE-2026-24747
_TOWERS = ("visual.", "vision_model.")  # where open_clip and transformers keep the image tower of a two-tower model


class _Skipped:
    """Stand-in for an object of a pickle; keeps nothing of the object's content."""

    def __setstate__(self, state: object) -> None:
        """Drop the content."""


def read_weights(path: Path, skip: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the state dict in a file; ModelError if it isn't one, or holds anything but tensors.

    Args:
        path: a safetensors file or a pickle.
        skip: classes, by module and name, whose objects may be in a pickle beside the state dict; they are not read.
    """
    if not is_file(path):
        raise ModelError(f"there is no weights file {str(path)!r}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path, skip)
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


def _read_pickle(path: Path, skip: Sequence[str]) -> Any:
    if torch.__version__ < _SAFE_PICKLES:
        raise ModelError(
            f"{path} may be a pickle that runs code, and PyTorch {torch.__version__} has known holes; save the state "
            f"dict as safetensors, or update PyTorch to {_SAFE_PICKLES}"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Skipped, name) for name in skip]):
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many types on hostile bytes
        raise ModelError(
            f"{path} isn't a file of tensors alone, and nothing else is loaded; save the state dict as safetensors"
        ) from error
    return state.get("state_dict", state) if isinstance(state, dict) else state


def fit_weights(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state dict, or its part for an image tower, into a model; ModelError names what doesn't fit (``what``)."""
    own = model.state_dict()
    for tower in _TOWERS:
        part = {name.removeprefix(tower): value for name, value in state.items() if name.startswith(tower)}
        if part and not any(name.startswith(tower) for name in own):
            state = part
    wrong = {
        "lacking": {name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked")},
        "unknown": state.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape},
    }
    check_fit(wrong, what)
    model.load_state_dict(state, strict=False)


def check_fit(wrong: Mapping[str, Collection[str]], what: str) -> None:
    """Raise ModelError if there are parameters' names under any label, such as ``lacking``."""
    problems = [
        f"{label} {', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''}"
        for label, names in wrong.items()
        if names
    ]
    if problems:
        raise ModelError(f"weights and model don't fit ({what}): {'; '.join(problems)}")


def check_finite(model: nn.Module, source: str) -> None:
    """Raise ModelError for a parameter that isn't finite or a buffer with NaN; attention masks may be infinite."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        wrong = (~value.isfinite() if name in parameters else value.isnan()).sum().item()
        if wrong:
            raise ModelError(f"{source}: {name} has {wrong} numbers that aren't finite, of {value.numel()}")
