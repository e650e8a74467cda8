"""What is fuzzed, by the tests for seconds and by ``benchmarks/fuzz.py`` for as long as one likes."""

import io
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from safetensors.torch import save
from torch import nn

import captum_mfv as mfv
from captum_mfv import cli, config, models, report
from captum_mfv.errors import MFVError
from captum_mfv.evaluate import evaluate
from captum_mfv.images import to_pil
from captum_mfv.metrics import Judge
from captum_mfv.optvis import checkpoint
from captum_mfv.optvis.recipes import RECIPES, read_recipe
from captum_mfv.pipeline import Job, run
from captum_mfv.store import Store

SPEC = mfv.InputSpec(16)


# What is opened


class Watch:
    """Notes what is opened, listed or started outside of some folders; an audit hook can't be taken away again."""

    LIBRARIES = tuple(
        os.path.realpath(path) for path in {sys.prefix, sys.base_prefix, *filter(None, sys.path), mfv.__path__[0]}
    )

    def __init__(self) -> None:
        self.folders: tuple[str, ...] = ()
        self.listed: tuple[str, ...] = ()
        self.outside: list[str] = []
        self.thread: int | None = None
        sys.addaudithook(self._note)

    @contextmanager
    def over(self, *folders: Path, listed: tuple[Path, ...] = ()):
        """Inside, whatever lies in none of the folders is noted; ``listed`` may be listed, no more."""
        self.folders, self.listed = tuple(map(os.path.realpath, folders)), tuple(map(os.path.realpath, listed))
        self.outside.clear()
        self.thread = threading.get_ident()
        try:
            yield self
        finally:
            self.thread = None

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.thread is None or event not in self._EVENTS:
            return
        thread, self.thread = self.thread, None  # what is done here isn't looked at
        try:
            self._EVENTS[event](self, event, *arguments)
        finally:
            self.thread = thread

    def _path(self, event: str, path: Any = None, *_: Any) -> None:
        if isinstance(path, int):
            return
        found = os.path.realpath(os.fsdecode("." if path is None else path))
        allowed = self.folders + self.LIBRARIES + ((*self.listed,) if event in ("os.listdir", "os.scandir") else ())
        allowed += ("/dev/null", f"/proc/{os.getpid()}/maps")  # the latter of threadpoolctl
        if not any(found == folder or found.startswith(f"{folder}/") for folder in allowed):
            self.outside.append(f"{event} {found!r}")

    def _code(self, event: str, code: Any) -> None:
        name = getattr(code, "co_filename", "<")
        if not name.startswith(("<", *self.LIBRARIES)):
            self.outside.append(f"{event} {name!r}")

    def _never(self, event: str, *what: Any) -> None:
        self.outside.append(f"{event} {what[:1]}")

    _EVENTS: ClassVar = {
        **dict.fromkeys(("open", "os.listdir", "os.scandir"), _path),
        "exec": _code,
        **dict.fromkeys(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"), _never),
    }


WATCH = Watch()


# How inputs are mutated


def mutated_bytes(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of some files with bytes changed, put in, left out, or cut off."""
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
    """Values that JSON can hold and nobody expects."""
    numbers = [-1, 0, 1, 2, 9_001, 2**31, 2**40, 2**63, 10**30, -0.0, 1e-320, 1e15, 1e99, 1e308]
    words = ["", "x", "0", "nan", "\x1b[31m\x07", "\ud800", "\udcff", "a\0b", "<script>", "y" * 3000, "..", *texts]
    odd = [None, True, False, float("nan"), float("inf"), [], {}, [[]], [{}], {"": 0}, [0] * 100, *numbers, *words]
    apart = st.sampled_from(odd).map(deepcopy)  # mutations of one input must not reach the next
    return st.one_of(apart, st.integers(1, 3000).map(_nested), st.floats(), st.text(max_size=4))


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def mutated_json(original: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A JSON value with some of its parts replaced, left out, doubled or moved."""
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


def _deep_dumped(value: Any) -> bytes:
    """JSON of values that are nested deeper than `json` goes."""
    if isinstance(value, list) and len(value) == 1:
        depth = 0
        while isinstance(value, list) and len(value) == 1:
            value, depth = value[0], depth + 1
        return b"[" * depth + _deep_dumped(value) + b"]" * depth
    if isinstance(value, list):
        return b"[" + b",".join(map(_deep_dumped, value)) + b"]"
    if isinstance(value, dict):
        return b"{" + b",".join(json.dumps(k).encode() + b":" + _deep_dumped(v) for k, v in value.items()) + b"}"
    return json.dumps(value).encode()


def mutated_safetensors(content: bytes, values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """A safetensors file whose header, header's length or bytes lie."""
    end = 8 + int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:end]), content[end:]
    kinds = st.sampled_from(["F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "C64", "F8_E4M3", "F4", "F32"])
    lying = st.builds(
        lambda text, length, body: (len(text) if length is None else length).to_bytes(8, "little") + text + body,
        mutated_json(header, st.one_of(values, kinds)).map(_deep_dumped),
        st.sampled_from([None, None, None, None, None, 0, 7, 2**40, 2**64 - 1]),
        st.one_of(st.just(body), mutated_bytes([body])),
    )
    odd_numbers = st.tuples(st.sampled_from([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f"]), st.integers(0))
    odd = odd_numbers.map(
        lambda pair: content[: (at := end + pair[1] % len(body) // 4 * 4)] + pair[0] + content[at + 4 :]
    )
    return st.one_of(lying, lying, mutated_bytes([content]), odd)


def mutated_rows(content: bytes) -> st.SearchStrategy[bytes]:
    """An npy file whose header lies, or whose numbers are odd ones."""
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


# The targets


@dataclass(frozen=True)
class Target:
    """What is fuzzed: inputs, and what is done with one; `MFVError` is an answer, any other error a bug.

    Args:
        name: what it is called.
        inputs: the strategy.
        use: what is done with an input.
        folders: where files may be opened.
        listed: folders that may be listed, and no more.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    use: Callable[[Any], object]
    folders: tuple[Path, ...]
    listed: tuple[Path, ...] = ()

    def accepts(self, value: Any) -> bool:
        """Whether an input is used; False: it is refused by name.

        Raises:
            AssertionError: if anything outside the folders was opened.
            Exception: whatever else comes: a bug.
        """
        with WATCH.over(*self.folders, listed=self.listed):
            try:
                self.use(value)
                accepted = True
            except MFVError as error:
                assert str(error)
                accepted = False
        if WATCH.outside:
            raise ReadOutside(", ".join(WATCH.outside))
        return accepted


class ReadOutside(AssertionError):
    """Something outside the folders was opened, listed or run."""


def network() -> tuple[nn.Module, mfv.InputSpec]:
    """A small network, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(6, 3)), SPEC


def pictures() -> list[bytes]:
    """Small images in every format, mode and compression that is read."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 9, 4), np.uint8)
    rgba = Image.fromarray(pixels)
    rgb = rgba.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgba, "PNG", {}),
        (rgb.quantize(16), "PNG", {"transparency": 0}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (rgb.convert("1"), "PNG", {}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {"progressive": True}),
        (rgb.quantize(8), "GIF", {"save_all": True, "append_images": [rgb.quantize(4)]}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "BMP", {}),
        (rgb, "PPM", {}),
        *((rgb, "TIFF", {"compression": how}) for how in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        (Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF", {}),
    ]
    found = []
    for image, kind, options in saved:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def targets(folder: Path) -> list[Target]:
    """All targets, their files in an empty folder."""
    TiffImagePlugin.WRITE_LIBTIFF = False
    here, secret = folder / "here", folder / "secret"
    here.mkdir()
    made = _tiny_run(folder, secret)
    values = hostile_values(
        [str(secret), "../secret/0.png", str(secret / "0.png"), f"{secret}/evil.py:make", "/", "/etc"]
    )
    tensors = (made / "tensors.safetensors").read_bytes()
    state = network()[0].state_dict()
    pickled = io.BytesIO()
    torch.save(state, pickled)
    recipes = st.sampled_from(list(RECIPES.values())).flatmap(
        lambda recipe: mutated_json(json.loads(recipe.to_json()), values)
    )
    texts = [path.read_bytes() for path in (made / "run.toml",)]

    def write(name: str, content: bytes) -> Path:
        (here / name).write_bytes(content)
        return here / name

    def image(content: bytes) -> None:
        (only := folder / "one").mkdir(exist_ok=True)
        (only / "a.img").write_bytes(content)
        item = mfv.ImageFolder(only, SPEC)[0]
        assert item.shape == (3, 16, 16)
        assert item.min() >= 0
        assert item.max() <= 1

    def weights(name: str) -> Callable[[bytes], None]:
        def use(content: bytes) -> None:
            model, _ = models.load("fuzz_targets:network", write(name, content))
            assert all(parameter.isfinite().all() for parameter in model.parameters())

        return use

    def facet_set(content: bytes) -> None:
        facets = mfv.FacetSet.load(write("facets.safetensors", content))
        assert torch.isfinite(facets.head().weight).all()
        assert sum(map(len, facets)) <= len(facets.labels)
        assert facets.key and facets._repr_html_()
        mfv.attr.FacetModel(_WithLayers(facets), facets)

    def recipe(value: Any) -> None:
        again = read_recipe(write("recipe.json", _deep_dumped(value)))
        assert again.with_steps(50).n_steps == 50
        assert read_recipe(write("recipe.json", again.to_json().encode())) == again

    options = dict(map(cli._kinds, cli.app.commands["run"].params))

    def toml(content: bytes) -> None:
        config.dumps(config.read(write("a.toml", content), options), here)

    return [
        Target("images", mutated_bytes(pictures()), image, (folder / "one",)),
        Target("weights: safetensors", mutated_safetensors(save(state), values), weights("w.safetensors"), (here,)),
        Target("weights: pickles", mutated_bytes([pickled.getvalue()]), weights("w.pt"), (here, _temporary())),
        Target("facet sets", mutated_safetensors(tensors, values), facet_set, (here,)),
        Target("recipes", recipes, recipe, (here,)),
        Target("configs", st.one_of(mutated_bytes(texts), _toml(texts[0], values)), toml, (here,)),
        *_runs(folder, made, secret, values),
        _gone_on(folder, secret, values),
    ]


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / "torch"


class _WithLayers(nn.Module):
    """A model that has the layers that a facet set names, if they can be names."""

    def __init__(self, facets: mfv.FacetSet) -> None:
        super().__init__()
        for name in (facets.code.layer, facets.unit.layer_name):
            if name and "." not in name and not hasattr(self, name):
                self.add_module(name, nn.Identity())


def _toml(original: bytes, values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """A config whose values are others."""
    names = [line.split(b" = ")[0] for line in original.splitlines() if b" = " in line]
    line = st.builds(
        lambda name, value: name + b" = " + _deep_dumped(value), st.sampled_from([*names, b"x", b""]), values
    )
    return st.lists(line, max_size=5).map(b"\n".join)


def _tiny_run(folder: Path, secret: Path) -> Path:
    """A finished run of a few small images, and beside it a folder whose files have the images' names."""
    images = folder / "images"
    images.mkdir()
    secret.mkdir()
    (secret / "evil.py").write_text("def make():\n    raise SystemExit('a file that a manifest names was run')\n")
    generator = torch.Generator().manual_seed(0)
    for i in range(8):
        to_pil(torch.rand(3, 16, 16, generator=generator) * (i % 2 + 1) / 2).save(images / f"{i}.png")
        to_pil(torch.rand(3, 20, 20, generator=generator)).save(secret / f"{i}.png")
    path: Path = run(_job(images), folder / "run").path
    _judge(path, images)
    return path


def _job(images: Path) -> Job:
    return Job("fuzz_targets:network", "5:1", str(images), facets=2, steps=3)


def _stopped(folder: Path, where: type, method: str, calls: int) -> Path:
    """A run that was stopped in a method's call, once it had done what it does."""
    path, plain, left = folder / f"stopped in {method}", getattr(where, method), calls

    def stopping(*args: Any) -> None:
        nonlocal left
        left -= 1
        plain(*args)
        if not left:
            raise KeyboardInterrupt

    with patch.object(where, method, stopping), patch.object(checkpoint, "_SECONDS", 0), suppress(KeyboardInterrupt):
        run(_job(folder / "images"), path)
    return path


def _judge(path: Path, held_out: Path) -> None:
    """Evaluate a run, with a control and images held out."""
    model, _ = network()
    evaluate(
        mfv.RunFolder.read(path),
        Judge(model, mfv.Unit("5", 1), mfv.Code("2"), SPEC),
        judge_name="itself",
        controls=["shuffled clusters"],
        held_out=mfv.ImageFolder(held_out, SPEC),
        model=model,
    )


def _runs(folder: Path, made: Path, secret: Path, values: st.SearchStrategy[Any]) -> list[Target]:
    """Run folders with another file in the place of one of theirs: read, and evaluated."""
    copy, other = folder / "copy", mfv.RunFolder.read(made)
    names = ("manifest.json", "facets.json", "metrics.json")
    pieces = [(name, mutated_json(json.loads((made / name).read_text()), values).map(_deep_dumped)) for name in names]
    pieces += [(name, mutated_bytes([(made / name).read_bytes()])) for name in names]
    pieces += [("tensors.safetensors", mutated_safetensors((made / "tensors.safetensors").read_bytes(), values))]
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    kinds: Any = st.sampled_from(
        ["missing", "folder", "pipe", "circle", secret / "0.png", Path("/dev/zero"), Path("/etc")]
    )
    whole = [(name, mutated_bytes([(made / name).read_bytes()])) for name in files if name.endswith(".png")]
    inputs = st.one_of(
        *(st.tuples(st.just(name), content) for name, content in pieces),
        st.tuples(st.sampled_from(files), kinds),
        st.one_of(*(st.tuples(st.just(name), content) for name, content in whole)),
    )
    _copy(made, copy)

    @contextmanager
    def changed(name: str, kind: Any) -> Iterator[None]:
        _put(copy / name, kind)
        try:
            yield
        finally:
            _put(copy / name, (made / name).read_bytes())

    def read(pair: tuple[str, Any]) -> None:
        with changed(*pair):
            found = mfv.RunFolder.read(copy)
            report.build(found)
            report.compare([other, found], copy / "compare.html")
            facets = found.read_facets()
            found.read_renderings(facets)
            members = found.member_images()
            if members.refused is None:
                assert members[0].shape[0] == 3

    def evaluated(pair: tuple[str, Any]) -> None:
        try:
            with changed(*pair):
                _judge(copy, folder / "images")
        finally:
            _copy(made, copy)

    folders = made, copy, folder / "images"
    return [
        Target("run folders", inputs, read, folders, listed=(secret,)),
        Target("run folders: evaluate", inputs, evaluated, folders, listed=(secret,)),
    ]


def _gone_on(folder: Path, secret: Path, values: st.SearchStrategy[Any]) -> Target:
    """Folders of runs that were stopped, with another file in the place of one of theirs, gone on with."""
    collected = _stopped(folder, Store, "finish", 1)
    drawn = _stopped(folder, checkpoint.Checkpoint, "save", 2)
    copies, numbers, strategies = folder / "gone on", count(), []
    for made in (collected, drawn):
        for path in filter(Path.is_file, sorted(made.rglob("*"))):
            content, name = path.read_bytes(), str(path.relative_to(made))
            kinds = [st.sampled_from(["missing", "folder", "circle", secret / "0.png", Path("/dev/zero")])]
            if path.suffix == ".json":
                kinds.append(mutated_json(json.loads(content), values).map(_deep_dumped))
            elif path.suffix == ".safetensors":
                kinds.append(mutated_safetensors(content, values))
            elif path.suffix == ".npy":
                kinds.append(mutated_rows(content))
            kinds.append(mutated_bytes([content]))
            strategies.append(st.tuples(st.just(made), st.just(name), st.one_of(kinds)))

    def use(what: tuple[Path, str, Any]) -> None:
        made, name, kind = what
        one, before = copies / str(next(numbers)), Path.cwd()
        shutil.copytree(made, one)
        _put(one / name, kind)
        os.chdir(one)  # folders are removed by names alone, relative to one that is held open
        try:
            assert run(_job(folder / "images"), one).finished
        finally:
            os.chdir(before)

    return Target("run folders: go on", st.one_of(strategies), use, (copies, folder / "images", collected, drawn))


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def _put(path: Path, kind: Any) -> None:
    """Put bytes, a link or something that is no file in a file's place."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    if isinstance(kind, bytes):
        path.write_bytes(kind)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(path)
    elif kind != "missing":
        path.symlink_to(kind)
