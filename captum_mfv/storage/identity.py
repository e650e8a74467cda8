"""Fingerprints of weights, datasets, code functions and settings, on which stored results depend."""

from __future__ import annotations

import functools
import hashlib
import json
import numbers
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from captum_mfv.errors import RunError

__all__ = ["check_same", "content_fingerprint", "dataset_fingerprint", "fingerprint", "weights_fingerprint"]

FORMAT = 1  # version of all fingerprints; a new one makes all earlier results count as different
_DIGITS = 32


def fingerprint(**parts: Any) -> str:
    """Return the SHA-256 hash of named parts, 32 hexadecimal digits.

    Equal parts have equal fingerprints on every machine; lists and tuples are equal, and so are a dataclass and the
    mapping of its fields. Arguments and errors are those of `canonical`.

    Example:
        >>> fingerprint(unit=("fc", 1)) == fingerprint(unit=["fc", 1])
        True
    """
    text = json.dumps({"format": FORMAT, "parts": canonical(parts)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGITS]


def canonical(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return named parts as JSON values, as `json.loads` would return them.

    Args:
        parts: dataclasses, mappings, lists, tuples, numbers, strings or None, nested; modules, whose value is their
            `weights_fingerprint`.

    Raises:
        TypeError: if a part is of another type.
        ValueError: if a number is not finite.
    """
    hashed = functools.cache(weights_fingerprint)  # an encoder of many units is hashed once
    return dict(json.loads(json.dumps(parts, default=functools.partial(_plain, hashed), allow_nan=False)))


def _plain(hashed: Callable[[nn.Module], str], value: Any) -> Any:
    if isinstance(value, nn.Module):
        return hashed(value)
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} can't be part of a fingerprint; give numbers, strings, lists or tables")


def check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], what: str, remedy: str) -> None:
    """Raise RunError if canonical parts differ: ``what``, the first three of these parts, ``remedy``."""
    other = [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]
    if other:
        changes = [f"{name} {_short(stored.get(name))} there, {_short(wanted.get(name))} here" for name in other[:3]]
        raise RunError(f"{what} ({', '.join(changes)}); {remedy}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def content_fingerprint(*arrays: Tensor | NDArray[Any]) -> str:
    """Return a fingerprint of the shapes, types and bytes of tensors or arrays, in their order.

    A tensor and an array of the same numbers have the same fingerprint on every device. Everything else is a TypeError.
    """
    total = hashlib.sha256(f"content {FORMAT}\n".encode())
    for array in arrays:
        if not _is_numeric(array):
            kind = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
            raise TypeError(f"only tensors and arrays of numbers have a content fingerprint, not {kind}")
        total.update(f"{tuple(array.shape)} {str(array.dtype).removeprefix('torch.')}\n".encode())
        if isinstance(array, Tensor):
            array = array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:_DIGITS]


def weights_fingerprint(model: nn.Module) -> str:
    """Return a fingerprint of the names, classes, weights and buffers of a model's modules.

    Precision counts. The device and other settings of modules (a stride, a flag) don't.
    """
    classes = {name: type(module).__qualname__ for name, module in model.named_modules()}
    state = {name: _state(value) for name, value in model.state_dict().items()}
    return fingerprint(classes=classes, state=state)


def dataset_fingerprint(images: Any, key: str | None = None) -> str:
    """Return a fingerprint of a dataset or of a code function.

    One that has a ``fingerprint`` (a string, or a method that returns one) declares it; `ImageFolder` and `TopImages`
    do. Tensors, arrays, lists and tuples of them, `torch.utils.data.TensorDataset` and a `torch.utils.data.Subset` of
    any of these are hashed by content.

    Args:
        images: the dataset or the function.
        key: a name for it and its version. Needed for other datasets and functions; counts for all.

    Raises:
        RunError: if there is neither a fingerprint nor a key.
        TypeError: if the key or the declared fingerprint is not a string.
    """
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key must be a string, not {type(key).__name__}")
    try:
        own = _dataset(images)
    except RunError:  # of a dataset inside this one
        if not key:
            raise
        own = None
    if own is None and not key:
        kind = getattr(images, "__name__", type(images).__name__)
        raise RunError(
            f"{'the code function' if callable(images) else 'a dataset of type'} {kind} has no fingerprint, so results "
            f"that depend on it can't be stored; give key=, a string to be changed whenever the results change "
            f"(key='flowers, version 2'), or don't store them"
        )
    return own if own is not None and not key else fingerprint(own=own, key=key)


def _dataset(images: Any) -> str | None:
    """Return the fingerprint that a dataset declares, or that of the tensors in it; None for other datasets."""
    if (declared := _declared(images)) is not None:
        return declared
    if _is_numeric(images):
        return content_fingerprint(images)
    if type(images) is TensorDataset:
        return content_fingerprint(images.tensors[0])
    if type(images) is Subset:
        inner, indices = _dataset(images.dataset), content_fingerprint(np.asarray(images.indices))
        return None if inner is None else fingerprint(dataset=inner, indices=indices)
    if isinstance(images, (list, tuple)):
        items = [item[0] if isinstance(item, (list, tuple)) and item else item for item in images]
        if all(map(_is_numeric, items)):
            return content_fingerprint(*items)
    return None


def _declared(thing: Any) -> str | None:
    """Return the ``fingerprint`` of an object, an attribute or a method, or None."""
    declared = getattr(thing, "fingerprint", None)
    declared = declared() if callable(declared) else declared
    if declared is not None and not isinstance(declared, str):
        owner, kind = type(thing).__name__, type(declared).__name__
        raise TypeError(f"the fingerprint of {owner} must be a string, not of type {kind}")
    return declared


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _state(value: Any) -> Any:
    """Return a canonical value for one of a state dict; quantized modules hold more than tensors."""
    if isinstance(value, Tensor):
        return content_fingerprint(value.dequantize() if value.is_quantized else value)
    if isinstance(value, (list, tuple)):
        return [_state(part) for part in value]
    return str(value) if isinstance(value, torch.dtype) else value
