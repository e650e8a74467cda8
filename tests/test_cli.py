"""The command line."""

import json
import logging
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from dataclasses import asdict

import pytest
import torch
from conftest import planted_images, small_cnn
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from captum_mfv import Code, Unit
from captum_mfv.cli import main
from captum_mfv.datasets import digits
from captum_mfv.images import to_pil
from captum_mfv.metrics import CONTROLS
from captum_mfv.optvis.recipes import RECIPES

MODEL = """
    from torch import nn
    from captum_mfv import InputSpec

    def make():
        layers = [nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(),
                  nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)]
        return nn.Sequential(*layers), InputSpec(32)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return a folder with a model file, weights, images of three known groups, and the table of the groups."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "model.py").write_text(textwrap.dedent(MODEL))
    weights = small_cnn().state_dict()
    names = {"conv1": "0", "conv2": "2", "fc": "6"}
    kept = {f"{names[layer]}.{kind}": weights[f"{layer}.{kind}"] for layer in names for kind in ("weight", "bias")}
    save_file(kept, root / "w.safetensors")
    (root / "images").mkdir()
    images, labels = planted_images()
    for i, image in enumerate(images):
        to_pil(image).save(root / "images" / f"{i:03d}.png")
    (root / "labels.json").write_text(json.dumps({f"{i:03d}.png": int(k) for i, k in enumerate(labels)}))
    return root


def arguments(inputs, out, **changes):
    options = {
        "model": f"{inputs}/model.py:make",
        "weights": inputs / "w.safetensors",
        "unit": "6:1",
        "images": inputs / "images",
        "facets": 3,
        "steps": 6,
        "out": out,
        **changes,
    }
    return ["run", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """Return the folder of a finished run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.raises(SystemExit) as ended:
        main([*arguments(inputs, out), "--quiet"])
    assert ended.value.code == 0
    return out


