"""The benchmark: suites, methods, results, joins, the table and the command."""

import json
import math
import random
import re
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fingerprint, planted_images, posix, same

import captum_mfv
from captum_mfv import FacetSet
from captum_mfv.bench import ResultFolder, Scenes, find_method, get_suite, join, make_table, run
from captum_mfv.bench.methods import REAL, Method, Rendered
from captum_mfv.bench.scores import checked_images, high_share, matched
from captum_mfv.cli import main
from captum_mfv.datasets import digit_classifier
from captum_mfv.errors import FacetError, RunError
from captum_mfv.images import to_pil
from captum_mfv.metrics import compare, estimate, holm
from captum_mfv.metrics.comparison import cluster_means

ROOT = Path(captum_mfv.__file__).parents[1]
NETWORKS = """
    import torch
    from torch import nn
    from captum_mfv import InputSpec

    def network(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            conv = [nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU()]
            return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)), InputSpec(32)

    def a():
        return network(0)

    def b():
        return network(1)
"""
SUITE = {
    "name": "tiny",
    "summary": "two networks with random weights",
    "networks": {name: {"model": f"networks.py:{name}", "class_layer": "6", "code": "3"} for name in "ab"},
    "classes": [{"name": f"class {k}", "index": k, "images": "photos", "n_facets": 3} for k in (1, 3)],
    "units": [{"network": "a", "unit": "2:3", "images": "photos", "top_k": 30, "n_facets": 2}],
    "tuning": [{"name": "tuned", "index": 2, "images": "photos", "n_facets": 3}],
}
METHOD = """
    import torch

    def render(model, unit, facets, images, *, input_spec, seed, steps):
        return [images[int(facet.members[0])] for facet in facets]

    def unsorted(model, unit, facets, images, *, input_spec, seed, steps):
        return [images[int(facet.members[0])] for facet in facets][::-1]

    unsorted.has_facets = False

    def wrong(model, unit):
        return []
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a data folder with networks, photographs of three kinds, and the suite's file."""
    root = tmp_path_factory.mktemp("data")
    (root / "networks.py").write_text(textwrap.dedent(NETWORKS))
    (root / "photos").mkdir()
    for number, image in enumerate(planted_images()[0]):
        to_pil(image).save(root / "photos" / f"{number:02}.png")
    (root / "suite.json").write_text(json.dumps(SUITE))
    return root


@pytest.fixture(scope="module")
def suite(data):
    return get_suite(data / "suite.json")


@pytest.fixture(scope="module")
def scene(data, suite, tmp_path_factory):
    """Return the scene of a class."""
    return Scenes(suite, data, tmp_path_factory.mktemp("cells")).scene(suite.cells()[0])


@pytest.fixture
def method_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(METHOD))
    return path


@pytest.fixture(scope="module")
def trained():
    """Return the networks of the suite digits by seed, after one epoch."""
    return {seed: digit_classifier(5, seed, 1) for seed in (0, 1)}


@pytest.fixture
def digits_trained_once(trained, monkeypatch):
    monkeypatch.setattr("captum_mfv.bench.digits.digit_classifier", lambda n_classes, seed, epochs: trained[seed])


def real_images(scene, seed):
    """Return the real image nearest to each facet's center, as a method does."""
    return Rendered([scene.images[int(facet.members[0])] for facet in scene.facets], 0.5)


def method(name="nearest", render=real_images, identity="1", **more):
    return Method(name, identity, 10, render, **more)


def results_of(out):
    return {result.key: result for result in ResultFolder(out).read()}


def call(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]  # maize: crossed minus self-fertilized, 1/8 inch


def test_the_sign_flip_test_is_fishers_of_darwins_maize():
    found = compare(DARWIN, [f"pair {i}" for i in range(15)])
    assert found.difference.value == pytest.approx(314 / 15)
    assert found.p_value == pytest.approx(2 * 863 / 2**15)  # Fisher 1935: 863 of the 32768 sums are as large
    assert found.effect * math.sqrt(15) == pytest.approx(2.148, abs=5e-4)  # his t


