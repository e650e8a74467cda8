"""Malicious or broken input raises a one-line error, is never executed, and opens no other files."""

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SPEC, planted_images, posix, small_cnn
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import captum_mfv as mfv
from captum_mfv import FacetSet, RunFolder, cli, find_facets, models, report, top_images
from captum_mfv.activations.codes import Store
from captum_mfv.activations.top_k import TopImages
from captum_mfv.cli.console import plain_warnings
from captum_mfv.errors import (
    FacetError,
    ImageError,
    MFVWarning,
    ModelError,
    RecipeError,
    RenderError,
    RunError,
    UnitError,
)
from captum_mfv.images import ImageFolder, batches, to_pil
from captum_mfv.jobs import RunSettings, run
from captum_mfv.jobs.evaluation import evaluate
from captum_mfv.metrics import Judge
from captum_mfv.optvis.recipes import RECIPES, Recipe, read_recipe
from captum_mfv.optvis.render import render_facets
from captum_mfv.report.publication import publish
from captum_mfv.runs.images import TOP_IMAGES, dump_top_images, read_top_images
from captum_mfv.runs.settings import RUN
from captum_mfv.runs.writer import RunWriter
from captum_mfv.storage.files import tensor_file

pytestmark = posix

MODEL = "conftest:small_cnn"


