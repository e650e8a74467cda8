"""Folders of atlases that anyone may have written: a RunError or a UnitError, and no file outside is opened."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import posix
from safetensors.numpy import load_file
from small_atlas import content, settings, write_inputs

from captum_mfv import AtlasFolder, FacetSet
from captum_mfv.errors import MFVError, RunError
from captum_mfv.jobs import atlas
from captum_mfv.storage.files import tensor_file

pytestmark = posix


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = write_inputs(tmp_path_factory.mktemp("hostile"), 4)
    atlas.run(settings(root, units="unit:0,2"), root / "out")
    return root


@pytest.fixture
def theirs(made, tmp_path):
    """Return a copy of the atlas to tamper with."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def use(path):
    """Read everything of an atlas."""
    folder = AtlasFolder.read(path)
    folder.progress()
    for row in folder.ranked():
        assert 0 <= row["p_adjusted"] <= 1
        one = folder.unit(row["unit"])
        assert len(one.images) == len(one.rows) == len(one.facets)
        for facet in one.rows:
            folder.nearest(row["unit"], facet["index"])
        folder.map(row["layer"])


def tamper(path, *keys, value):
    whole = part = json.loads(path.read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("manifest.json", ("format",), 2),
        ("manifest.json", ("kind",), "run"),
        ("manifest.json", ("n_units",), "2"),
        ("manifest.json", ("settings",), []),
        ("manifest.json", ("settings", "input_spec"), {"size": 10**9}),
        ("manifest.json", ("settings", "input_spec", "mean"), [0.5] * 4),
        ("units.json", (0, "unit"), 3),
        ("units.json", (0, "unit"), "unit:7"),
        ("units.json", (0, "unit"), "unit:../../../../etc/passwd"),
        ("units.json", (0, "status"), "finished"),
        ("units.json", (1, "status"), "done"),
        ("units.json", (0, "p_value"), 2),
        ("units.json", (0, "p_adjusted"), None),
        ("units.json", (0, "multifacetedness"), 10**200),
        ("facets.json", (0, "members"), [[]]),
        ("facets.json", (0, "index"), 1),
        ("facets.json", (1, "unit"), "unit:1"),
        ("facets.json", (0, "stability_interval"), [0]),
    ],
)
def test_false_values_are_a_run_error(theirs, name, keys, value):
    tamper(theirs / name, *keys, value=value)
    with pytest.raises(RunError):
        use(theirs)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', "[" * 100_000, '[{"unit": "a:1"}]'])
@pytest.mark.parametrize("name", ["manifest.json", "units.json", "facets.json"])
def test_other_json_is_a_run_error(theirs, name, text):
    (theirs / name).write_text(text)
    with pytest.raises(RunError, match=r"can't be read|holds no atlas|can't be used|has 0 of its facets|has no"):
        use(theirs)
        assert AtlasFolder.read(theirs).units == [], "a table without units is one"
        raise RunError("has no units")


@pytest.mark.parametrize("kind", ["link out", "pipe", "folder", "circle", "device", "missing"])
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "units.json",
        "facets.json",
        "codes.safetensors",
        "units/unit/0.safetensors",
        "images/unit/0_0.webp",
    ],
)
def test_links_pipes_and_folders_are_not_read_as_files(theirs, made, name, kind):
    path = theirs / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.symlink_to({"link out": made / "out" / name, "circle": path, "device": "/dev/zero"}[kind])
    with pytest.raises(RunError):
        use(theirs)


@pytest.mark.parametrize(
    "change",
    [
        lambda centers: centers[:-1],
        lambda centers: centers * np.nan,
        lambda centers: centers[None],
        lambda centers: centers.astype(np.int64),
        lambda centers: centers[:, 0],
    ],
    ids=["fewer", "NaN", "three axes", "integers", "one axis"],
)
def test_false_centers_are_a_run_error(theirs, change):
    path = theirs / "codes.safetensors"
    arrays = load_file(path)
    path.write_bytes(tensor_file({**arrays, "unit/centers": change(arrays["unit/centers"])}, {}))
    with pytest.raises(RunError, match=r"codes\.safetensors"):
        use(theirs)


def test_unknown_keys_of_a_newer_version_are_ignored(theirs):
    tamper(theirs / "manifest.json", "settings", "input_spec", "gamma", value=2)
    tamper(theirs / "units.json", 0, "color", value="red")
    tamper(theirs / "facets.json", 0, "members", 0, "weight", value=1)
    use(theirs)


@pytest.mark.parametrize("name", ["units", "images", "units/unit", "images/unit", ".shards"])
def test_nothing_is_written_or_removed_through_a_link(theirs, made, tmp_path, name):
    victim = tmp_path / "victim"
    victim.mkdir()
    (theirs / "units/unit/0.json").unlink()  # so that a unit is stored
    for kept in ("9.json", "9_0.webp", ".9.json.0123abcd.part"):
        (victim / kept).write_text("mine")
        (victim / "unit").mkdir(exist_ok=True)
        (victim / "unit" / kept).write_text("mine")
    if (theirs / name).exists():
        shutil.rmtree(theirs / name)
    (theirs / name).symlink_to(victim)
    before = {path: path.read_text() for path in victim.rglob("*") if path.is_file()}
    options = {"shard": "0/2"} if name == ".shards" else {}
    with pytest.raises(MFVError, match="out of the folder"):
        atlas.run(settings(made, units="unit:0,2"), theirs, **options)
    assert {path: path.read_text() for path in victim.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("value", [{}, [], {"key": 1, "row": {}, "facets": []}, {"key": 1, "row": [], "facets": 3}])
def test_a_false_record_is_named(theirs, made, value):
    (theirs / "units/unit/0.json").write_text(json.dumps(value))
    with pytest.raises(RunError, match=r"0\.json can't be read.*remove it to redo the unit"):
        atlas.run(settings(made, units="unit:0,2"), theirs)


def test_codes_of_another_length_are_an_error_and_redone_once_removed(made, tmp_path):
    job, out = settings(made, units="unit:0-1", batch=1), tmp_path / "out"
    atlas.run(job, out)
    before, path = content(out), out / "units/unit/0.safetensors"
    facets = FacetSet.load(path)
    replace(facets, codes=np.pad(facets.codes, ((0, 0), (0, 1)))).save(path)
    with pytest.raises(RunError, match=r"codes of unit differ in length; remove .*/units to redo all"):
        atlas.run(job, out)
    shutil.rmtree(out / "units")
    atlas.run(job, out)
    assert content(out) == before