def test_a_comparison_is_of_clusters():
    found = compare([1, 3, 5, 7], ["x", "x", "y", "y"])
    assert (found.difference.value, found.difference.n) == (4, 2)
    assert found.p_value == 0.5
    assert found.effect == pytest.approx(4 / np.std([2, 6], ddof=1))
    alone = compare([1, 3], ["x", "x"])
    assert (alone.difference.value, alone.effect, alone.p_value) == (2, None, 1)
    equal = compare([0.1] * 4, list("abcd"))
    assert (equal.effect, equal.p_value) == (None, 2 / 2**4)
    assert compare([0.0] * 4, list("abcd")).p_value == 1
    assert cluster_means([1, 5, 3], ["x", "y", "x"]).tolist() == [2, 5]
    with pytest.raises(FacetError, match=r"one length, not \(2,\) and 1"):
        cluster_means([1, 2], ["x"])


def test_holms_adjusted_p_values_are_the_published_ones():
    assert holm([0.5, 0.003, 0.32, 0.054, 0.0003]) == pytest.approx([0.64, 0.012, 0.64, 0.162, 0.0015])
    # Benjamini and Hochberg 1995, section 4: of these 15 hypotheses, Bonferroni's and Holm's methods reject three
    trial = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528]
    adjusted = holm([*trial, 0.7590, 1.0])
    assert (adjusted < 0.05).tolist() == [True] * 3 + [False] * 12
    assert adjusted[:4] == pytest.approx([0.0015, 0.0056, 0.0247, 0.114])
    assert (holm([]).tolist(), holm([0.04]).tolist()) == ([], [0.04])
    with pytest.raises(FacetError, match="p-values"):
        holm([0.5, 1.5])


def test_the_cells_of_a_suite(suite):
    names = [cell.name for cell in suite.cells()]
    assert names == ["a-class_1", "b-class_1", "a-class_3", "b-class_3", "a-2_3"]
    assert [cell.cluster for cell in suite.cells()] == ["class 1", "class 1", "class 3", "class 3", "a-2_3"]
    assert [cell.name for cell in suite.cells(tuning=True)] == ["a-tuned", "b-tuned"]
    assert [cell.name for cell in suite.choose(["a-*", "b-class_3"])] == [
        "a-class_1",
        "a-class_3",
        "b-class_3",
        "a-2_3",
    ]
    with pytest.raises(RunError, match="suite tiny has no cell 'a-clas_1'; did you mean a-class_1"):
        suite.choose(["a-clas_1"])


@pytest.mark.parametrize("name", ["digits", "caltech101"])
def test_the_suites_of_the_package_can_be_read(name):
    assert len(get_suite(name).cells()) >= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"netwerks": {}}, "netwerks isn't known; did you mean networks"),
        ({"units": [{"network": "c", "unit": "2:3", "images": "x"}]}, "units: no network 'c'"),
        ({"units": [{"network": "a", "unit": "2", "images": "x"}]}, r"units\[0\]: unit '2' isn't LAYER:INDEX"),
        ({"classes": [{"name": "x", "images": "x"}]}, r"classes\[0\] lacks index"),
        ({"classes": [{"name": "x", "index": -1, "images": "x"}]}, r"classes\[0\].index must be at least 0, not -1"),
        ({"networks": {"a": SUITE["networks"]["a"]}}, "networks must be of length 2 or more"),
        ({"tuning": [*SUITE["classes"]]}, "two cells are named 'a-class_1'"),
        (
            {"networks": {"a": {"model": "x", "mean": [0.5]}, "b": {"model": "x"}}},
            "mean and std must be given together",
        ),
    ],
)
def test_an_invalid_suite_is_an_error_that_names_the_field(change, message, tmp_path):
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({**SUITE, **change}))
    with pytest.raises(RunError, match=message):
        get_suite(path)