def command(capsys, *arguments):
    """Return the exit status and standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    return ended.value.code, capsys.readouterr().err


# Images


def hostile_folder(root):
    """Return a folder of two images and of other entries with the names of images."""
    root.mkdir()
    Image.new("RGB", (1, 1), "red").save(root / "a_pixel.png")
    Image.new("RGB", (40, 30), "red").save(root / f"{'b' * 251}.png")
    Image.new("L", (1, 90_000)).save(root / "c_line.png")
    Image.new("1", (10_000, 10_000)).save(root / "d_100_megapixels.png")
    (root / "e_empty.png").touch()
    os.mkfifo(root / "f_pipe.png")
    (root / "g_nowhere.png").symlink_to(root / "nothing")
    (root / "h_circle.png").symlink_to(root / "h_circle.png")
    (root / "i_device.png").symlink_to("/dev/zero")
    (root / "j\x1b[31m\n.png").write_text("no image")
    Path(os.fsdecode(bytes(root / "k") + b"\xff.png")).write_text("no image")
    (root / "sub").mkdir()
    (root / "sub" / "up").symlink_to(root)
    return root


def test_files_that_are_not_images_are_skipped_and_named_and_do_not_block(tmp_path):
    folder = ImageFolder(hostile_folder(tmp_path / "images"), SPEC)
    assert len(folder.fingerprint) == 32
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = [folder.name(i)[0] for indices, _ in batches(folder, 4) for i in indices]
    messages = [str(item.message) for item in caught if item.category is MFVWarning]
    assert seen == ["a", "b"]
    assert len(messages) == 9
    assert [letter for letter in "cdefghijk" if not any(f"/{letter}" in message for message in messages)] == []


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path, capsys):
    with plain_warnings():
        list(batches(ImageFolder(hostile_folder(tmp_path / "images"), SPEC)))
    error = capsys.readouterr().err
    assert "j\u241b[31m\u240a.png" in error
    assert "\x1b" not in error
    status, error = command(capsys, "report", tmp_path / "no\x1b[31mwhere")
    assert status == 2
    assert "\x1b" not in error


# Weights


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_raise_an_error_with_their_name(tmp_path, number):
    state = small_cnn().state_dict()
    state["conv2.weight"][3, 1, 0, 0] = number
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"w\.safetensors: conv2\.weight has 1 numbers that aren't finite, of 2592"):
        models.load(MODEL, tmp_path / "w.safetensors")


def masked():
    """Return a model with an infinite mask, as in attention."""
    model = small_cnn()
    model.register_buffer("mask", torch.full((2, 2), float("-inf")))
    return model


def test_infinite_masks_are_accepted_as_weights():
    assert models.load("test_hostile:masked")[0].mask.isinf().all()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 8 + b"{}",
        (2**40).to_bytes(8, "little") + b"{}",
        (60).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}',
        (10).to_bytes(8, "little") + b'{"w":{}}  ',
    ],
)
def test_a_false_safetensors_header_is_an_error(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="isn't a safetensors file"):
        models.load(MODEL, tmp_path / "w.safetensors")
    with pytest.raises(FacetError, match="isn't a facet set"):
        FacetSet.load(tmp_path / "w.safetensors")


def test_weights_that_are_a_pipe_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="no weights file"):
        models.load(MODEL, tmp_path / "w.safetensors")
    with pytest.raises(FacetError, match="not a regular file"):
        FacetSet.load(tmp_path / "w.safetensors")


# Facet sets


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("labels", lambda labels: np.where(labels == 2, 2**40, labels), "no more facets than images"),
        ("labels", lambda labels: np.where(labels == 1, 2, labels), "at least one image"),
        ("labels", lambda labels: labels - 5, "facet numbers of readable images, or -1"),
        ("labels", lambda labels: labels.astype(np.float32), "labels must be integers"),
        ("labels", lambda labels: labels[:-1], "isn't a facet set"),
        ("codes", lambda codes: codes[:, :0], "arrays of shapes"),
        ("codes", lambda codes: codes[None], "arrays of shapes"),
        ("codes", lambda codes: codes * np.nan, "codes must be finite"),
        ("codes", lambda codes: codes + np.float32(1e30), "would make distances overflow"),
        ("embedding", lambda found: np.where(found > 0, np.inf, found), "embedding must be finite"),
        ("activations", lambda found: found * np.nan, "must be finite|can be read"),
        ("activations", lambda found: found[:, None], "arrays of shapes"),
    ],
)
def test_inconsistent_arrays_of_a_facet_set_are_an_error(facets, tmp_path, array, change, message):
    arrays = {**facets.arrays(), array: change(facets.arrays()[array])}
    (tmp_path / "f.safetensors").write_bytes(tensor_file(arrays, facets.header()))
    with pytest.raises(FacetError, match=message):
        FacetSet.load(tmp_path / "f.safetensors")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unit", '{"layer": 5, "index": 0, "reduce": "mean"}'),
        ("unit", '{"layer": "fc", "index": -1, "reduce": "mean"}'),
        ("code", '{"layer": ["x"], "reduce": "mean"}'),
        ("code", "[" * 100_000),
        ("stability", "[0.5]"),
        ("stability_interval", '[[1], "x", 3]'),
        ("p_value", '"<script>"'),
    ],
)
def test_a_false_header_of_a_facet_set_is_an_error(facets, tmp_path, name, text):
    (tmp_path / "f.safetensors").write_bytes(tensor_file(facets.arrays(), {**facets.header(), name: text}))
    with pytest.raises(FacetError, match="isn't a facet set"):
        FacetSet.load(tmp_path / "f.safetensors")


# Recipes and configs


@pytest.mark.parametrize(
    "change",
    [
        {"n_images": 0},
        {"n_images": 1.5},
        {"noise": [0.5, float("nan")]},
        {"phases": [{"steps": 10**12, "weights": {"unit": 1}}]},
        {"phases": [{"steps": True, "weights": {"unit": 1}}]},
        {"phases": [{"steps": 5, "weights": {"unit": float("inf")}}]},
        {"phases": [{"steps": 5, "weights": {"unit": 1}, "lr": {"start": float("nan"), "end": 1}}]},
        {"phases": [{"steps": 5, "weights": {"unit": 1}, "transforms": {"affine": {"degrees": float("nan")}}}]},
    ],
)
def test_numbers_that_would_give_a_gray_image_are_not_a_recipe(change):
    with pytest.raises(RecipeError):
        Recipe.from_dict({**json.loads(RECIPES["plain"].to_json()), **change})


def test_a_deeply_nested_file_or_a_pipe_is_an_error(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "deep.toml").write_text("x = " + "[" * 200_000)
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("deep", "pipe"):
        with pytest.raises(RecipeError, match=f"{name}.json can't be read as a recipe"):
            read_recipe(tmp_path / f"{name}.json")
        with pytest.raises(RunError, match=f"{name}.toml can't be read as TOML"):
            RUN.read_toml(tmp_path / f"{name}.toml")


# Run folders from others


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a finished run, its images, and a second folder with the same file names."""
    root = tmp_path_factory.mktemp("made")
    for folder, side in (("images", 32), ("secret", 40)):
        (root / folder).mkdir()
        for i, image in enumerate(planted_images(4)[0]):
            to_pil(image).resize((side, side)).save(root / folder / f"{i:02d}.png")
    (root / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('was run').touch()\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MFVWarning)
        run(RunSettings(MODEL, "fc:1", str(root / "images"), facets=2, steps=2, input_size=32), root / "run")
    return root


