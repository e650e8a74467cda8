"""Interrupted runs, and two processes on one folder."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SPEC, Keyed, small_cnn

from captum_mfv import find_facets, jobs, models
from captum_mfv.errors import RunError
from captum_mfv.metrics import Judge
from captum_mfv.optvis.recipes import RECIPES
from captum_mfv.optvis.render import render_facets
from captum_mfv.runs import writer
from captum_mfv.storage import files
from captum_mfv.storage.identity import dataset_fingerprint
from captum_mfv.storage.untrusted import inside
from captum_mfv.units import Unit

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults.py"

forks = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(), reason="needs a system with fork; a process on a GPU can't"
)


@forks
def test_runs_and_atlases_killed_at_any_point_resume_to_byte_identical_files(tmp_path):
    counts, kinds = tmp_path / "counts.json", ["crops", "whole", "atlas"]
    options = ["--kinds", *kinds, "--points", "4", "--faults", "kill -9", "--json", str(counts)]
    command = [sys.executable, str(FAULTS), *options]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for kind, found in json.loads(counts.read_text()).items():
        assert found["points in the run"] > 200, kind
        assert found["kill -9"] == {"stopped": 4, "half-written": 0, "different": 0}, f"{kind}: {done.stderr}"


class Stop(Exception):
    pass


@pytest.mark.parametrize("recipe", RECIPES)
def test_rendering_resumes_from_its_checkpoint_to_the_same_images(
    recipe, model, facets, planted, tmp_path, monkeypatch
):
    monkeypatch.setattr(files.Checkpoint, "due", True)
    options = {"recipe": recipe, "steps": 12, "input_spec": SPEC, "seed": [0, 3]}
    wanted, steps, stops = render_facets(model, facets, planted[0], **options), [], [1, 7, 12]
    options |= {"checkpoint": tmp_path / "a.safetensors"}

    def stop(step, images):
        steps.append(step)
        if step in stops:
            raise Stop

    for _ in stops:
        with pytest.raises(Stop):
            render_facets(model, facets, planted[0], **options, callback=stop)
    made = render_facets(model, facets, planted[0], **options, callback=stop)
    assert steps == list(range(1, 13)), "no step is done twice"
    for one, other in zip(made, wanted, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.start, other.start)
        assert torch.equal(one.transparency, other.transparency)
        assert one.history.keys() == other.history.keys()
        for name, values in one.history.items():
            assert values.tobytes() == other.history[name].tobytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda facets, images: {"seed": 1}, "seeds"),
        (lambda facets, images: {"recipe": "logit"}, "recipe"),
        (lambda facets, images: {"size": 40}, "size"),
        (lambda facets, images: {"model": small_cnn(1)}, "weights"),
        (lambda facets, images: {"start": images[0]}, "start"),
        (lambda facets, images: {"facets": facets[::-1]}, "facets"),
        (lambda facets, images: {"images": images.flip(0)}, "images"),
        (lambda facets, images: {"key": "other"}, "images"),
    ],
)
def test_a_checkpoint_of_another_rendering_is_an_error_and_kept(change, named, facets, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Checkpoint, "due", True)
    path = tmp_path / "a.safetensors"
    options = {"steps": 2, "input_spec": SPEC, "checkpoint": path}
    first = {"model": small_cnn(), "facets": facets, "images": planted[0], **options}
    render_facets(**first)
    before = path.read_bytes()
    with pytest.raises(RunError, match=f"holds another rendering \\({named} .* there, .* here"):
        render_facets(**{**first, **change(facets, planted[0])})
    assert path.read_bytes() == before
    path.write_bytes(b"not tensors")
    with pytest.raises(RunError, match="can't be continued"):
        render_facets(**first)


def test_a_checkpoint_of_a_dataset_without_a_fingerprint_needs_a_key(model, facets, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Checkpoint, "due", True)
    images = Keyed(planted[0])
    options = {"steps": 2, "input_spec": SPEC, "checkpoint": tmp_path / "a.safetensors"}
    with pytest.raises(RunError, match=r"dataset of type Keyed has no fingerprint.*give key="):
        render_facets(model, facets, images, **options)
    assert not (tmp_path / "a.safetensors").exists()
    (one, *_), (other, *_) = (render_facets(model, facets, images, **options, key="planted") for _ in range(2))
    assert torch.equal(one.image, other.image)


def test_a_checkpoint_changed_at_any_byte_is_an_error(facets, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Checkpoint, "due", True)
    path = tmp_path / "a.safetensors"
    options = {"steps": 4, "input_spec": SPEC, "checkpoint": path}
    render_facets(small_cnn(), facets, planted[0], **options)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    for place in np.linspace(end, len(content) - 1, 12).astype(int):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(RunError, match="can't be continued: it was changed; remove it"):
            render_facets(small_cnn(), facets, planted[0], **options)


@pytest.mark.parametrize(
    "change", ["param.0", "optimizer.0.exp_avg", "generators", "phase", "step", "history.activation"]
)
def test_a_forged_checkpoint_is_an_error(change, facets, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Checkpoint, "due", True)
    save, options = files.Checkpoint.save, {"steps": 4, "input_spec": SPEC, "checkpoint": tmp_path / "a.st"}
    without = {name: torch.ones(2, 3) for name in (change,)}
    monkeypatch.setattr(files.Checkpoint, "save", lambda self, state: save(self, {**state, **without}))
    render_facets(small_cnn(), facets, planted[0], **options)
    with pytest.raises(RunError, match="can't be continued"):
        render_facets(small_cnn(), facets, planted[0], **options)


def test_an_interrupted_collection_resumes_with_the_same_batches(planted, tmp_path):
    class Stopping:
        fingerprint = dataset_fingerprint(planted[0])

        def __init__(self, images, after):
            self.images, self.after = images, after

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            if index >= self.after:
                raise Stop
            return self.images[index]

    options = {"n_facets": 3, "input_spec": SPEC, "batch_size": 16}
    wanted = find_facets(small_cnn(), Unit("fc", 1), planted[0], **options)
    with pytest.raises(Stop):
        find_facets(small_cnn(), Unit("fc", 1), Stopping(planted[0], 41), **options, store=tmp_path / "codes")
    made = find_facets(small_cnn(), Unit("fc", 1), planted[0], **options, store=tmp_path / "codes")
    assert made.fingerprint == wanted.fingerprint


def test_a_folder_is_locked_by_one_process_and_the_error_names_the_process(tmp_path):
    held = f"with hold({str(tmp_path / 'run')!r}):\n print('held', flush=True)\n input()"
    code = f"from captum_mfv.storage.files import hold\n{held}"
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"is in use by process {first.pid} on .* since"), files.hold(tmp_path / "run"):
        pass
    first.kill()
    first.communicate()
    with files.hold(tmp_path / "run"):
        pass
    assert [item.name for item in (tmp_path / "run").iterdir()] == [".lock"], "the folder of another process is kept"


@forks
def test_a_lock_is_exclusive_if_its_file_was_opened_before_the_release(tmp_path):
    import fcntl

    with pytest.raises(Stop), files.hold(tmp_path / "new"):
        opened = os.open(tmp_path / "new" / ".lock", os.O_RDWR)
        raise Stop
    with files.hold(tmp_path / "new"), pytest.raises(BlockingIOError):
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(opened)


def test_a_file_removed_by_another_process_counts_as_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: True)  # the file existed when the folder was listed
    assert inside(tmp_path, ".owner") == tmp_path / ".owner"


def test_a_file_cannot_be_locked_as_a_folder(tmp_path):
    (tmp_path / "file").write_text("words")
    with pytest.raises(RunError, match="can't be a run's folder"), files.hold(tmp_path / "file"):
        pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Yield benchmarks/faults.py as a module, in a folder with the files of a job."""
    spec = importlib.util.spec_from_file_location("faults", FAULTS)
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("job"))
    faults.job = replace(faults.prepare(Path()), facets=2, steps=3)
    yield faults
    os.chdir(before)