def test_results_of_real_images_and_of_a_method_with_known_answers(data, suite, tmp_path):
    (found,) = run(suite, [method()], tmp_path, data=data, cells=suite.choose(["a-class_1"]), device="cpu")
    assert found.scores["distance"] == pytest.approx(0, abs=1e-3)  # the images are real images
    assert found.scores["activation"] <= 1
    assert found.scores["seconds"] == 0.5
    assert found.judges.keys() == {"b"}
    assert all(found.scores[key] == pytest.approx(value) for key, value in found.judges["b"].items())
    assert found.versions.keys() >= {"captum-mfv", "torch", "python", "platform"}
    real = results_of(tmp_path)[REAL, "a-class_1", 0]
    assert real.scores.keys() == {"top1", "predicts", "probability", "high", "activation"}
    assert len(list((tmp_path / "images/nearest/a-class_1-0").glob("facet_??.png"))) == 3


def test_the_control_of_the_nearest_image_is_compared_with_the_facets_other_images(data, suite, tmp_path):
    cells = suite.choose(["a-class_1"])
    methods = [find_method(name) for name in ("nearest image", "start alone")]
    assert [find_method(method.name, 40).name for method in methods] == ["nearest image", "start alone"], "no steps"
    nearest, start = run(suite, methods, tmp_path, data=data, cells=cells, device="cpu")
    assert (nearest.steps, start.steps) == (None, None)
    assert nearest.scores["distance"] > 0.1
    assert start.scores["distance"] > 0
    assert {nearest.status, start.status} == {"done"}


def test_a_hidden_unit_has_no_class(data, suite, tmp_path):
    (found,) = run(suite, [method()], tmp_path, data=data, cells=suite.choose(["a-2_3"]), device="cpu")
    assert found.scores.keys() == {"retention", "predicts", "distance", "high", "activation", "seconds"}
    assert (found.class_name, found.cluster) == (None, "a-2_3")


def test_a_function_of_a_suite_is_in_a_file_of_the_data_folder(data, tmp_path):
    source = "from pathlib import Path\nfrom captum_mfv import ImageFolder\n"
    source += "def photos():\n    return ImageFolder(Path(__file__).parent / 'photos')\n"
    (data / "photos.py").write_text(source)
    (tmp_path / "suite.json").write_text(
        json.dumps({**SUITE, "classes": [{**SUITE["classes"][0], "images": "photos.py:photos"}]})
    )
    suite = get_suite(tmp_path / "suite.json")
    options = {"cells": suite.choose(["a-class_1"]), "device": "cpu"}
    (found,) = run(suite, [method()], tmp_path / "out", data=data, **options)
    assert found.status == "done"
    with pytest.raises(
        RunError, match=r"there is no file .*photos\.py, which suite tiny needs for the images of a-class_1"
    ):
        (tmp_path / "networks.py").write_text((data / "networks.py").read_text())
        run(suite, [method()], tmp_path / "other", data=tmp_path, **options)


def test_finished_results_are_not_computed_again_and_another_method_is_noticed(data, suite, tmp_path):
    calls = []

    def counted(scene, seed):
        calls.append((scene.cell.name, seed))
        return real_images(scene, seed)

    options = {"data": data, "cells": suite.choose(["a-class_*"]), "seeds": (0, 1), "device": "cpu"}
    first = run(suite, [method(render=counted)], tmp_path, **options)
    assert len(calls) == len(first) == 4
    again = run(suite, [method(render=counted)], tmp_path, **options)
    assert (len(calls), again) == (4, first)
    with pytest.raises(RunError, match=r"another method 'nearest'.*another name.*--update"):
        run(suite, [method(render=counted, identity="2")], tmp_path, **options)
    changed = run(suite, [method(render=counted, identity="2")], tmp_path, update=True, **options)
    assert len(calls) == 8
    assert {result.identity for result in changed} == {"2"}


