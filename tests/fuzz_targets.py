"""Fuzz targets of the tests and of ``benchmarks/fuzz.py``, which runs for any length of time."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tifffile
import torch
from fuzz_mutations import (
    deep_dumped,
    hostile_values,
    mutated_bytes,
    mutated_json,
    mutated_rows,
    mutated_safetensors,
    mutated_toml,
)
from fuzz_watch import Target
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from safetensors.torch import save
from torch import nn

import captum_mfv as mfv
from captum_mfv import models, report
from captum_mfv.activations.codes import Store
from captum_mfv.images import read_image, to_pil
from captum_mfv.jobs import RunSettings, atlas, label, run
from captum_mfv.jobs.evaluation import evaluate
from captum_mfv.labels import AppearanceNamer
from captum_mfv.metrics import Judge
from captum_mfv.optvis.recipes import RECIPES, read_recipe
from captum_mfv.runs.atlas_writer import AtlasWriter
from captum_mfv.runs.settings import RUN
from captum_mfv.storage.files import Checkpoint

SPEC = mfv.InputSpec(16)
BANDS = mfv.InputSpec(16, (0.5,) * 5, (0.5,) * 5, value_range=(0, 999))


def network() -> tuple[nn.Module, mfv.InputSpec]:
    """Return a small network with fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(6, 3)), SPEC


def pictures() -> list[bytes]:
    """Return small images in every supported format, mode and compression."""
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


def bands() -> list[tuple[str, bytes]]:
    """Return small images of five channels with the suffixes of their files."""
    values = np.random.default_rng(0).integers(0, 999, (5, 9, 12), np.uint16)
    found = []
    for array in (values, values.astype(np.float32) / 999, np.asfortranarray(values)):
        np.save(buffer := io.BytesIO(), array)
        found.append((".npy", buffer.getvalue()))
    how: list[dict[str, Any]] = [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}, {"bigtiff": True}]
    for options in how:
        tifffile.imwrite(buffer := io.BytesIO(), values, photometric="minisblack", **options)
        found.append((".tif", buffer.getvalue()))
    return found


def targets(folder: Path) -> list[Target]:
    """Return all targets; their files are written to an empty folder."""
    TiffImagePlugin.WRITE_LIBTIFF = False
    secret = folder / "secret"
    made = _tiny_run(folder, secret)
    values = hostile_values(
        [str(secret), "../secret/0.png", str(secret / "0.png"), f"{secret}/evil.py:make", "/", "/etc"]
    )
    return [
        *_files(folder / "here", made, values),
        *_runs(folder, made, secret, values),
        _resumed(folder, secret, values),
        *_atlases(folder, secret, values),
    ]


def _files(here: Path, made: Path, values: st.SearchStrategy[Any]) -> list[Target]:
    """Return the targets that read one file."""
    use = _Use(here)
    tensors, text = (made / "tensors.safetensors").read_bytes(), (made / "run.toml").read_bytes()
    state = network()[0].state_dict()
    torch.save(state, pickled := io.BytesIO())
    recipes = st.sampled_from(list(RECIPES.values())).flatmap(
        lambda recipe: mutated_json(json.loads(recipe.to_json()), values)
    )
    configs = st.one_of(mutated_bytes([text]), mutated_toml(text, values))
    torchs = Path(tempfile.gettempdir()) / "torch"
    return [
        Target("images", mutated_bytes(pictures()), use.image, (here,)),
        *(
            Target(f"images: {suffix}", mutated_bytes([one for its, one in bands() if its == suffix]), reader, (here,))
            for suffix, reader in ((".npy", use.array), (".tif", use.tiff))
        ),
        Target("weights: safetensors", mutated_safetensors(save(state), values), use.safetensors, (here,)),
        Target("weights: pickles", mutated_bytes([pickled.getvalue()]), use.pickle, (here, torchs)),
        Target("facet sets", mutated_safetensors(tensors, values), use.facet_set, (here,)),
        Target("recipes", recipes, use.recipe, (here,)),
        Target("configs", configs, use.config, (here,)),
    ]