@pytest.fixture
def out(finished, tmp_path):
    """Return a copy of the folder of a finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def call(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_a_run_writes_every_documented_file(inputs, tmp_path, capsys):
    out = tmp_path / "run"
    status, printed, _ = call(arguments(inputs, out, labels=inputs / "labels.json"), capsys)
    assert status == 0
    assert re.search(r"adjusted Rand index 1\.000", printed)
    assert f"page: {out / 'report.html'}" in printed
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    images = [f"images/facet_0{k}{suffix}.png" for k in range(3) for suffix in ("", "_start")]
    members = ["", *(f"_member_{n}" for n in range(6))]
    overlays = [f"attributions/facet_0{k}{member}.png" for k in range(3) for member in members]
    rest = ["facets.json", "manifest.json", "metrics.json", "report.html", "run.toml", "tensors.safetensors"]
    rest += ["images/plain.png", ".lock"]
    assert files == sorted([*rest, *images, *overlays])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["unit"] == asdict(Unit("6", 1))
    assert manifest["code"] == asdict(Code("3"))
    assert {"recipe", "seed", "settings", "versions", "timings", "format"} <= manifest.keys()
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["adjusted_rand_index"], metrics["agreement"]) == (1, 1)


def test_overlays_use_the_requested_method_and_an_unknown_method_is_an_error(inputs, tmp_path, capsys):
    overlays = []
    for method in ("InputXGradient", "Saliency"):
        out = tmp_path / method
        assert call(arguments(inputs, out, steps=2, attribution=method), capsys)[0] == 0
        overlays.append((out / "attributions/facet_01_member_0.png").read_bytes())
    assert overlays[0] != overlays[1]
    status, _, error = call(arguments(inputs, tmp_path / "no", attribution="Gradients"), capsys)
    assert (status, "no attribution 'Gradients'" in error, (tmp_path / "no").exists()) == (2, True, False)
    status, _, error = call(arguments(inputs, tmp_path / "no", attribution="LayerActivation"), capsys)
    assert (status, "the same for every facet" in error, (tmp_path / "no").exists()) == (2, True, False)


def judged(inputs, out, capsys, *more):
    words = ["evaluate", out, "--judge", f"{inputs}/model.py:make", "--judge-weights", inputs / "w.safetensors"]
    return call([*words, *more], capsys)


def test_a_finished_run_is_evaluated_by_another_network_and_the_page_shows_it(inputs, out, capsys):
    before = json.loads((out / "metrics.json").read_text())
    held = [
        "--held-out",
        inputs / "images",
        "--model",
        f"{inputs}/model.py:make",
        "--weights",
        inputs / "w.safetensors",
    ]
    status, printed, _ = judged(inputs, out, capsys, "--judge-unit", "6:1", *held)
    assert status == 0
    assert re.search(r"retention +1\.00 \(0\.44 to 1\.00, n = 3\)", printed)
    assert re.search(r"held-out images +\d\.\d\d \(.*n = 60", printed)
    after = json.loads((out / "metrics.json").read_text())
    judge = after.pop("judge")
    assert after == before
    assert judge["shuffled"]["value"] == pytest.approx(1 / 3, abs=0.15)
    assert list(judge["controls"]) == ["real image", "start"]
    assert judge["name"] == f"{inputs}/model.py:make"
    probability = judge["scores"]["probability"]
    assert 0 <= probability["low"] <= probability["value"] <= probability["high"] <= 1
    page = (out / "report.html").read_text()
    assert "Evaluated by an independent network" in page
    assert "real images held out" in page


def test_controls_are_rendered_once_with_the_runs_recipe_and_are_on_the_page(inputs, out, capsys):
    model = ["--model", f"{inputs}/model.py:make", "--weights", inputs / "w.safetensors", "--quiet"]
    asked = ["--control", "shuffled clusters", "--control", "another seed"]
    status, printed, _ = judged(inputs, out, capsys, *asked, *model)
    assert status == 0
    assert re.search(r"shuffled clusters +\d\.\d\d", printed)
    assert "same facet, another seed" in printed
    drawn = sorted(path.relative_to(out).as_posix() for path in out.glob("controls/*/*.png"))
    assert drawn == [
        f"controls/{name}/facet_0{k}.png" for name in ("another-seed", "shuffled-clusters") for k in range(3)
    ]
    controls = json.loads((out / "metrics.json").read_text())["judge"]["controls"]
    assert list(controls) == ["real image", "start", "shuffled clusters", "another seed"]
    assert "shuffled clusters" in (out / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in out.glob("controls/*/*.png")}
    assert judged(inputs, out, capsys, *asked)[1] == printed  # the images exist: no model is needed
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("controls/*/*.png")}


def test_a_model_with_other_weights_renders_no_controls(inputs, out, capsys):
    before = (out / "metrics.json").read_bytes()
    other = ["--model", f"{inputs}/model.py:make", "--control", "noise start", "--quiet"]  # without the weights
    status, printed, error = judged(inputs, out, capsys, *other)
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert "the model isn't that of" in error
    assert not (out / "controls").exists()
    assert (out / "metrics.json").read_bytes() == before


def test_evaluation_runs_on_the_users_device(inputs, out, capsys):
    assert judged(inputs, out, capsys, "--device", "cpu")[0] == 0
    status, _, error = judged(inputs, out, capsys, "--device", "gpu")
    assert (status, "--device gpu can't be used" in error) == (2, True)


def test_a_run_on_crops_has_controls_too(inputs, tmp_path, capsys):
    out = tmp_path / "run"
    words = arguments(inputs, out, unit="2:3", facets=2, steps=2)
    assert call([*words, "--top-k", "30"], capsys)[0] == 0
    model = ["--model", f"{inputs}/model.py:make", "--weights", inputs / "w.safetensors", "--quiet"]
    status, printed, errors = judged(inputs, out, capsys, "--control", "noise start", *model)
    assert (status, "noise start" in printed) == (0, True), errors


def test_a_unit_that_is_zero_on_noise_has_a_page_without_the_baseline_image(tmp_path, capsys):
    from captum_mfv.datasets import planted_images as discs

    for i, image in enumerate(discs(n_each=6)[0]):
        to_pil(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "out").mkdir()
    options = {"model": "captum_mfv.datasets:planted_network", "unit": "unit:0", "images": tmp_path, "facets": 4}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    out = tmp_path / "out" / "run"
    status, _, errors = call(["run", *words, "--steps", 4, "--out", out, "--quiet"], capsys)
    assert (status, errors.count("no image without facets: facet 0 of unit:0: no gradient reaches the image")) == (0, 1)
    assert (out / "report.html").exists()
    assert not (out / "images" / "plain.png").exists()


def test_controls_are_listed(capsys):
    status, printed, _ = call(["list", "controls"], capsys)
    assert status == 0
    assert [line[:22].strip() for line in printed.splitlines()] == list(CONTROLS)


def test_a_judge_without_a_unit_returns_only_codes(inputs, out, capsys):
    status, printed, _ = judged(inputs, out, capsys, "--judge-code", "2:max", "--judge-input", "0.5", "0.5")
    assert (status, "top1" in printed, "retention" in printed) == (0, False, True)
    assert json.loads((out / "metrics.json").read_text())["judge"]["scores"]["top1"] is None


def test_an_evaluation_that_cannot_run_prints_one_line_and_changes_no_file(inputs, out, capsys):
    kept = (out / "metrics.json").read_bytes()
    manifest = (out / "manifest.json").read_text()
    for more, words in (
        (["--held-out", inputs / "images"], "by the run's model; name it"),
        (["--control", "noise start"], "must be rendered by the run's model; name it"),
        (["--control", "start"], "no control 'start'; there are"),
        (["--judge-unit", "6:99"], "units 0 to 4"),
        (["--judge-code", "nine"], "no layer 'nine'"),
    ):
        status, _, error = judged(inputs, out, capsys, *more)
        assert (status, words in error, error.count("\n")) == (2, True, 1), error
    (out / "manifest.json").write_text(manifest.replace('"finished"', '"running"'))
    status, _, error = judged(inputs, out, capsys)
    assert (status, "isn't finished" in error) == (2, True)
    assert (out / "metrics.json").read_bytes() == kept


def test_paths_outside_the_folder_of_images_are_not_read(inputs, out, capsys):
    rows = (out / "facets.json").read_text()
    (out / "facets.json").write_text(re.sub(r'"path": "[^"]+"', '"path": "../images/000.png"', rows))
    status, _, error = call(["report", out], capsys)
    assert status == 0
    assert "data:image/webp" in (out / "report.html").read_text()  # the start images
    status, _, error = judged(inputs, out, capsys)
    assert (status, "isn't the run's folder of images" in error) == (2, True)


def test_the_number_of_facets_can_be_auto(inputs, tmp_path, capsys):
    out = tmp_path / "run"
    status, printed, _ = call(arguments(inputs, out, facets="auto", labels=inputs / "labels.json"), capsys)
    assert (status, "3 facets of 6:1" in printed) == (0, True)
    assert json.loads((out / "metrics.json").read_text())["p_value"] < 0.01
    words = " ".join((out / "report.html").read_text().split())
    assert "The null hypothesis of the test is a single cluster with the same covariance" in words


def test_a_hidden_unit_is_run_on_the_crops_of_its_peaks(inputs, tmp_path, capsys):
    out = tmp_path / "run"
    words = arguments(inputs, out, unit="2:3", facets=2, **{"top-k": 30})
    assert call(words, capsys)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["unit"] == asdict(Unit("2", 3, "max"))
    assert "--top-k 30" in manifest["settings"]["command"]
    members = [member for row in json.loads((out / "facets.json").read_text()) for member in row["members"]]
    assert len(members) == 30
    for member in members:
        left, top, right, bottom = member["crop"]
        assert 0 <= left < right <= 32
        assert 0 <= top < bottom <= 32
        assert right - left == bottom - top == 12
    with Image.open(out / "images" / "facet_00.png") as image:
        assert image.size == (12, 12)
    assert not (out / ".unfinished").exists()
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"score", "p_value", "coverage"} == metrics["multifacetedness"].keys()
    assert "multifacetedness" in (out / "report.html").read_text()


TOKENS = """
    import torch
    from torch import nn
    from captum_mfv import InputSpec

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.block, self.head = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 12), nn.Linear(12, 5)

        def forward(self, x):
            patches = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.block(torch.cat([patches[:, :1] * 0, patches], 1)).amax(1))

    def make():
        torch.manual_seed(0)
        return Net(), InputSpec(32)