def test_a_method_that_raises_is_recorded_and_tried_again(data, suite, tmp_path, caplog):
    def broken(scene, seed):
        if scene.cell.name == "a-class_1" and not fixed:
            raise KeyError("no such layer")
        return real_images(scene, seed)

    fixed, cells = [], suite.choose(["?-class_1"])
    methods = [method("broken", broken), method()]
    found = run(suite, methods, tmp_path, data=data, cells=cells, device="cpu")
    assert [result.status for result in found] == ["failed", "done", "done", "done"]
    assert found[0].error == "KeyError: 'no such layer'"
    assert "broken failed on a-class_1" in caplog.text
    table = make_table(list(results_of(tmp_path).values()))
    assert [(one[0], one[1]) for one in table.failed] == [("broken", "a-class_1")]
    assert {row.n_cells for row in table.rows} == {1}
    assert "failed: broken on a-class_1, seed 0: KeyError" in table.markdown()
    fixed.append(True)
    found = run(suite, methods, tmp_path, data=data, cells=cells, device="cpu")
    assert {result.status for result in found} == {"done"}


def test_a_method_may_change_the_working_folder(data, suite, tmp_path, monkeypatch):
    def wandering(scene, seed):
        monkeypatch.chdir(tmp_path)
        return real_images(scene, seed)

    monkeypatch.chdir(data.parent)
    cells = suite.choose(["?-class_1"])
    found = run(suite, [method("wandering", wandering)], "there", data=data.name, cells=cells, device="cpu")
    assert [result.status for result in found] == ["done", "done"]
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda n: torch.zeros(n - 1, 3, 32, 32), "must return 3 images.*not 2"),
        (lambda n: torch.zeros(n, 1, 32, 32), r"image 0 has the shape \(1, 32, 32\)"),
        (lambda n: torch.zeros(n, 32, 32), r"image 0 has the shape \(32, 32\)"),
        (lambda n: torch.full((n, 3, 32, 32), torch.nan), "image 0 has 3072 values that aren't finite"),
        (lambda n: torch.full((n, 3, 32, 32), 255), r"image 0 of the method must lie in \[0, 1\], not \[255, 255\]"),
        (lambda n: None, "not NoneType"),
        (lambda n: ["a picture"] * n, "not list"),
    ],
)
def test_what_a_method_returns_is_validated(scene, images, message):
    with pytest.raises((FacetError, ValueError), match=message):
        checked_images(images(3), scene)


def test_arrays_and_images_of_any_size_are_accepted(scene):
    found = checked_images([np.full((3, 20, 30), 1.00001), torch.zeros(3, 64, 64), torch.zeros(3, 8, 8)], scene)
    assert [tuple(image.shape) for image in found] == [(3, 20, 30), (3, 64, 64), (3, 8, 8)]
    assert found[0].dtype == torch.float32
    assert float(found[0].max()) == 1


def test_a_file_of_a_method_is_read_and_its_edits_are_noticed(method_file, scene):
    found = find_method(str(method_file))
    assert (found.name, found.steps, found.has_facets) == ("mine", 100, True)
    assert len(found.render(scene, 0).images) == 3
    assert find_method(str(method_file), 50).name == "mine-50"
    other = find_method(f"{method_file}:unsorted")
    assert (other.name, other.has_facets) == ("unsorted", False)
    assert len({found.identity, other.identity, find_method(str(method_file), 50).identity}) == 3
    method_file.write_text(method_file.read_text() + "# edited\n")
    assert find_method(str(method_file)).identity != found.identity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}:missing", "has no function 'missing'"),
        ("{}:wrong", r"must be wrong\(model, unit, facets, images, \*, input_spec, seed, steps\)"),
        ("no.py", "there is no file 'no.py'"),
        ("facit", "no method 'facit'.*did you mean facet"),
    ],
)
def test_a_method_that_cannot_be_used_is_an_error(text, message, method_file):
    with pytest.raises(ValueError, match=message):
        find_method(text.format(method_file))


def test_a_method_that_lacks_the_ending_of_its_file_is_an_error_with_the_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(ValueError, match=r"no method 'mine'.* write mine.py for the file"):
        find_method("mine")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("captum_mfv.bench.methods.find_spec", lambda name: None)
    with pytest.raises(RunError, match="horama-maco needs the module horama: pip install horama einops"):
        find_method("horama-maco")