class _Use:
    """Uses of a file, as a user would make them."""

    def __init__(self, here: Path) -> None:
        self.here = here
        for name in ("images", "bands"):
            (here / name).mkdir(parents=True)

    def image(self, content: bytes) -> None:
        item = mfv.ImageFolder(self._written("images/a.img", content).parent, SPEC)[0]
        assert item.shape == (3, 16, 16)
        assert item.min() >= 0
        assert item.max() <= 1

    def array(self, content: bytes) -> None:
        self._bands("bands/a.npy", content)

    def tiff(self, content: bytes) -> None:
        self._bands("bands/a.tif", content)

    def _bands(self, name: str, content: bytes) -> None:
        item = read_image(self._written(name, content), BANDS)
        assert item.shape == (5, 16, 16)
        assert item.min() >= 0
        assert item.max() <= 1

    def safetensors(self, content: bytes) -> None:
        self._load("w.safetensors", content)

    def pickle(self, content: bytes) -> None:
        self._load("w.pt", content)

    def facet_set(self, content: bytes) -> None:
        facets = mfv.FacetSet.load(self._written("facets.safetensors", content))
        assert torch.isfinite(facets.head().linear.weight).all()
        assert sum(map(len, facets)) <= len(facets.labels)
        assert facets.fingerprint and facets._repr_html_()
        mfv.attr.FacetModel(_WithLayers(facets), facets)

    def recipe(self, value: Any) -> None:
        again = read_recipe(self._written("recipe.json", deep_dumped(value)))
        assert again.with_steps(50).n_steps == 50
        assert read_recipe(self._written("recipe.json", again.to_json().encode())) == again

    def config(self, content: bytes) -> None:
        RUN.to_toml(RUN.read_toml(self._written("a.toml", content)), self.here)

    def _load(self, name: str, content: bytes) -> None:
        model, _ = models.load("fuzz_targets:network", self._written(name, content))
        assert all(parameter.isfinite().all() for parameter in model.parameters())

    def _written(self, name: str, content: bytes) -> Path:
        (self.here / name).write_bytes(content)
        return self.here / name


class _WithLayers(nn.Module):
    """A model with the layers that a facet set names, if the names are valid."""

    def __init__(self, facets: mfv.FacetSet) -> None:
        super().__init__()
        for name in (facets.code.layer, facets.unit.layer_name):
            if name and "." not in name and not hasattr(self, name):
                self.add_module(name, nn.Identity())


def _tiny_run(folder: Path, secret: Path) -> Path:
    """Return a finished run on small images; next to it is a folder with the same file names."""
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
    label(mfv.RunFolder.read(path), AppearanceNamer(), namer_name="colors")
    return path


def _job(images: Path) -> RunSettings:
    return RunSettings("fuzz_targets:network", "5:1", str(images), facets=2, steps=3)


def _stopped(folder: Path, where: type, method: str, calls: int) -> Path:
    """Return a run that was interrupted after a number of calls of a method."""
    path, plain, left = folder / f"stopped in {method}", getattr(where, method), calls

    def stopping(*args: Any) -> None:
        nonlocal left
        left -= 1
        plain(*args)
        if not left:
            raise KeyboardInterrupt

    with (
        patch.object(where, method, stopping),
        patch.object(Checkpoint, "due", True),
        suppress(KeyboardInterrupt),
    ):
        run(_job(folder / "images"), path)
    return path


def _judge(path: Path, held_out: Path) -> None:
    """Evaluate a run with a control and held-out images."""
    model, _ = network()
    evaluate(
        mfv.RunFolder.read(path),
        Judge(model, mfv.Unit("5", 1), mfv.Code("2"), SPEC),
        judge_name="itself",
        controls=["shuffled clusters"],
        held_out=mfv.ImageFolder(held_out, SPEC),
        model=model,
    )