@pytest.fixture
def theirs(made, tmp_path):
    """Return a copy of the run's folder to tamper with."""
    for path in (made / "run").rglob("*"):
        if path.is_file():
            copy = tmp_path / "run" / path.relative_to(made / "run")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "run"


def tamper(folder, name, *keys, value):
    whole = part = json.loads((folder / name).read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (folder / name).write_text(json.dumps(whole))


def shown(folder):
    """Return the number of a run's real images that can be read."""
    images = RunFolder.read(folder).member_images()
    count = 0
    for member in images.members:
        try:
            count += images.read(member) is not None
        except ImageError:
            continue
    return count


def judge():
    return Judge(small_cnn(1), input_spec=SPEC)


def test_the_runs_images_are_shown_and_evaluated(theirs):
    assert shown(theirs) == 12
    assert evaluate(RunFolder.read(theirs), judge(), judge_name="other").chance == 0.5


def test_another_folder_with_the_same_file_names_is_not_read(theirs, made):
    tamper(theirs, "manifest.json", "settings", "images", value=str(made / "secret"))
    folder = RunFolder.read(theirs)
    assert shown(theirs) == 0
    with pytest.warns(MFVWarning, match="shows no real images: .*secret isn't the run's folder of images"):
        page = report.build(folder).read_text()
    assert "facet" in page
    with pytest.raises(ImageError, match="put the run's back"):
        evaluate(folder, judge(), judge_name="other")


def test_images_are_not_read_without_a_hash_in_the_manifest(theirs):
    tamper(theirs, "manifest.json", "settings", "images_hash", value=None)
    assert shown(theirs) == 0


def test_links_that_replace_an_image_are_not_followed_unless_the_dataset_had_them(theirs, made, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in (made / "images").iterdir():
        (images / path.name).symlink_to(path)
    tamper(theirs, "manifest.json", "settings", "images", value=str(images))
    assert shown(theirs) == 12  # a dataset of links
    (images / "03.png").unlink()
    (images / "03.png").symlink_to(made / "secret" / "03.png")
    assert shown(theirs) == 0


@pytest.mark.parametrize(
    "path", ["../secret/00.png", "/etc/passwd", "y" * 3000, "a/../../secret/00.png", "\ud800", "a\0b"]
)
def test_members_outside_the_image_folder_are_not_read(theirs, path):
    tamper(theirs, "facets.json", 0, "members", 0, "path", value=path)
    assert shown(theirs) == 0
    with pytest.warns(MFVWarning, match="no real images"):
        report.build(RunFolder.read(theirs))


@pytest.mark.parametrize("crop", [[0, 0, 10**6, 10**6], [-5, 0, 3, 8], [8, 8, 8, 8]])
def test_a_crop_outside_its_image_is_not_shown(theirs, crop):
    tamper(theirs, "facets.json", 0, "members", 0, "crop", value=crop)
    assert shown(theirs) == 11


@pytest.mark.parametrize(
    "name", ["manifest.json", "facets.json", "metrics.json", "tensors.safetensors", "images/facet_00.png"]
)
@pytest.mark.parametrize("kind", ["link out", "pipe", "folder", "circle", "device"])
def test_links_pipes_and_folders_are_not_read_as_files(theirs, made, name, kind):
    path = theirs / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link out": made / "run" / name, "circle": path, "device": "/dev/zero"}[kind])
    with pytest.raises((RunError, FacetError), match=r"can't be (read|used)|isn't a facet set|no run"):
        report.build(RunFolder.read(theirs))


@pytest.mark.parametrize("activation", [-1.9e85, 1e99, 0])
def test_an_activation_of_any_size_can_be_drawn_on_the_page(theirs, activation):
    tamper(theirs, "metrics.json", "facets", 0, "activation", value=activation)
    report.build(RunFolder.read(theirs))


@pytest.mark.parametrize("without", ["recipe_data", "summary"])
def test_a_page_is_made_without_the_recipe_which_the_format_does_not_require(theirs, tmp_path, without):
    manifest = json.loads((theirs / "manifest.json").read_text())
    settings = manifest["settings"]
    del (settings if without == "recipe_data" else settings["recipe_data"])[without]
    (theirs / "manifest.json").write_text(json.dumps(manifest))
    folder = RunFolder.read(theirs)
    report.build(folder)
    assert "by recipe <bdi>facet</bdi>." in (theirs / "report.html").read_text(encoding="utf-8")
    publish(folder, tmp_path / "site")


def test_a_folder_at_the_path_of_the_page_prints_one_line(theirs, capsys):
    (theirs / "report.html").unlink()
    (theirs / "report.html").mkdir()
    status, error = command(capsys, "report", theirs)
    assert status == 2
    assert "is a folder; the page can't be written" in error


@pytest.mark.parametrize("key", ["seed", "recipe"])
def test_a_missing_field_of_the_manifest_is_named(theirs, key):
    manifest = json.loads((theirs / "manifest.json").read_text())
    del manifest[key]
    (theirs / "manifest.json").write_text(json.dumps(manifest))
    folder = RunFolder.read(theirs)
    with pytest.raises(RunError, match=key):
        folder.read_renderings(folder.read_facets())


def test_a_control_is_not_written_through_a_link(theirs, tmp_path):
    (tmp_path / "victim").mkdir()
    (theirs / "controls").symlink_to(tmp_path / "victim")
    with pytest.raises(RunError, match="leads out of the folder"):
        RunWriter.read(theirs).write_control("noise start", "key", [torch.zeros(3, 4, 4)])
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_run_is_not_resumed_through_a_link(theirs, tmp_path):
    (tmp_path / "victim").mkdir()
    (theirs / ".unfinished").symlink_to(tmp_path / "victim")
    with pytest.raises(RunError, match=r"\.unfinished/codes leads out of the folder"):
        RunWriter.read(theirs).unfinished("codes")


def test_top_images_of_another_run_are_an_error(tmp_path):
    unit, images = mfv.Unit("conv1", 0, "max"), torch.zeros(4, 3, 32, 32)
    indices, activations, corners = np.array([3, 1]), np.ones(2, np.float32), np.array([[0, 20], [5, 5]])
    good = TopImages(unit, images, indices, activations, corners, SPEC, replace(SPEC, size=12), 12)
    path = tmp_path / TOP_IMAGES
    path.write_bytes(dump_top_images(good))
    assert read_top_images(tmp_path, unit, images, SPEC).fingerprint == good.fingerprint
    for change in (
        {"indices": np.array([4, 1])},
        {"indices": np.array([-1, 1])},
        {"activations": np.array([np.nan, 1], np.float32)},
        {"corners": np.array([[0, 21], [5, 5]])},
        {"corners": np.zeros((3, 2), np.int64)},
        {"indices": indices.astype(float)},
        {"input_spec": replace(SPEC, size=64)},
    ):
        path.write_bytes(dump_top_images(replace(good, **change)))
        with pytest.raises(RunError, match=r"top_images\.safetensors can't be read"):
            read_top_images(tmp_path, unit, images, SPEC)
    path.unlink()
    path.symlink_to(tmp_path.parent)
    with pytest.raises(RunError, match="leads out of the folder"):
        read_top_images(tmp_path, unit, images, SPEC)


def test_a_page_replaces_a_link_and_is_not_written_through_it(theirs, tmp_path):
    (tmp_path / "victim").write_text("mine")
    (theirs / "report.html").unlink()
    (theirs / "report.html").symlink_to(tmp_path / "victim")
    report.build(RunFolder.read(theirs))
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", [".lock", ".owner"])
def test_a_lock_is_not_written_through_a_link(theirs, tmp_path, capsys, name):
    (tmp_path / "victim").write_text("mine")
    (theirs / name).unlink(missing_ok=True)
    (theirs / name).symlink_to(tmp_path / "victim")
    status, error = command(capsys, "report", theirs)
    assert status == 2
    assert f"{name} leads out of the folder" in error
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("arrays", [{"../victim": ""}, {"/tmp/victim": ""}])
def test_rows_of_an_interrupted_pass_are_not_read_outside_its_folder(tmp_path, arrays):
    np.save(tmp_path / "victim.npy", np.zeros((3, 1)))
    (tmp_path / "store").mkdir()
    parts = {"format": 1, "n_images": 3}
    (tmp_path / "store" / "state.json").write_text(json.dumps({"parts": parts, "n_done": 0, "arrays": arrays}))
    with pytest.raises(RunError, match="can't be continued"):
        Store(3, {}, tmp_path / "store")


def test_models_that_a_manifest_names_are_never_run(theirs, made, capsys):
    for key in ("model", "recipe", "weights", "labels"):
        tamper(theirs, "manifest.json", "settings", key, value=f"{made}/evil.py:make")
    tamper(theirs, "manifest.json", "recipe", value=f"{made}/evil.py:make")
    report.build(folder := RunFolder.read(theirs))
    report.compare([folder, folder], theirs / "compare.html")
    evaluate(folder, judge(), judge_name="other")
    assert mfv.attr.FacetModel(small_cnn(), FacetSet.load(theirs)).n_facets == 2
    status, error = command(capsys, "evaluate", theirs, "--judge", MODEL, "--control", "noise start")
    assert status == 2
    assert "by the run's model; name it" in error
    assert not (made / "was run").exists()


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("manifest.json", ("settings", "input_spec", "size"), 10**9),
        ("manifest.json", ("settings", "input_spec", "mean"), "x"),
        ("manifest.json", ("settings", "size"), 10**6),
        ("manifest.json", ("settings", "model"), None),
        ("manifest.json", ("settings", "command"), None),
        ("manifest.json", ("timings", "facets"), "x"),
        ("facets.json", (0, "size"), 5),
        ("facets.json", (0, "members", 0, "activation"), "x"),
        ("facets.json", (0, "members"), []),
        ("metrics.json", ("facets",), []),
        ("metrics.json", ("facets", 0, "activation"), float("inf")),
        ("metrics.json", ("multifacetedness", "score"), None),
        ("metrics.json", ("facets", 0), {"activation": 1, "percentile": 1, "nearest_facet": 0, "off_facet": 0.1}),
        ("metrics.json", ("judge",), {"name": "x"}),
    ],
)
@pytest.mark.parametrize("what", ["report", "compare", "evaluate"])
def test_false_json_prints_one_line(theirs, capsys, name, keys, value, what):
    tamper(theirs, name, *keys, value=value)
    before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    more = {"report": [theirs], "compare": [theirs, theirs, "--out", theirs / "c.html"]}
    status, error = command(capsys, what, *more.get(what, [theirs, "--judge", MODEL]))
    assert status == 2
    assert error.startswith("captum-mfv: error: ")
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == before