@pytest.fixture(scope="module")
def first(finished, tmp_path_factory):
    """Return the folder of the job's run."""
    out = tmp_path_factory.mktemp("first") / "run"
    jobs.run(finished.job, out)
    return out


STAGES = {"top images", "facets", "images", "baseline", "attributions", "metrics", "report"}


def stages_done(caplog):
    """Return the stages that ran since the last call."""
    done = [record.args[0] for record in caplog.records if record.msg == "%s took %.1f s"]
    caplog.clear()
    return done


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"attribution": "Saliency"}, {"attributions", "report"}),
        ({"recipe": "logit"}, {"images", "attributions", "metrics", "report"}),
        ({"steps": 9}, {"images", "baseline", "attributions", "metrics", "report"}),
        ({"seed": 1}, STAGES - {"top images"}),
        ({"top_k": 30}, STAGES),
        ({"top_k": None, "reduce": "max"}, STAGES - {"top images"}),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
@pytest.mark.filterwarnings("ignore::captum_mfv.errors.MFVWarning")  # a few steps gain no activation
def test_an_update_repeats_the_stages_that_depend_on_the_change_and_equals_a_new_run(
    change, redone, finished, first, tmp_path, caplog
):
    caplog.set_level("DEBUG", "captum_mfv")
    out, changed = Path("run"), replace(finished.job, **change)
    shutil.copytree(first, out)
    with pytest.raises(RunError, match=r"holds another run .*--update"):
        jobs.run(changed, out)
    jobs.run(changed, out, update=True)
    assert set(stages_done(caplog)) == redone
    updated = finished.content(out)
    out.rename(tmp_path / "updated")
    stages_done(caplog)
    jobs.run(changed, out)
    assert set(stages_done(caplog)) == (STAGES if changed.top_k else STAGES - {"top images"})
    assert finished.content(out) == updated
    out.rename(tmp_path / "new")