def _changes(made: Path, secret: Path, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    """Return a file's path in a run's folder, and the bytes, link or folder that replaces the file."""
    mutations = {
        ".json": lambda content: mutated_json(json.loads(content), values).map(deep_dumped),
        ".safetensors": lambda content: mutated_safetensors(content, values),
        ".npy": mutated_rows,
    }
    files = [path for path in sorted(made.rglob("*")) if path.is_file()]
    names = [str(path.relative_to(made)) for path in files]
    structured, plain = [], []
    for path, name in zip(files, names, strict=True):
        content = path.read_bytes()
        plain.append(st.tuples(st.just(name), mutated_bytes([content])))
        if path.suffix in mutations:
            structured.append(st.tuples(st.just(name), mutations[path.suffix](content)))
    odd = ["missing", "folder", "pipe", "circle", secret / "0.png", Path("/dev/zero"), Path("/etc")]
    return st.one_of(*structured, st.one_of(*plain), st.tuples(st.sampled_from(names), st.sampled_from(odd)))


def _runs(folder: Path, made: Path, secret: Path, values: st.SearchStrategy[Any]) -> list[Target]:
    """Return the targets that read or evaluate a run's folder with one file replaced."""
    copy, other, inputs = folder / "copy", mfv.RunFolder.read(made), _changes(made, secret, values)
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

    def labeled(pair: tuple[str, Any]) -> None:
        try:
            with changed(*pair):
                label(mfv.RunFolder.read(copy), AppearanceNamer(), namer_name="colors")
        finally:
            _copy(made, copy)

    folders = made, copy, folder / "images"
    return [
        Target("run folders", inputs, read, folders, listed=(secret,)),
        Target("run folders: evaluate", inputs, evaluated, folders, listed=(secret,)),
        Target("run folders: label", inputs, labeled, folders, listed=(secret,)),
    ]


def _resumed(folder: Path, secret: Path, values: st.SearchStrategy[Any]) -> Target:
    """Return the target that resumes an interrupted run with one file replaced."""
    stopped = _stopped(folder, Store, "finish", 1), _stopped(folder, Checkpoint, "save", 2)
    inputs = st.one_of(*(st.tuples(st.just(made), _changes(made, secret, values)) for made in stopped))
    copies, numbers = folder / "resumed", count()

    def use(what: tuple[Path, tuple[str, Any]]) -> None:
        made, (name, kind) = what
        one, before = copies / str(next(numbers)), Path.cwd()
        shutil.copytree(made, one)
        _put(one / name, kind)
        os.chdir(one)  # a relative path, as folders are removed relative to an open folder
        try:
            assert run(_job(folder / "images"), one).finished
        finally:
            os.chdir(before)

    return Target("run folders: resume", inputs, use, (copies, folder / "images", *stopped))


def _atlases(folder: Path, secret: Path, values: st.SearchStrategy[Any]) -> list[Target]:
    """Return the targets that read an atlas, or resume an interrupted one, with one file replaced."""
    job = atlas.AtlasSettings(
        "fuzz_targets:network", units="0:0-1", images=str(folder / "images"), top_k=4, facets=2, steps=2, batch=1
    )
    made, stopped = atlas.run(job, folder / "atlas").path, folder / "stopped atlas"
    label(mfv.AtlasFolder.read(made), AppearanceNamer(), namer_name="colors")
    with (
        patch.object(AtlasWriter, "finish", side_effect=KeyboardInterrupt),
        suppress(KeyboardInterrupt),
    ):
        atlas.run(job, stopped)
    (stopped / "units" / "0" / "1.json").unlink()
    copies, numbers = folder / "atlases", count()

    def replaced(source: Path, name: str, kind: Any) -> Path:
        one = copies / str(next(numbers))
        shutil.copytree(source, one)
        _put(one / name, kind)
        return one

    def read(pair: tuple[str, Any]) -> None:
        one = mfv.AtlasFolder.read(replaced(made, *pair))
        assert one.progress()
        assert len(one.to_pandas("units")) == len(one.units)
        one.to_pandas("labels")
        for row in one.ranked():
            unit = one.unit(row["unit"])
            assert unit.images[0].shape[0] == 3
            assert len(unit.facets) == len(unit.rows) == len(unit.images)
            one.nearest(row["unit"], 0)
            one.map(row["layer"])

    def resumed(pair: tuple[str, Any]) -> None:
        one, before = replaced(stopped, *pair), Path.cwd()
        os.chdir(one)  # a relative path, as folders are removed relative to an open folder
        try:
            assert atlas.run(job, one).finished
        finally:
            os.chdir(before)

    def labeled(pair: tuple[str, Any]) -> None:
        label(mfv.AtlasFolder.read(replaced(made, *pair)), AppearanceNamer(), namer_name="colors")

    folders = copies, folder / "images", made, stopped
    return [
        Target("atlas folders", _changes(made, secret, values), read, folders),
        Target("atlas folders: label", _changes(made, secret, values), labeled, folders, listed=(secret,)),
        Target("atlas folders: resume", _changes(stopped, secret, values), resumed, folders),
    ]


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def _put(path: Path, kind: Any) -> None:
    """Replace a file by bytes, a link, a pipe or a folder."""
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