def test_unknown_keys_of_a_newer_version_are_ignored(theirs):
    for name, keys in {
        "manifest.json": ("settings", "input_spec", "gamma"),
        "facets.json": (0, "members", 0, "weight"),
        "metrics.json": ("multifacetedness", "method"),
    }.items():
        tamper(theirs, name, *keys, value="new")
    report.build(folder := RunFolder.read(theirs))
    assert folder.input_spec.size == 32


def test_an_error_of_a_record_names_the_file_the_field_and_the_value(theirs):
    tamper(theirs, "facets.json", 1, "members", 0, "activation", value="x")
    with pytest.raises(RunError, match=r"facets\.json can't be read: \[1\]\.members\[0\]\.activation must be a finite"):
        RunFolder.read(theirs).read_members()


# Numbers


class Broken(nn.Module):
    """A network whose outputs are NaN, infinite, huge or always 0."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.pool, self.fc, self.how = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2), how

    def forward(self, x):
        codes = self.pool(self.conv(x)).flatten(1)
        return self.fc(codes * {"nan": float("nan"), "inf": float("inf"), "dead": 0.0, "huge": 1e30}[self.how])


def test_activations_whose_distances_would_overflow_raise_an_error():
    with pytest.raises(FacetError, match=r"fc:0.* aren't finite on 12 of 12 images, or beyond 1e\+15"):
        find_facets(Broken("huge"), mfv.Unit("fc", 0), planted_images(4)[0], n_facets=2, input_spec=SPEC)


@pytest.mark.parametrize("how", ["nan", "inf"])
def test_activations_that_are_not_finite_raise_an_error(how):
    images = planted_images(4)[0]
    with pytest.raises(FacetError, match=r"fc:0.* aren't finite on 12 of 12 images"):
        find_facets(Broken(how), mfv.Unit("fc", 0), images, n_facets=2, input_spec=SPEC)
    with pytest.raises(UnitError, match="fc:0 isn't finite on any of 12 images"):
        top_images(Broken(how), mfv.Unit("fc", 0), images, input_spec=SPEC)


class BrokenOnDark(nn.Module):
    """A network that divides by an image's brightness."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.mean((2, 3)) / (x.amax((1, 2, 3), keepdim=False)[:, None] > -1.7).float())