@pytest.mark.filterwarnings("ignore::captum_mfv.errors.MFVWarning")
def test_an_update_keeps_the_evaluation_unless_the_images_change(finished, tmp_path):
    out, job = Path("evaluated"), replace(finished.job, top_k=None)
    model, spec = models.load(job.model)

    def evaluate(folder):
        jobs.evaluate(folder, Judge(model, input_spec=spec), judge_name="itself", controls=["noise start"], model=model)

    evaluate(jobs.run(job, out))
    before = finished.content(out)
    table = {f"{i:02}.png": i % 3 for i in range(48)}
    Path("labels.json").write_text(json.dumps(table))
    for change in ({"attribution": "Saliency"}, {"labels": "labels.json"}):
        jobs.run(replace(job, **change), out, update=True)
        assert json.loads((out / "metrics.json").read_text())["judge"] == json.loads(before["metrics.json"])["judge"]
        assert "Evaluated by an independent network" in (out / "report.html").read_text()
        updated = finished.content(out)
        out.rename(tmp_path / "updated")
        evaluate(jobs.run(replace(job, **change), out))
        assert finished.content(out) == updated
        shutil.rmtree(out)
        (tmp_path / "updated").rename(out)
    folder = jobs.run(replace(job, recipe="logit"), out, update=True)
    assert "judge" not in folder.read_metrics()
    assert not (out / "controls").exists()
    shutil.rmtree(out)


@pytest.mark.filterwarnings("ignore::captum_mfv.errors.MFVWarning")
def test_an_interrupted_update_leaves_no_file_of_the_old_run(finished, first, monkeypatch):
    out, job = Path("killed"), finished.job
    shutil.copytree(first, out)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "remove", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            jobs.run(replace(job, facets=1), out, update=True)
    jobs.run(replace(job, facets=1), out, update=True)
    assert sorted(path.name for path in (out / "images").iterdir()) == [
        "facet_00.png",
        "facet_00_start.png",
        "plain.png",
    ]
    assert not list((out / "attributions").glob("facet_01*"))
    shutil.rmtree(out)


LIMITED = """
import re, resource, sys, warnings
from pathlib import Path
import torch
from torch import nn
from captum_mfv import InputSpec, Unit, find_facets
from captum_mfv.optvis.render import render_facets

torch.set_num_threads(1)
torch.manual_seed(0)
layers = [nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 2)]
wide = nn.Sequential(*layers)
images = torch.rand(24, 3, 96, 96, generator=torch.Generator().manual_seed(0))
options = {"recipe": "logit", "steps": 2, "input_spec": InputSpec(96), "seed": range(8)}
facets = find_facets(wide, Unit("4", 0), images, n_facets=3, input_spec=InputSpec(96))
few = render_facets(wide, facets, images, **options, max_batch=2)
taken = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + 200 * 2**20, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    made = render_facets(wide, facets, images, **options, max_batch=24)
print([str(one.message) for one in caught if "memory" in str(one.message)])
print(max(float((one.image - other.image).abs().max()) for one, other in zip(made, few, strict=True)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's limit on memory")
def test_a_process_with_limited_memory_renders_the_same_images_in_smaller_batches():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    messages, difference = done.stdout.splitlines()
    assert messages == '["memory doesn\'t hold a batch of 24 images; continuing with 12"]'
    assert float(difference) < 1e-3
