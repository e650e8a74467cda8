"""Hypothesis strategies that mutate files of each kind."""

import io
import json
from copy import deepcopy
from typing import Any

import numpy as np
from hypothesis import strategies as st


def mutated_bytes(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """Return one of the files with bytes changed, inserted, deleted or cut off."""
    place = st.floats(0, 1, exclude_max=True)
    change = st.tuples(st.sampled_from(["set", "insert", "delete", "cut", "repeat"]), place, st.binary(max_size=8))
    return st.builds(_with_changes, st.sampled_from(originals), st.lists(change, max_size=6))


def _with_changes(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for how, place, more in changes:
        at = int(place * len(content))
        before, after = content[:at], content[at:]
        content = {
            "set": before + more + after[len(more) :],
            "insert": before + more + after,
            "delete": before + after[len(more) :],
            "cut": before,
            "repeat": before + before[-8:] * (len(more) + 1) + after,
        }[how]
    return content


def hostile_values(texts: list[str]) -> st.SearchStrategy[Any]:
    """Return unexpected values that JSON can represent."""
    numbers = [-1, 0, 1, 2, 9_001, 2**31, 2**40, 2**63, 10**30, -0.0, 1e-320, 1e15, 1e99, 1e308]
    words = ["", "x", "0", "nan", "\x1b[31m\x07", "\ud800", "\udcff", "a\0b", "<script>", "y" * 3000, "..", *texts]
    odd = [None, True, False, float("nan"), float("inf"), [], {}, [[]], [{}], {"": 0}, [0] * 100, *numbers, *words]
    apart = st.sampled_from(odd).map(deepcopy)  # a mutation must not change the next input
    return st.one_of(apart, st.integers(1, 3000).map(_nested), st.floats(), st.text(max_size=4))


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def mutated_json(original: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a JSON value with some parts replaced, deleted, duplicated or moved."""
    change = st.tuples(
        st.sampled_from(["replace", "replace", "replace", "delete", "double", "move"]),
        st.integers(0, 2**20),
        st.integers(0, 2**20),
        values,
    )
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _with_parts(original, changes))


def _with_parts(original: Any, changes: list[tuple[str, int, int, Any]]) -> Any:
    value = {"": json.loads(json.dumps(original))}
    for how, at, other, new in changes:
        slots = _slots(value)
        holder, key = slots[at % len(slots)]
        if how == "replace":
            holder[key] = new
        elif how == "move":
            source, name = slots[other % len(slots)]
            holder[key] = json.loads(_dumped(source[name]))
        elif isinstance(holder, list):
            holder[key : key + 1] = [] if how == "delete" else [holder[key]] * 2
        elif key:
            part = holder.pop(key)
            if how == "double":
                holder[f"{key}x"] = part
    return value[""]


def _slots(value: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])
    return found


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "0"


def deep_dumped(value: Any) -> bytes:
    """Return the JSON of values nested deeper than `json` supports."""
    if isinstance(value, list) and len(value) == 1:
        depth = 0
        while isinstance(value, list) and len(value) == 1:
            value, depth = value[0], depth + 1
        return b"[" * depth + deep_dumped(value) + b"]" * depth
    if isinstance(value, list):
        return b"[" + b",".join(map(deep_dumped, value)) + b"]"
    if isinstance(value, dict):
        return b"{" + b",".join(json.dumps(k).encode() + b":" + deep_dumped(v) for k, v in value.items()) + b"}"
    return json.dumps(value).encode()


def mutated_safetensors(content: bytes, values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Return a safetensors file with a false header, header length or content."""
    end = 8 + int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:end]), content[end:]
    kinds = st.sampled_from(["F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "C64", "F8_E4M3", "F4", "F32"])
    lying = st.builds(
        lambda text, length, body: (len(text) if length is None else length).to_bytes(8, "little") + text + body,
        mutated_json(header, st.one_of(values, kinds)).map(deep_dumped),
        st.sampled_from([None, None, None, None, None, 0, 7, 2**40, 2**64 - 1]),
        st.one_of(st.just(body), mutated_bytes([body])),
    )
    odd_numbers = st.tuples(st.sampled_from([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f"]), st.integers(0))
    odd = odd_numbers.map(
        lambda pair: content[: (at := end + pair[1] % len(body) // 4 * 4)] + pair[0] + content[at + 4 :]
    )
    return st.one_of(lying, lying, mutated_bytes([content]), odd)


def mutated_rows(content: bytes) -> st.SearchStrategy[bytes]:
    """Return an npy file with a false header or unusual numbers."""
    array = np.load(io.BytesIO(content))
    shapes = [(2**40, *array.shape[1:]), (*array.shape, 2**20), array.shape[:1], (), (0,), (len(array), 3), (-1, 2)]
    types = ["<f8", "<i2", "|b1", "<c8", "|O", "<U4", "|V4", ">f4", "x" * 99]
    odd = st.sampled_from([np.nan, np.inf, 1e16, 3e38, -1, 100, 0])

    def lie(shape: tuple[int, ...], kind: str, fortran: bool) -> bytes:
        header = f"{{'descr': {kind!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
        return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + array.tobytes()

    def numbers(at: int, value: float) -> bytes:
        other = array.copy()
        with np.errstate(all="ignore"):
            other.flat[at % other.size] = np.float64(value).astype(other.dtype)
        np.save(file := io.BytesIO(), other)
        return file.getvalue()

    lying = st.builds(
        lie, st.sampled_from([array.shape, *shapes]), st.sampled_from([array.dtype.str, *types]), st.booleans()
    )
    return st.one_of(lying, st.builds(numbers, st.integers(0, 2**20), odd))


def mutated_toml(original: bytes, values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Return a config with other values."""
    names = [line.split(b" = ")[0] for line in original.splitlines() if b" = " in line]
    line = st.builds(
        lambda name, value: name + b" = " + deep_dumped(value), st.sampled_from([*names, b"x", b""]), values
    )
    return st.lists(line, max_size=5).map(b"\n".join)