def test_images_on_which_a_unit_is_not_finite_are_left_out_of_its_top_images_with_a_warning():
    images = planted_images(4)[0]
    images[5] = 0
    with pytest.warns(MFVWarning, match="fc:0 isn't finite on 1 of 12 images; they are left out"):
        top = top_images(BrokenOnDark(), mfv.Unit("fc", 0), images, input_spec=SPEC)
    assert 5 not in top.indices
    assert np.isfinite(top.activations).all()


def test_a_dead_unit_is_a_warning_for_facets_and_an_error_for_rendering():
    model = Broken("dead")
    nn.init.zeros_(model.fc.bias)
    images = planted_images(4)[0]
    with pytest.warns(MFVWarning, match="0 on all 12 images: the unit is dead"):
        facets = find_facets(model, mfv.Unit("fc", 0), images, n_facets=2, code="pool", input_spec=SPEC)
    with pytest.raises(RenderError, match="no gradient reaches the image"):
        render_facets(model, facets, images, recipe="plain", steps=3, input_spec=SPEC)


@pytest.mark.parametrize("n_facets", [1, "auto"])
def test_identical_images_are_one_facet(n_facets):
    images = planted_images(1)[0][:1].expand(12, -1, -1, -1)
    facets = find_facets(small_cnn(), mfv.Unit("fc", 1), images, n_facets=n_facets, input_spec=SPEC)
    assert len(facets) == 1
    with pytest.raises(FacetError, match="1 distinct codes"):
        find_facets(small_cnn(), mfv.Unit("fc", 1), images, n_facets=2, input_spec=SPEC)


