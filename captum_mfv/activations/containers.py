"""The tensors in a layer's output, which may be a tensor, a tuple, a list, a mapping or a dataclass."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from captum_mfv.errors import UnitError

__all__ = ["find_tensor", "named_tensors", "split_name", "with_tensor"]


def split_name(name: str) -> tuple[str, str | None]:
    """Return the dotted name of a layer, and the name or index of one of its outputs, None for the first tensor.

    >>> split_name("encoder.attention[1]")
    ('encoder.attention', '1')
    """
    layer, bracket, output = name.partition("[")
    return (layer, output[:-1]) if bracket and output.endswith("]") else (name, None)


def named_tensors(layer: str, output: object) -> dict[str, Tensor]:
    """Return the tensors in a layer's output: the first by the layer's name, the others by ``layer[key]``."""
    if isinstance(output, Tensor):
        return {layer: output}
    found = [(key, value) for key, value in _items(output) if isinstance(value, Tensor)]
    return {layer if place == 0 else f"{layer}[{key}]": value for place, (key, value) in enumerate(found)}


def find_tensor(name: str, output: object) -> tuple[Any, Tensor]:
    """Return the key, None for an output that is a tensor, and the tensor that ``layer`` or ``layer[key]`` names.

    Raises:
        UnitError: if the output holds no tensor, or none of that key.
    """
    layer, wanted = split_name(name)
    if isinstance(output, Tensor) and wanted is None:
        return None, output
    tensors = [(key, value) for key, value in _items(output) if isinstance(value, Tensor)]
    for key, value in tensors:
        if wanted in (None, str(key)):
            return key, value
    kind, keys = type(output).__name__, ", ".join(str(key) for key, _ in tensors)
    if wanted is None:
        raise UnitError(f"layer {layer} returns a {kind} without a tensor; name a layer that returns a tensor")
    raise UnitError(f"layer {layer} returns a {kind}{f' of the tensors {keys}' if keys else ''}, not {wanted!r}")


def with_tensor(output: Any, key: Any, tensor: Tensor) -> Any:
    """Return a copy of a container with the tensor of a key replaced; of a tensor, return the new one."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, (tuple, list)):
        values = [tensor if name == key else value for name, value in _items(output)]
        return output._make(values) if hasattr(output, "_make") else type(output)(values)
    replaced = copy.copy(output)
    if isinstance(replaced, MutableMapping):
        replaced[key] = tensor
    else:
        object.__setattr__(replaced, key, tensor)  # also of a frozen dataclass
    return replaced


def _items(output: object) -> list[tuple[Any, object]]:
    """Return keys and values of a container, in order: indices, field names or keys; nothing for other objects."""
    if isinstance(output, MutableMapping):  # also transformers' ModelOutput, which is a dataclass too
        return list(output.items())
    if isinstance(output, (tuple, list)):
        return list(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    if is_dataclass(output):
        return [(item.name, getattr(output, item.name, None)) for item in fields(output)]
    return []