def test_a_method_changes_neither_the_network_nor_the_generators(scene, tmp_path):
    path = tmp_path / "hostile.py"
    path.write_text(
        textwrap.dedent("""
            import random
            import numpy as np
            import torch

            def render(model, unit, facets, images, *, input_spec, seed, steps):
                model.train().requires_grad_(True)
                with torch.no_grad():
                    model[0].weight.zero_()
                model[0].register_forward_hook(lambda *parts: None)
                shade = (torch.rand(1).item() + np.random.rand() + random.random()) / 3
                return torch.full((len(facets), 3, 32, 32), shade)
        """)
    )
    before, states = fingerprint(scene.model), (torch.get_rng_state(), random.getstate())
    made = [find_method(str(path)).render(scene, seed).images[0].mean().item() for seed in (0, 0, 1)]
    assert same(before, fingerprint(scene.model))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert made[0] == made[1] != made[2]


def test_images_without_facets_are_assigned_to_facets(scene):
    own = [scene.images[int(facet.members[0])] for facet in scene.facets]
    judge, real = scene.judges["b"], scene.real["b"]
    for order in ([0, 1, 2], [2, 0, 1]):
        ordered = matched([own[k] for k in order], judge, real)
        assert all(torch.equal(one, other) for one, other in zip(ordered, own, strict=True))


def test_a_method_without_facets_has_the_scores_of_its_images_in_their_best_order(data, suite, method_file, tmp_path):
    methods = [find_method(f"{method_file}{name}") for name in ("", ":unsorted")]
    options = {"data": data, "cells": suite.choose(["a-class_1"]), "device": "cpu"}
    sorted_, unsorted = run(suite, methods, tmp_path / "out", **options)
    for name in ("retention", "predicts", "distance"):
        assert unsorted.scores[name] == pytest.approx(sorted_.scores[name])


def test_the_share_of_high_frequencies_of_noise_is_that_of_their_area():
    noise = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert high_share(noise) == pytest.approx(1 - math.pi / 16, abs=0.01)
    assert high_share(torch.linspace(0, 1, 64).expand(3, 64, 64)) < 1e-4
    assert high_share(torch.full((3, 8, 8), 0.5)) == pytest.approx(0, abs=1)


def test_facets_without_a_record_of_their_images_are_found_again(data, suite, tmp_path):
    cell = suite.choose(["a-class_1"])[0]
    found = Scenes(suite, data, tmp_path).facets(cell)
    path = tmp_path / cell.name / "facets.safetensors"
    found.as_one_facet().save(path)
    with pytest.raises(RunError, match="has 1 facets of 60 images, not 3 of 60"):
        Scenes(suite, data, tmp_path).facets(cell)
    (tmp_path / cell.name / "cell.json").unlink()
    assert Scenes(suite, data, tmp_path).facets(cell).fingerprint == found.fingerprint


def test_cells_of_other_data_are_refused(data, suite, tmp_path):
    cells = suite.choose(["a-class_1"])
    run(suite, [method()], tmp_path, data=data, cells=cells, device="cpu")
    (other := tmp_path / "other").mkdir()
    (other / "networks.py").write_text((data / "networks.py").read_text())
    (other / "photos").mkdir()
    for path in list((data / "photos").iterdir())[:-1]:
        (other / "photos" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match=r"is of another cell \(images .*; choose another --out"):
        run(suite, [method("second")], tmp_path, data=other, cells=cells, device="cpu")
    (result,) = (one for one in results_of(tmp_path).values() if one.method == "nearest")
    ResultFolder(tmp_path).write(result.model_copy(update={"fingerprint": "other"}))
    with pytest.raises(RunError, match="results on a-class_1 with other weights, images, facets or judges"):
        run(suite, [method(), method("second")], tmp_path, data=data, cells=cells, device="cpu")
    with pytest.raises(RunError, match="has results of suite tiny; choose another --out"):
        run(replace(suite, name="other"), [method()], tmp_path, data=data, cells=cells, device="cpu")
    with pytest.raises(RunError, match="--data is missing"):
        run(suite, [method("second")], tmp_path, cells=cells, device="cpu")
    with pytest.raises(RunError, match="photos isn't a folder"):
        run(suite, [method("second")], tmp_path, data=tmp_path / "nothing", cells=cells, device="cpu")