def loud():
    """Return a network with outputs beyond the range of float16."""
    model = small_cnn()
    with torch.no_grad():
        model.conv2.weight *= 1e5
        model.fc.weight *= 1e5
    return model


def test_an_overflow_under_autocast_raises_an_error():
    images = planted_images(4)[0]
    facets = find_facets(loud(), mfv.Unit("fc", 1), images, n_facets=2, input_spec=SPEC)
    with pytest.raises(RenderError, match="isn't finite"):
        render_facets(loud(), facets, images, steps=3, dtype=torch.float16, input_spec=SPEC)


@pytest.mark.parametrize("n_images", [1, 2])
def test_a_unit_with_few_images_has_one_facet(n_images):
    facets = find_facets(small_cnn(), mfv.Unit("fc", 1), planted_images(1)[0][:n_images], n_facets=1, input_spec=SPEC)
    assert mfv.metrics.multifacetedness(facets).p_value == 1


@pytest.mark.parametrize(
    "option", [("--size", 10**9), ("--input-size", 10**6), ("--unit", f"fc:{'9' * 5000}"), ("--weights", "w" * 5000)]
)
def test_an_option_beyond_memory_or_file_names_prints_one_line(tmp_path, capsys, option):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    arguments = ["--model", MODEL, "--unit", "fc:1", "--images", tmp_path, "--facets", "1", "--out", tmp_path / "run"]
    status, error = command(capsys, "run", *arguments, *option)
    assert status == 2
    assert error.count("\n") <= 2
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_a_seed_beyond_the_generators_range_prints_one_line(tmp_path, capsys, seed):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    arguments = ["--model", MODEL, "--unit", "fc:1", "--images", tmp_path, "--facets", "1", "--out", tmp_path / "run"]
    status, error = command(capsys, "run", *arguments, "--seed", seed)
    assert status == 2
    assert "seed" in error
    assert not (tmp_path / "run").exists()