"""


def test_overlays_outline_the_patch_of_a_tokens_peak(inputs, tmp_path, capsys):
    (tmp_path / "tokens.py").write_text(textwrap.dedent(TOKENS))
    model, out = f"{tmp_path}/tokens.py:make", tmp_path / "run"
    options = {"model": model, "weights": "", "unit": "block:3", "facets": 2, "top-k": 20}
    words = [word for word in arguments(inputs, out, **options) if word not in ("--weights", "")]
    assert call(words, capsys)[0] == 0
    assert not (out / "attributions" / "peaks.json").exists()
    assert "outlines the patch" not in (out / "report.html").read_text()
    plain = (out / "attributions" / "facet_00_member_0.png").read_bytes()
    assert call([*words, "--n-prefix", 1, "--update"], capsys)[0] == 0
    peaks = json.loads((out / "attributions" / "peaks.json").read_text())
    left, top, right, bottom = peaks["attributions/facet_00_member_0.png"]
    assert (left % 8, top % 8, right - left, bottom - top) == (0, 0, 8, 8)
    assert (out / "attributions" / "facet_00_member_0.png").read_bytes() != plain
    page = (out / "report.html").read_text()
    assert "outlines the patch at which" in page
    assert f"in the square, pixels {left:.0f} to {right:.0f} from the left" in page
    assert json.loads((out / "manifest.json").read_text())["unit"]["n_prefix"] == 1
    assert "n-prefix = 1" in (out / "run.toml").read_text()
    patches = [*words, "--reduce", "patches", "--code", "block:patches", "--n-prefix", 1, "--update"]
    assert call(patches, capsys)[0] == 0
    assert json.loads((out / "manifest.json").read_text())["code"]["n_prefix"] == 1
    status, _, error = call([*words, "--reduce", "patches", "--update"], capsys)
    assert (status, "(--n-prefix in the command), 0 if it has none" in error) == (2, True)


FIXED = """
    import torch
    from torch import nn
    from captum_mfv import InputSpec

    def make():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 8 * 8, 5)), InputSpec(32)