@pytest.fixture(scope="module")
def two_folders(data, suite, tmp_path_factory):
    """Return two folders of results: of one method each, on cells that both have."""
    root, cells = tmp_path_factory.mktemp("joined"), suite.choose(["?-class_1"])
    run(suite, [method("first")], root / "one", data=data, cells=cells, device="cpu")
    run(suite, [method("second")], root / "two", data=data, cells=cells[:1], device="cpu")
    return root / "one", root / "two"


def test_folders_are_joined(two_folders, tmp_path):
    found = join(two_folders, tmp_path)
    assert {result.method for result in found} == {REAL, "first", "second"}
    assert results_of(tmp_path).keys() == {result.key for result in found}
    assert join([tmp_path, two_folders[0]], tmp_path / "again") != []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, "cell a-class_1 .* isn't the same in"),
        ({"identity": "other"}, "method 'first' isn't the same in .*another name"),
        ({"suite": "other"}, "the suite isn't the same"),
        ({"scores": {"retention": 0.123}}, "another activation of method 'first' on a-class_1 with seed 0"),
        ({"scores": "more retention"}, "another retention of method 'first' on a-class_1"),
    ],
)
def test_folders_that_contradict_each_other_are_not_joined(change, message, two_folders, tmp_path):
    result = results_of(two_folders[0])["first", "a-class_1", 0]
    if change.get("scores") == "more retention":
        change = {"scores": {**result.scores, "retention": result.scores["retention"] + 0.01, "seconds": 9.0}}
    ResultFolder(tmp_path / "other").write(result.model_copy(update=change))
    with pytest.raises(RunError, match=message):
        join([two_folders[0], tmp_path / "other"], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_a_result_that_is_done_replaces_one_that_failed(two_folders, tmp_path):
    result = results_of(two_folders[0])["first", "a-class_1", 0]
    failed = result.model_copy(update={"status": "failed", "error": "x", "scores": {}})
    ResultFolder(tmp_path / "other").write(failed)
    for folders in ([tmp_path / "other", two_folders[0]], [two_folders[0], tmp_path / "other"]):
        joined = {one.key: one for one in join(folders, tmp_path / "joined")}
        assert joined[result.key].status == "done"


def test_a_folder_without_results_and_a_damaged_result_are_errors(two_folders, tmp_path):
    with pytest.raises(RunError, match="holds no results"):
        join([two_folders[0], tmp_path / "nothing"], tmp_path)
    path = tmp_path / "results/mine/a-0.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 2}')
    with pytest.raises(RunError, match=r"a-0\.json isn't a result: format must be 1, not 2"):
        ResultFolder(tmp_path).read()


@posix
def test_links_and_control_characters_in_the_results_of_others_do_no_harm(two_folders, tmp_path):
    result = results_of(two_folders[0])["first", "a-class_1", 0]
    hostile = result.model_copy(update={"method": "x\x1b[2J | y\n", "status": "failed", "error": "\x1b[31m|\n"})
    text = make_table([*results_of(two_folders[0]).values(), hostile]).markdown()
    assert "failed: x␛[2J / y␊ on a-class_1, seed 0: ␛[31m/␊\n" in text
    ResultFolder(tmp_path).write(result)
    (path,) = tmp_path.glob("results/*/*.json")
    path.rename(tmp_path.parent / "elsewhere.json")
    path.symlink_to(tmp_path.parent / "elsewhere.json")
    with pytest.raises(RunError, match="leads out of the folder"):
        ResultFolder(tmp_path).read()


def rows_of(two_folders, scores):
    """Return results of methods with some scores: of each (network, class), by name of the method."""
    template = results_of(two_folders[0])["first", "a-class_1", 0]
    return [
        template.model_copy(
            update={
                "method": name,
                "cell": f"{network}-{cluster}",
                "network": network,
                "cluster": cluster,
                "scores": {"retention": value},
            }
        )
        for name, values in scores.items()
        for (network, cluster), value in values.items()
    ]


def test_the_table_has_means_over_common_cells_and_comparisons_over_shared_ones(two_folders):
    places = [(network, f"c{k}") for k in range(8) for network in "ab"]
    base = {place: 0.5 + 0.01 * int(place[1][1:]) for place in places}
    better = {place: value + 0.1 + 0.01 * (int(place[1][1:]) % 2) for place, value in base.items()}
    few = {place: base[place] - 0.2 for place in places[:4]}
    results = rows_of(two_folders, {REAL: base, "facet": base, "better": better, "few": few})
    table = make_table(results)
    assert table.against == "facet"
    assert {row.n_cells for row in table.rows if row.network is None} == {4}
    whole = make_table(results, ["facet", "better"])
    rows = {(row.network, row.method): row for row in whole.rows}
    assert rows.keys() == {(network, name) for network in (None, "a", "b") for name in (REAL, "facet", "better")}
    assert (rows[None, "better"].n_cells, rows[None, "better"].n_clusters) == (16, 8)
    assert rows[None, "facet"].scores["retention"] == estimate(0.5 + 0.01 * np.arange(8))
    (compared,) = [one for one in whole.comparisons if one.network is None]
    assert compared.scores["retention"].difference.value == pytest.approx(0.105)
    assert compared.scores["retention"].p_value == compared.adjusted["retention"] == pytest.approx(2 / 2**8)
    families = {(one.network, one.method): one for one in table.comparisons}
    assert families[None, "better"].n_cells == 16
    assert families[None, "few"].n_cells == 4
    assert families[None, "better"].adjusted["retention"] == pytest.approx(2 * 2 / 2**8)
    text = whole.markdown()
    assert "| classes, all | better | 16 | 8 | .64 (" in text
    assert re.search(
        r"\| better \| retention \| 16 \| 8 \| \.1[01] \(\.10 to \.11\) \| 19\.6\d \| \.008 \| \.008 \|", text
    )
    with pytest.raises(RunError, match=r"no results of method 'bettr' that are done; .*did you mean better"):
        make_table(results, ["bettr"])


def test_the_mean_of_one_cluster_has_no_interval(two_folders):
    values = {("a", "c0"): 0.5, ("b", "c0"): 0.6}
    text = make_table(rows_of(two_folders, {REAL: values, "facet": values})).markdown()
    assert "| classes, all | facet | 2 | 1 | .55 |" in text


def test_methods_are_compared_with_the_recipe_facet_whatever_its_number_of_steps(two_folders):
    values = {("a", "c0"): 0.5, ("a", "c1"): 0.6}
    table = make_table(rows_of(two_folders, {REAL: values, "facet-40": values, "mine-40": values}))
    assert table.against == "facet-40"
    assert f"facet-40 2 ({table.n_steps['facet-40']} steps)" in table.markdown()
    several = rows_of(two_folders, {"facet-40": values, "facet-80": values})
    assert make_table(several).against is None


def test_methods_without_hidden_units_leave_those_of_the_others_in_the_table(two_folders):
    classes = {("a", "c0"): 0.5, ("b", "c0"): 0.6}
    results = rows_of(two_folders, {REAL: classes, "facet": classes, "few": {("a", "c0"): 0.4}})
    hidden = results[2].model_copy(update={"cell": "unit", "cluster": "unit", "class_name": None})
    rows = [(row.group, row.method, row.n_cells) for row in make_table([*results, hidden]).rows]
    assert rows == [("classes", name, 1) for name in (REAL, "facet", "few")] + [("hidden units", "facet", 1)]


def test_scores_are_means_over_seeds_and_tuning_cells_are_apart(two_folders):
    (one,) = rows_of(two_folders, {"facet": {("a", "c0"): 0.2}})
    other = one.model_copy(update={"seed": 1, "scores": {"retention": 0.4}})
    tuned = one.model_copy(update={"cell": "tuned", "tuning": True, "scores": {"retention": 1.0}})
    (row,) = make_table([one, other, tuned]).rows
    assert row.scores["retention"].value == pytest.approx(0.3)
    (row,) = make_table([one, other, tuned], tuning=True).rows
    assert row.scores["retention"].value == 1


def test_the_command_runs_resumes_joins_and_prints_the_table(data, method_file, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["bench", "facet", method_file, "--suite", data / "suite.json", "--data", data, "--out", out, "-q"]
    words += ["--cells", "?-class_1", "--steps", "2", "--device", "cpu"]
    for shard in ("0/2", "1/2"):
        assert call([*words, "--shard", shard], capsys) == (0, "", "")
    status, printed, _ = call(words, capsys)
    assert status == 0
    assert "| classes, all | facet-2 | 2 | 1 |" in printed
    assert "| classes, all | mine-2 | 2 | 1 |" in printed
    assert (out / "table.md").read_text() == printed
    table = json.loads((out / "table.json").read_text())
    assert (table["format"], table["against"]) == (1, "facet-2")
    status, again, _ = call(["bench", "--table", "facet-2", "--against", "mine-2", "--out", out, "-q"], capsys)
    assert status == 0
    assert "Each method minus mine-2:" in again
    status, joined, _ = call(["bench", "--join", out, out, "--out", tmp_path / "joined", "-q"], capsys)
    assert (status, joined) == (0, printed)


def test_the_command_ends_with_3_if_a_method_failed(data, tmp_path, capsys):
    path = tmp_path / "bad.py"
    lines = ["import warnings", "from captum_mfv.errors import MFVWarning"]
    lines += ["def render(model, unit, facets, images, **options):"]
    lines += ["    warnings.warn('little paint', MFVWarning)", "    raise RuntimeError('out of paint')"]
    path.write_text("\n".join(lines))
    words = ["bench", path, "start alone", "--suite", data / "suite.json", "--data", data, "--out", tmp_path / "out"]
    status, printed, shown = call([*words, "--cells", "a-class_1", "--device", "cpu"], capsys)
    assert status == 3
    assert "failed: bad on a-class_1, seed 0: RuntimeError: out of paint" in printed
    assert "bad on a-class_1: little paint" in shown
    assert "bad failed on a-class_1" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a METHOD"),
        (["no.py"], "there is no file 'no.py'"),
        (["facet", "--suite", "digit"], "no suite 'digit'.*did you mean digits"),
        (["facet", "--cells", "first-9"], "suite digits has no cell 'first-9'"),
        (["facet", "--suite", "caltech101"], "--data is missing: the folder with caltech101/Leopards"),
        (["facet", "--suite", "caltech101", "--data", "nowhere"], "nowhere/caltech101/Leopards isn't a folder"),
        (["facet", "--seeds", "x"], "whole numbers from 0"),
        (["facet", "--shard", "2/2"], "--shard must be I/N"),
        (["facet", "facet.json"], "facet.json can't be read as a recipe"),
        (["--table", "--out", "nothing"], "there are no results"),
        (["--join", "nothing"], "nothing holds no results"),
        (["--join"], "--join needs folders"),
    ],
)
def test_wrong_input_is_explained_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, printed, shown = call(["bench", *words, "-q"], capsys)
    assert (status, printed) == (2, "")
    assert shown.count("\n") == 1
    assert re.search(message, shown)


def test_the_methods_and_suites_are_listed(capsys):
    status, printed, _ = call(["list", "methods"], capsys)
    assert status == 0
    assert {"facet", "unit alone", "lucent", "--suite digits"} <= {
        re.split(r"  +", line)[0] for line in printed.split("\n")
    }


def test_the_method_of_the_how_to_runs_as_a_stranger_would_run_it(digits_trained_once, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/howto/method.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"%%writefile mine\.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.py").write_text(source)
    (shown,) = re.findall(r"!captum-mfv (bench .*)", page)
    status, printed, _ = call([*shown.split(), "--cells", "first-0-5,second-2-7", "--steps", "5", "-q"], capsys)
    assert status == 0
    for name in ("mine-5", "facet-5"):
        assert f"| classes, all | {name} | 2 | 2 |" in printed
    found = [FacetSet.load(path) for path in Path("out/mine/cells").glob("*/facets.safetensors")]
    assert [len(facets) for facets in found] == [2, 2]  # the suite needs no data
