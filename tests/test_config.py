"""Settings of a run, declared once for Python, the command, TOML and JSON Schema."""

import json
import ntpath
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from captum_mfv.cli import app
from captum_mfv.errors import RunError
from captum_mfv.optvis.recipes import RECIPES
from captum_mfv.runs.settings import ATLAS, RUN, RunSettings

VALUES = {
    "numbers and names": {"top_k": 200, "facets": "auto", "unit": "fc:3", "model": "resnet50", "recipe": "facet"},
    "relative paths": {"images": "a/b", "weights": "../w.pt", "model": "lib/net.py:make", "recipe": "mine.json"},
    "absolute paths": {"images": "/a/b", "labels": "/c.json", "out": "/d"},
    "a module, which is no path": {"model": "package.module:make"},
    "a hub name": {"model": "hf:google/vit-base"},
    "awkward names": {"images": 'a "b"\\ \t\n\x7f é 🫑', "labels": os.fsdecode(b"\xff.json")},
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("folder", [".", "out/run", "/elsewhere"])
def test_settings_are_read_as_written(case, folder, tmp_path, monkeypatch):
    place = tmp_path / folder.strip("/")
    place.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    text = RUN.to_toml(VALUES[case], place)
    path = place / "run.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = RUN.read_toml(os.path.relpath(path))
    assert found == VALUES[case]


def test_paths_are_relative_to_the_file_and_names_may_have_hyphens(tmp_path):
    (tmp_path / "run.toml").write_text('images = "../peppers"\ntop-k = 3\nout = "~x"\n')
    found = RUN.read_toml(tmp_path / "run.toml")
    assert found == {"images": str(tmp_path.parent / "peppers"), "top_k": 3, "out": str(tmp_path / "~x")}


def test_a_folder_of_a_model_is_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    text = RUN.to_toml({"model": "hf:net"}, "out/run")
    assert text == 'model = "hf:../../net"\n'
    (tmp_path / "run.toml").write_text(text.replace("../../", "./"))
    assert RUN.read_toml(tmp_path / "run.toml") == {"model": f"hf:{tmp_path / 'net'}"}


def test_units_are_text_unless_they_name_a_file(tmp_path):
    (tmp_path / "atlas.toml").write_text('units = "layer4.2:*"\n')
    assert ATLAS.read_toml(tmp_path / "atlas.toml") == {"units": "layer4.2:*"}
    (tmp_path / "units.txt").write_text("layer4.2:0-3")
    (tmp_path / "atlas.toml").write_text('units = "units.txt"\n')
    assert ATLAS.read_toml(tmp_path / "atlas.toml") == {"units": str(tmp_path / "units.txt")}


def test_a_directions_file_is_relative_to_the_file(tmp_path):
    (tmp_path / "a.toml").write_text('unit = "fc:cavs/red.npy"')
    assert RUN.read_toml(tmp_path / "a.toml") == {"unit": f"fc:{tmp_path / 'cavs' / 'red.npy'}"}
    (tmp_path / "a.toml").write_text('unit = "fc:3"')
    assert RUN.read_toml(tmp_path / "a.toml") == {"unit": "fc:3"}


def test_a_path_on_another_drive_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path", ntpath)  # as on Windows
    red = "fc:C:\\cavs\\red.npy"
    text = RUN.to_toml({"images": "peppers", "unit": red}, "Z:\\out")
    assert text == f"images = {json.dumps(ntpath.abspath('peppers'))}\nunit = {json.dumps(red)}\n"


def test_the_names_of_recipes_are_not_paths():
    assert RUN.to_toml({"recipe": "facet"}, "/out") == 'recipe = "facet"\n'
    assert not [name for name in RECIPES if name.endswith(".json")]


def test_settings_accept_numpy_integers_and_paths():
    settings = RunSettings("net.py:make", "fc:1", Path("images"), seed=np.int64(3), top_k=np.uint8(20))
    assert settings.given() == RunSettings("net.py:make", "fc:1", "images", seed=3, top_k=20).given()
    assert type(settings.seed) is int


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facets": "ten"}, "^facets must be an integer or 'auto', not 'ten'"),
        ({"facets": 0}, "^facets must be at least 1 or 'auto', not 0"),
        ({"top_k": 0}, "^top_k must be at least 1, not 0"),
        ({"top_k": 3, "facets": 4}, "^top_k must be at least the number of facets, 4, not 3"),
        ({"seed": -1}, "^seed must be at least 0, not -1"),
        ({"seed": 2**32}, "^seed must be at most 4294967295, not 4294967296"),
        ({"seed": 1.5}, "^seed must be an integer, not 1.5"),
        ({"size": 9001}, "^size must be at most 9000, not 9001"),
        ({"steps": True}, "^steps must be an integer, not True"),
        ({"reduce": "man"}, "^reduce must be 'mean', 'max', 'center', 'cls' or 'patches', not 'man'; did you mean m"),
        ({"unit": 3}, "^unit must be text, not 3"),
        ({"fcets": 3}, "^fcets isn't known; did you mean facets"),
    ],
)
def test_invalid_settings_raise_an_error_that_names_the_setting(changes, message):
    with pytest.raises(RunError, match=message):
        RunSettings(**{"model": "resnet50", "unit": "fc:1", "images": "images", **changes})


@pytest.mark.parametrize("table", [RUN, ATLAS], ids=["run", "atlas"])
def test_every_declared_option_is_in_the_command_and_in_the_schema(table):
    options = {parameter.name: parameter for parameter in app.commands[table.command].params}
    assert options.keys() - table.declared.keys() == {"config"}
    properties = table.model.model_json_schema()["properties"]
    for name, declared in table.declared.items():
        assert options[name].help == declared.help == properties[declared.hyphenated]["description"]
        assert options[name].required == declared.required
    assert properties["seed"] == {**properties["seed"], "minimum": 0, "maximum": 2**32 - 1, "default": 0}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("recipe", "phases"), ("run", "top-k"), ("manifest", "settings"), ("metrics", "multifacetedness")),
        *(("labels", "facets"), ("atlas-labels", "units")),
        *(("atlas", "max-facets"), ("atlas-manifest", "n_units"), ("suite", "networks"), ("result", "scores")),
    ],
)
def test_the_schema_of_every_file_is_listed(name, field):
    shown = CliRunner().invoke(app, ["list", "schema", name])
    schema = json.loads(shown.output)
    assert field in schema["properties"]
    assert schema.get("additionalProperties") is (False if name in ("recipe", "run", "atlas", "suite") else None)


def test_the_commands_help_does_not_wait_for_pydantic_or_torch():
    code = "import sys; from captum_mfv.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "torch", "numpy"} & set(done.stdout.split())


def test_text_is_converted_to_numbers_and_errors_name_the_bound():
    assert (RUN.validate("crop_fraction", "0.5"), RUN.validate("steps", "7")) == (0.5, 7)
    with pytest.raises(ValueError, match="crop-fraction must be at most 1, not 2"):
        RUN.validate("crop_fraction", "2")
    with pytest.raises(ValueError, match=r"steps must be an integer, not 1\.5"):
        RUN.validate("steps", "1.5")