"""


def test_a_hidden_unit_of_a_network_with_one_input_size_is_run_and_evaluated_on_crops(inputs, tmp_path, capsys):
    (tmp_path / "fixed.py").write_text(textwrap.dedent(FIXED))
    model = f"{tmp_path}/fixed.py:make"
    options = {"model": model, "unit": "3:4", "images": inputs / "images", "top-k": 20, "facets": 2, "steps": 2}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert call(["run", *words, "--out", tmp_path / "run", "--quiet"], capsys)[0] == 0
    with Image.open(tmp_path / "run" / "images" / "facet_01.png") as image:
        assert image.size < (32, 32)
    status, _, errors = judged(inputs, tmp_path / "run", capsys, "--control", "noise start", "--model", model)
    assert status == 0, errors


def test_a_run_of_a_hidden_unit_resumes_from_its_top_images(inputs, tmp_path, capsys, monkeypatch):
    words = arguments(inputs, tmp_path / "run", unit="2:3", facets=2, **{"top-k": 30})
    with monkeypatch.context() as patch:
        patch.setattr("captum_mfv.jobs.steps.render_facets", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(words, capsys)[0] == 130
    assert (tmp_path / "run" / ".top_images.safetensors").exists()
    assert call(words, capsys)[0] == 0
    assert call(arguments(inputs, tmp_path / "whole", unit="2:3", facets=2, **{"top-k": 30}), capsys)[0] == 0
    for name in ("facets.json", "images/facet_01.png"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


CHEAP = {
    "an unknown attribution": {"attribution": "Gradients"},
    "an unknown device": {"device": "gpu"},
    "an unknown precision": {"dtype": "int8"},
    "an unknown recipe": {"recipe": "papermean"},
    "no folder of images": {"images": "/nowhere"},
    "more facets than images": {"facets": 61},
    "more facets than top images": {"top-k": 2},
    "labels of other images": {"labels": "{other}"},
    "a folder in use": {"out": "{used}"},
    "a unit without index": {"unit": "6"},
}


@pytest.mark.parametrize("case", CHEAP)
def test_cheap_checks_run_before_the_model_is_loaded(case, inputs, tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("captum_mfv.models.load", refuse)
    (tmp_path / "other.json").write_text('{"elsewhere/000.png": 1}')
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("words")
    places = {"other": tmp_path / "other.json", "used": tmp_path / "used"}
    changes = {name: str(value).format(**places) for name, value in CHEAP[case].items()}
    out = tmp_path / "out"
    status, printed, error = call(arguments(inputs, changes.pop("out", out), **changes), capsys)
    assert (status, printed, error.count("\n"), out.exists()) == (2, "", 1, False)


def test_a_finished_run_is_not_repeated_and_an_interrupted_one_resumes(inputs, tmp_path, capsys, monkeypatch):
    words = arguments(inputs, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("captum_mfv.jobs.steps.render_facets", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        status, _, error = call(words, capsys)
    assert status == 130
    assert "rerun the same command to resume" in error
    facets = (tmp_path / "run" / "facets.json").stat().st_mtime_ns
    assert call(words, capsys)[0] == 0
    assert (tmp_path / "run" / "facets.json").stat().st_mtime_ns == facets
    image = (tmp_path / "run" / "images" / "facet_00.png").stat().st_mtime_ns
    status, printed, error = call(words, capsys)
    assert (status, "nothing to do" in error, "page: " in printed) == (0, True, True)
    assert (tmp_path / "run" / "images" / "facet_00.png").stat().st_mtime_ns == image


BAD = {
    "an unknown model": ({"model": "squeezenet1_9"}, "no torchvision model 'squeezenet1_9'.*squeezenet1_0"),
    "a missing model file": ({"model": "nowhere.py:make"}, "no file 'nowhere.py'"),
    "an unknown layer": ({"unit": "conv7:1"}, "no layer 'conv7'; the nearest are"),
    "a unit without index": ({"unit": "6"}, "isn't LAYER:INDEX"),
    "a missing unit": ({"unit": "6:99"}, "units 0 to 4; there is no unit 99"),
    "a missing folder": ({"images": "/nowhere"}, "isn't a folder of images"),
    "a folder without images": ({"images": "{empty}"}, "holds no images"),
    "a folder of text": ({"images": "{text}", "facets": 1}, "no image can be read"),
    "missing weights": ({"weights": "/nowhere.safetensors"}, "no weights file"),
    "weights in another format": ({"weights": "{text}/notes.safetensors"}, "isn't a safetensors file"),
    "a pickle with code": ({"weights": "{text}/evil.pth"}, "as safetensors"),
    "weights of another model": ({"weights": "{text}/other.safetensors"}, "don't fit.*lacking 0.bias"),
    "more facets than images": ({"facets": 61}, "61 facets can't be found in 60 images"),
    "no facets": ({"facets": 0}, "facets must be at least 1 or 'auto', not 0"),
    "an unknown recipe": ({"recipe": "papermean"}, "no recipe 'papermean'; there are .*did you mean paper-mean"),
    "no number": ({"facets": "many"}, "facets must be an integer or 'auto', not 'many'"),
    "a missing recipe file": ({"recipe": "mine.json"}, "mine.json can't be read as a recipe"),
    "no size": ({"size": 0}, "--size.*size must be at least 1, not 0"),
    "an unknown device": ({"device": "gpu"}, "--device gpu can't be used"),
    "an unknown precision": ({"dtype": "int8"}, "dtype must be 'bfloat16' or 'float16', not 'int8'"),
    "too few steps": ({"recipe": "paper-mean", "steps": 1}, "steps must be at least that"),
    "no top images": ({"top-k": 0}, "top-k must be at least 1, not 0"),
    "an unknown reduction": (
        {"reduce": "median"},
        "reduce must be 'mean', 'max', 'center', 'cls' or 'patches', not 'median'",
    ),
    "an unknown place of channels": ({"channels": "middle"}, "channels must be 'first' or 'last', not 'middle'"),
    "an unknown code": ({"code": "conv7"}, "no layer 'conv7'"),
    "a folder in use": ({"out": "{text}"}, "isn't empty and holds no run"),
    "a table of other images": ({"labels": "{text}/labels.json"}, "names none of the images in .*such as '000.png'"),
    "fewer top images than facets": ({"top-k": 2}, "top_k must be at least the number of facets, 3"),
    "a table that isn't JSON": ({"labels": "{text}/notes.safetensors"}, "isn't a JSON table"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_exit_2_and_no_traceback(case, inputs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    text = tmp_path / "text"
    text.mkdir()
    (text / "notes.safetensors").write_text("notes")
    (text / "labels.json").write_text('{"elsewhere.png": 1}')
    (text / "evil.pth").write_bytes(b"cposix\nsystem\n(S'touch /tmp/evil'\ntR.")
    save_file({"0.weight": torch.zeros(12, 3, 5, 5)}, text / "other.safetensors")
    changes, message = BAD[case]
    changes = {
        name: value.format(empty=tmp_path / "empty", text=text) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    status, printed, errors = call(
        [*arguments(inputs, changes.pop("out", tmp_path / "out"), **changes), "--quiet"], capsys
    )
    lines = [line for line in errors.splitlines() if "left out" not in line]
    assert (status, printed, len(lines)) == (2, "", 1)
    assert re.search(message, lines[0])
    assert [path for path in (tmp_path / "out").glob("*") if not path.name.startswith(".")] == []


@pytest.mark.parametrize("words", [["run"], ["jump"], ["run", "--nothing"], ["report"], ["report", "/nowhere"]])
def test_bad_usage_gets_one_line_too(words, capsys):
    status, printed, errors = call(words, capsys)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("captum-mfv: error: ")


def test_unreadable_images_are_named_once_and_the_run_continues(inputs, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        Image.effect_noise((32, 32), 20 + 10 * i).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "notes.txt").write_text("notes")
    words = arguments(inputs, tmp_path / "out", images=folder, facets=2)
    status, _, errors = call([*words, "--quiet"], capsys)
    assert status == 0
    assert [errors.count(f"left out {folder / name}") for name in ("broken.jpg", "notes.txt")] == [1, 1]


def test_the_page_is_rebuilt_self_contained_and_escapes_names(inputs, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.effect_noise((32, 32), 20 + 10 * i).save(folder / f"<script>alert({i})<&.png")
    out = tmp_path / "run"
    assert call(arguments(inputs, out, images=folder, facets=2), capsys)[0] == 0
    first = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    status, printed, _ = call(["report", out], capsys)
    assert (status, printed.strip()) == (0, str(out / "report.html"))
    html = (out / "report.html").read_text()
    assert html.encode() == first
    assert html.count("<script") == 1
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    for path in folder.iterdir():
        path.unlink()
    assert call(["report", out], capsys)[0] == 0
    assert "&lt;script&gt;" in (out / "report.html").read_text()


def test_runs_are_compared_on_one_page_and_other_folders_are_an_error(inputs, finished, tmp_path, capsys):
    assert call(arguments(inputs, tmp_path / "of-2", facets=2), capsys)[0] == 0
    shutil.copytree(finished, tmp_path / "of-3")
    words = ["compare", tmp_path / "of-2", tmp_path / "of-3", "--out", tmp_path / "compare.html"]
    status, printed, _ = call(words, capsys)
    assert (status, printed.strip()) == (0, str(tmp_path / "compare.html"))
    html = (tmp_path / "compare.html").read_text()
    assert html.count("of-3") >= 3
    assert "overlap" in html
    for wrong in (["compare", tmp_path / "of-2"], ["compare", tmp_path / "of-2", tmp_path / "none"], ["compare"]):
        status, printed, error = call([*wrong, "--out", tmp_path / "no.html"], capsys)
        assert (status, printed, error.count("\n")) == (2, "", 1)
    assert not (tmp_path / "no.html").exists()


def test_help_has_groups_examples_and_the_meaning_of_exit_codes(capsys):
    status, printed, _ = call(["run", "--help"], capsys)
    assert status == 0
    for example in re.findall(r"captum-mfv run .*(?:\\\\\n.*)?", printed):
        assert set(re.findall(r"--[\w-]+", example)) <= set(
            re.findall(r"^ +(?:-\w, )?(--[\w-]+)", printed, re.MULTILINE)
        )
    headings = re.findall(r"^(\S.*):$", printed, re.MULTILINE)
    assert headings == ["Model, unit and images", "Facets", "Synthesized images", "The run", "Other"]
    assert "[default: 10]" in printed
    _, printed, _ = call(["--help"], capsys)
    assert re.findall(r"^ +(\d+) ", printed, re.MULTILINE) == ["0", "2", "3", "130", "1"]
    assert call(["--version"], capsys)[1].startswith("captum-mfv, version ")


def same_files(one, two, names):
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


RESULT = ["facets.json", "tensors.safetensors", "metrics.json", "images/facet_02.png", "attributions/facet_01.png"]


def test_a_run_is_repeated_from_its_config_anywhere_to_the_same_bytes(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(inputs)
    names = {"model": "model.py:make", "weights": "w.safetensors", "images": "images", "labels": "labels.json"}
    recipe = {**json.loads(RECIPES["facet"].to_json()), "name": "mine"}
    (inputs / "mine.json").write_text(json.dumps(recipe))
    out = tmp_path / "run"
    assert call(arguments(inputs, out, **names, recipe="mine.json", seed=3), capsys)[0] == 0
    (inputs / "mine.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert call(["run", "--config", "run/run.toml", "--out", "again"], capsys)[0] == 0
    same_files(out, tmp_path / "again", [*RESULT, *(f"images/{path.name}" for path in (out / "images").iterdir())])
    monkeypatch.chdir(out)
    assert call(["run", "--config", "run.toml", "--out", "../other", "--seed", 4], capsys)[0] == 0
    assert (tmp_path / "other/images/facet_00.png").read_bytes() != (out / "images/facet_00.png").read_bytes()
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("run", "other")]
    assert [manifest["seed"] for manifest in manifests] == [3, 4]


def test_the_demo_is_repeated_from_its_config(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captum_mfv.jobs.inputs.get_recipe", lambda name: RECIPES[name].with_steps(2))
    few = [values[::12] for values in digits()]
    monkeypatch.setattr("captum_mfv.datasets.digits", lambda: few)
    assert call(["demo", "--out", "demo", "--quiet"], capsys)[1] == ""
    assert call(["run", "--config", "demo/run.toml", "--out", "again"], capsys)[0] == 0
    same_files(tmp_path / "demo", tmp_path / "again", RESULT)
    assert "adjusted_rand_index" in (tmp_path / "again/metrics.json").read_text()


CONFIGS = {
    "no TOML": ("steps = ", r"run.toml can't be read as TOML"),
    "an unknown option": ("step = 3", r"run.toml: step isn't known; did you mean steps\?"),
    "itself": ('config = "run.toml"', r"run.toml: config isn't known"),
    "text for a number": ('top-k = "many"', r"top-k must be an integer, not 'many'"),
    "a fraction": ("steps = 1.5", r"steps must be an integer, not 1.5"),
    "a truth": ("seed = true", r"seed must be an integer, not True"),
    "a list": ('unit = ["6:1"]', r"unit must be text, not \['6:1'\]"),
    "a number for a flag": ("quiet = 1", r"quiet must be true or false, not 1"),
    "a wrong value": ('facets = "many"', r"facets must be an integer or 'auto', not 'many'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_invalid_config_prints_one_line(case, tmp_path, capsys):
    text, message = CONFIGS[case]
    (tmp_path / "run.toml").write_text(text)
    words = ["run", "--config", tmp_path / "run.toml", "--model", "x", "--unit", "a:1", "--images", "y", "--out", "z"]
    status, printed, error = call(words, capsys)
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert re.search(message, error)
    assert "can't be read" in call(["run", "--config", tmp_path / "none.toml"], capsys)[2]


@pytest.fixture
def warned(monkeypatch):
    """Make a run warn of something that only a developer can change."""

    def warn(name):
        warnings.warn("old <thing>", DeprecationWarning, stacklevel=2)
        return RECIPES[name]

    monkeypatch.setattr("captum_mfv.jobs.inputs.get_recipe", warn)


def test_progress_goes_to_standard_error_and_results_to_standard_output(inputs, tmp_path, capsys, warned):
    status, printed, error = call(arguments(inputs, tmp_path / "run", steps=2), capsys)
    assert (status, len(printed.splitlines())) == (0, 5)
    assert "synthesizing 3 images in 2 steps" in error
    assert "old <thing>" not in error
    assert not set(error) & {"\r", "█", "%"}
    assert call([*arguments(inputs, tmp_path / "still", steps=2), "--quiet"], capsys) == (0, "", "")
    logger = logging.getLogger("captum_mfv")
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])


def test_verbose_prints_layers_code_and_the_seconds_of_each_stage(inputs, tmp_path, capsys, warned):
    _, printed, error = call([*arguments(inputs, tmp_path / "run", steps=2), "--verbose"], capsys)
    assert len(printed.splitlines()) == 5
    for words in ("unit 6:1, read by mean; code: mean of 3", "distribution reads 1, 2, 3", "DeprecationWarning: old"):
        assert words in error
    stages = ["facets", "images", "baseline", "attributions", "metrics", "report"]
    assert re.findall(r"([a-z]+) took \d+\.\d s", error) == stages
    status, _, error = call([*arguments(inputs, tmp_path / "no"), "-q", "-v"], capsys)
    assert (status, "are mutually exclusive" in error) == (2, True)


def test_models_and_layers_are_listed_without_a_download(inputs, capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    _, printed, _ = call(["list", "models"], capsys)
    assert {"squeezenet1_0", "resnet50", "vit_b_16"} <= set(printed.split())
    status, printed, error = call(["list", "layers", "--model", "squeezenet1_0", "--unit", "classifier.1:945"], capsys)
    lines = [re.split(r"  +", line) for line in printed.splitlines()]
    assert status == 0
    assert ["classifier.1", "Conv2d", "1000 x 13 x 13", "1000"] in lines
    assert [line[0] for line in lines if line[-1] == "*"] == ["features.12"]
    assert error == "* code of classifier.1 by default\n"
    _, printed, _ = call(["list", "layers", "--model", f"{inputs}/model.py:make"], capsys)
    assert [line.split()[0] for line in printed.splitlines()] == ["layer", *"0123456"]
    for more, words in ((["--model", "resnet51"], "resnet50"), (["--model", "alexnet", "--unit", "x"], "no layer 'x'")):
        status, printed, error = call(["list", "layers", *more], capsys)
        assert (status, printed, words in error) == (2, "", True)


COMPLETED = {
    "commands": ("captum-mfv ", "run", "plain"),
    "options": ("captum-mfv run --top", "--top-k", "plain"),
    "models": ("captum-mfv run --model squeeze", "squeezenet1_1", "plain"),
    "a library": ("captum-mfv run --model ti", "timm:", "plain"),
    "models of a library": ("captum-mfv run --model timm:vit_tiny_p", "timm:vit_tiny_patch16_224", "plain"),
    "a model file": ("captum-mfv run --model ./", "./", "file"),
    "recipes": ("captum-mfv run --recipe paper", "paper-mean", "plain"),
    "recipes to list": ("captum-mfv list recipes ma", "maco", "plain"),
    "folders": ("captum-mfv run --images pe", "pe", "dir"),
    "files": ("captum-mfv run --config r", "r", "file"),
}


@pytest.mark.parametrize("case", COMPLETED)
def test_shell_completion_offers_the_candidates(case, capsys, monkeypatch):
    line, found, kind = COMPLETED[case]
    if "librar" in case:
        pytest.importorskip("timm")
    words = line.split(" ")
    for name, value in {"": "zsh_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}.items():
        monkeypatch.setenv(name or "_CAPTUM_MFV_COMPLETE", value)
    status, printed, _ = call([], capsys)
    rows = printed.splitlines()
    assert status == 0
    assert (kind, found) in list(zip(rows[::3], rows[1::3], strict=True))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_line_prints_the_completion_script_of_each_shell(shell, capsys, monkeypatch):
    monkeypatch.setenv("_CAPTUM_MFV_COMPLETE", f"{shell}_source")
    status, printed, _ = call([], capsys)
    assert (status, f"_CAPTUM_MFV_COMPLETE={shell}_complete" in printed) == (0, True)
    monkeypatch.delenv("_CAPTUM_MFV_COMPLETE")
    assert f"_CAPTUM_MFV_COMPLETE={shell}_source" in call(["--help"], capsys)[1]


def test_the_module_is_the_command_and_a_closed_pipe_is_no_error():
    own = "ignore:Implicitly cleaning up:ResourceWarning"  # a warning of PyTorch 2.6
    command = f"{sys.executable} -W error -W '{own}' -m captum_mfv list models | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alexnet\n", "")


def test_recipes_are_listed_and_an_edited_recipe_can_be_used(inputs, tmp_path, capsys):
    status, printed, _ = call(["list", "recipes"], capsys)
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines()] == list(RECIPES)
    status, printed, _ = call(["list", "recipes", "facet"], capsys)
    data = json.loads(printed)
    data["name"], data["start"], data["phases"][0]["weights"]["total_variation"] = "mine", "medoid", 0.05
    (tmp_path / "mine.json").write_text(json.dumps(data))
    out = tmp_path / "run"
    assert call(arguments(inputs, out, recipe=tmp_path / "mine.json", size=48), capsys)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["recipe_data"]["start"] == "medoid"
    assert manifest["settings"]["recipe_data"]["phases"][0]["weights"]["total_variation"] == 0.05
    with Image.open(out / "images" / "facet_00.png") as image:
        assert image.size == (48, 48)
    with safe_open(out / "tensors.safetensors", framework="numpy") as file:
        assert file.get_tensor("transparency").shape == (3, 48, 48)


def test_the_precision_and_the_device_are_those_of_the_options(inputs, tmp_path, capsys):
    words = arguments(inputs, tmp_path / "run", device="cpu", dtype="bfloat16")
    assert call(words, capsys)[0] == 0
    assert "--dtype bfloat16" in json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]["command"]
