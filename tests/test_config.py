"""A run's options as TOML: what is written is read again."""

import os

import pytest

from captum_mfv.optvis.recipes import RECIPES
from captum_mfv.runs import config

TYPES = dict.fromkeys(["model", "weights", "unit", "images", "labels", "out", "recipe", "top_k", "facets"], (str, int))

VALUES = {
    "numbers and names": {"top_k": 200, "facets": "auto", "unit": "fc:3", "model": "resnet50", "recipe": "facet"},
    "relative paths": {"images": "a/b", "weights": "../w.pt", "model": "lib/net.py:make", "recipe": "mine.json"},
    "absolute paths": {"images": "/a/b", "labels": "/c.json", "out": "/d"},
    "a module, which is no path": {"model": "package.module:make"},
    "awkward names": {"images": 'a "b"\\ \t\n\x7f é 🫑', "labels": os.fsdecode(b"\xff.json")},
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("folder", [".", "out/run", "/elsewhere"])
def test_what_is_written_is_read_again_from_the_same_place(case, folder, tmp_path, monkeypatch):
    place = tmp_path / folder.strip("/")
    place.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    text = config.dumps(VALUES[case], place)
    path = place / "run.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = config.read(os.path.relpath(path), TYPES)
    assert found == VALUES[case]


def test_paths_are_relative_to_the_file_and_names_may_have_hyphens(tmp_path):
    (tmp_path / "run.toml").write_text('images = "../peppers"\ntop-k = 3\nout = "~x"\n')
    found = config.read(tmp_path / "run.toml", TYPES)
    assert found == {"images": str(tmp_path.parent / "peppers"), "top_k": 3, "out": str(tmp_path / "~x")}


def test_every_recipe_is_a_name_and_no_path():
    assert config.dumps({"recipe": "facet"}, "/out") == 'recipe = "facet"\n'
    assert not [name for name in RECIPES if name.endswith(".json")]
