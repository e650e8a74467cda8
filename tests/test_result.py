import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import SPEC, small_cnn

from captum_mfv import AtlasFolder, FacetSet, RunFolder
from captum_mfv.attr import FacetModel
from captum_mfv.errors import FacetError, RunError
from captum_mfv.optvis.render import render_facets
from captum_mfv.runs.atlas_writer import AtlasWriter
from captum_mfv.runs.records import ATLAS_FORMAT, FORMAT
from captum_mfv.runs.writer import RunWriter

SETTINGS = {
    "model": "small",
    "unit": "fc:2",
    "images": "nowhere",
    "recipe": "facet",
    "command": "",
    "seed": 0,
    "input_spec": asdict(SPEC),
}
KEYS = {"facets": "a", "images": "b", "baseline": "c"}
OUTPUTS = {"facets": ["facets.json"], "images": ["images/facet_*.png"], "baseline": ["images/plain.png"]}


@pytest.fixture
def folder(tmp_path, facets, planted):
    folder = RunWriter.open(tmp_path / "run", SETTINGS, KEYS, OUTPUTS)
    with folder.stage("facets"):
        folder.write_facets(facets, [{"path": f"{i:03d}.png"} for i in range(len(planted[0]))])
    return folder


def test_facets_are_written_as_documented(folder, facets):
    rows = json.loads((folder.path / "facets.json").read_text())
    assert [row["index"] for row in rows] == [0, 1, 2]
    for row, facet in zip(rows, facets, strict=True):
        assert row["size"] == len(row["members"]) == len(facet)
        assert row["activation"] == pytest.approx(facet.activations.mean(), rel=1e-5)
        assert [m["path"] for m in row["members"]] == [f"{i:03d}.png" for i in facet.members]
        assert [m["distance"] for m in row["members"]] == sorted(m["distance"] for m in row["members"])
        assert set(row["members"][0]) == {"path", "activation", "distance"}


def test_facets_images_and_histories_are_read_as_written(folder, facets, planted):
    made = render_facets(small_cnn(), facets, planted[0], steps=4, input_spec=SPEC)
    folder.write_renderings(facets, made)
    again = RunFolder.read(folder.path)
    assert again.read_facets().fingerprint == facets.fingerprint
    for image, rendering in zip(again.read_images(facets), made, strict=True):
        assert (image - rendering.image).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(again.read_images(facets, "_start")[0], (made[0].start * 255).round() / 255)
    histories = again.read_histories()
    assert {"capped_unit", "code", "distribution", "activation"} == set(histories)
    assert np.array_equal(histories["activation"][2], made[2].history["activation"])


def test_a_stage_is_done_only_if_it_ended_without_an_error(folder):
    with pytest.raises(ZeroDivisionError), folder.stage("images"):
        _ = 1 / 0
    again = RunWriter.open(folder.path, SETTINGS, KEYS, OUTPUTS)
    assert again.done("facets")
    assert not again.done("images")
    assert not again.finished
    assert set(again.manifest["timings"]) == {"facets"}
    again.finish()
    assert RunFolder.read(folder.path).finished


def test_another_run_or_other_files_in_the_folder_are_not_changed(folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(RunError, match="seed 0 there, 1 here"):
        RunWriter.open(folder.path, {**SETTINGS, "seed": 1}, KEYS, OUTPUTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    with pytest.raises(RunError, match="isn't empty and holds no run"):
        RunWriter.open(tmp_path / "mine", SETTINGS, KEYS, OUTPUTS)
    with pytest.raises(RunError, match="is a file"):
        RunWriter.open(tmp_path / "mine" / "thesis.tex", SETTINGS, KEYS, OUTPUTS)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_a_failed_write_leaves_no_file(folder, monkeypatch):
    before = sorted(path.name for path in folder.path.iterdir())

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        folder.write_metrics("run", {"retention": 1.0})
    assert sorted(path.name for path in folder.path.iterdir()) == before


NEWER = json.dumps({"format": FORMAT + 1, "stages": [], "settings": {}})


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"format": 1}', NEWER])
def test_folders_without_a_run_are_an_error(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(RunError):
        RunFolder.read(tmp_path)
    with pytest.raises(RunError, match="no run that can be read"):
        RunFolder.read(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [0, FORMAT + 1, 0.5, "1", None])
@pytest.mark.parametrize("kind", ["run", "atlas"])
def test_a_folder_of_another_format_is_refused_by_both_numbers_and_left_as_it_is(kind, number, tmp_path):
    text = json.dumps({"format": number, "kind": kind, "stages": [], "settings": {}})
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / ".facets.json.abcdefgh.part").write_text("")  # looks like a killed write
    version = FORMAT if kind == "run" else ATLAS_FORMAT
    if kind == "run":
        calls = [
            lambda: RunFolder.read(tmp_path),
            lambda: RunWriter.open(tmp_path, SETTINGS, KEYS, OUTPUTS),
            lambda: RunWriter.open(tmp_path, SETTINGS, KEYS, OUTPUTS, update=True),
        ]
    else:
        calls = [
            lambda: AtlasFolder.read(tmp_path),
            lambda: AtlasWriter.open(tmp_path, SETTINGS, {}),
            lambda: AtlasWriter.open(tmp_path, SETTINGS, {}, update=True),
        ]
    for call in calls:
        with pytest.raises(RunError, match=f"has format {number}, and this version reads format {version}$"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".facets.json.abcdefgh.part", "manifest.json"]
    assert (tmp_path / "manifest.json").read_text() == text


def test_the_facets_of_a_run_are_loaded_from_its_folder(folder, facets, tmp_path):
    assert FacetSet.load(folder.path).fingerprint == facets.fingerprint
    assert FacetModel(small_cnn(), FacetSet.load(folder.path)).n_facets == 3
    with pytest.raises(FacetError, match="isn't a facet set"):
        FacetSet.load(tmp_path)


def test_an_update_removes_only_files_of_the_run(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plain.png").write_bytes(b"precious")
    (folder.path / "images").symlink_to(tmp_path / "mine")
    with folder.stage("baseline"):
        pass
    with pytest.raises(RunError, match="leads out of the folder"):
        RunWriter.open(folder.path, SETTINGS, {**KEYS, "baseline": "other"}, OUTPUTS, update=True)
    assert "baseline" in RunFolder.read(folder.path).manifest["stages"]
    assert (tmp_path / "mine" / "plain.png").read_bytes() == b"precious"


def test_a_control_is_reused_only_for_the_same_input(folder, monkeypatch):
    folder.write_control("noise start", "one", [torch.zeros(3, 4, 4)] * 3)
    assert folder.has_control("noise start", "one")
    assert not folder.has_control("noise start", "other")
    assert not folder.has_control("unit alone", "one")
    writes = iter([None, None])
    write = RunWriter.write
    monkeypatch.setattr(RunWriter, "write", lambda *arguments: (next(writes), write(*arguments)))
    with pytest.raises(StopIteration):
        folder.write_control("noise start", "other", [torch.ones(3, 4, 4)] * 3)
    assert not folder.has_control("noise start", "one"), "half of it has been replaced"
    assert not folder.has_control("noise start", "other")
