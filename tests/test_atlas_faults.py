"""Atlases that are interrupted, whose workers are killed, or in which units fail: nothing is lost or half-written."""

import errno
import os
import shutil
import textwrap
from contextlib import nullcontext
from pathlib import Path

import pytest
from small_atlas import content, settings, write_inputs

from captum_mfv import AtlasFolder, cli
from captum_mfv.errors import MFVWarning, RenderError, RunError
from captum_mfv.jobs import atlas
from captum_mfv.jobs.atlas import coordinator, scan, unit
from captum_mfv.runs import atlas_writer
from captum_mfv.storage import files


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("faults"), 6)


@pytest.fixture(scope="module")
def plain(root):
    """Return the files of an atlas that nothing has disturbed."""
    return content(atlas.run(settings(root), root / "plain").path)


def differing(one, other):
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def command(root, out, *more, capsys):
    options = {**settings(root).given(), "out": out}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with pytest.raises(SystemExit) as ended:
        cli.main(["atlas", *words, *more])
    return ended.value.code, capsys.readouterr()


KILLED = """
    import os
    from pathlib import Path
    import net

    MARKER = Path(__file__).with_name("marker")  # holds the coordinator's process, which stays alive

    def kill_once(module, inputs):
        if MARKER.exists() and os.getpid() != int(MARKER.read_text()):
            MARKER.unlink()
            os.kill(os.getpid(), 9)

    def make():
        model, spec = net.make()
        model.rectified.register_forward_pre_hook(kill_once)
        return model, spec
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_two_processes_of_which_one_is_killed_write_the_files_and_warnings_of_one(root, tmp_path, caplog):
    (root / "killed.py").write_text(textwrap.dedent(KILLED))
    shutil.copytree(root / "images", tmp_path / "images")
    (tmp_path / "images" / "000_a.png").write_text("notes")
    job = settings(root, model=f"{root}/killed.py:make", images=str(tmp_path / "images"))
    made = []
    for jobs in (1, 2):
        if jobs == 2:
            (root / "marker").write_text(str(os.getpid()))
        with pytest.warns(MFVWarning, match=r"left out .*000_a\.png: not an image"):
            made.append(content(atlas.run(job, tmp_path / str(jobs), jobs=jobs).path))
    assert not (root / "marker").exists()
    assert caplog.text.count("a worker was killed; its work is repeated") == 1
    assert differing(*made) == []


def test_an_atlas_ends_if_workers_die_three_times_in_a_row(root, tmp_path, caplog, monkeypatch):
    def dying(function, calls):
        raise coordinator.WorkerDied("killed")

    monkeypatch.setattr(coordinator, "connect", lambda options: nullcontext(dying))
    with pytest.raises(RunError, match=r"workers died 3 times in a row; is memory full\? use fewer --jobs"):
        atlas.run(settings(root), tmp_path / "out")
    assert caplog.text.count("its work is repeated") == 2


# A unit that fails


def fail_unit_1(monkeypatch, error):
    """Make the rendering of unit 1 raise an error."""
    render = unit.render_facets

    def failing(model, facets, *rest, **options):
        if any(facet.unit.index == 1 for facet in facets):
            raise error
        return render(model, facets, *rest, **options)

    monkeypatch.setattr(unit, "render_facets", failing)


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (RenderError("no gradient reaches the image"), "no gradient reaches the image"),
        (RuntimeError("CUDA error:\nan illegal access"), "RuntimeError: CUDA error:\nan illegal access"),
        (MemoryError("3 GB"), "MemoryError: 3 GB"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_error_of_a_unit_that_fails_is_recorded(error, recorded, root, tmp_path, monkeypatch):
    fail_unit_1(monkeypatch, error)
    made = atlas.run(settings(root, units="unit:1"), tmp_path / "out")
    assert made.units == [{"unit": "unit:1", "layer": "unit", "index": 1, "status": "failed", "error": recorded}]


def test_a_unit_that_fails_is_redone_alone(root, plain, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_unit_1(patch, RuntimeError("CUDA error:\nan illegal access"))
        status, printed = command(root, out, capsys=capsys)
        assert status == 3
        assert "unit:1 failed: " in printed.err
        assert printed.out.startswith("5 units: 3 done, 1 failed, 1 dead; 6 facets\n")
        assert command(root, out, "--quiet", capsys=capsys)[0] == 3, "it is not repeated by itself"
        assert command(root, out, "--quiet", "--retry-failed", capsys=capsys)[0] == 3
        assert command(root, tmp_path / "shard", "--quiet", "--shard", "0/1", capsys=capsys)[0] == 3
    folder = AtlasFolder.read(out)
    assert folder.finished
    assert [row["status"] for row in folder.units] == ["done", "failed", "dead", "done", "done"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("units/unit/*.json")}
    status, _ = command(root, out, "--retry-failed", "--quiet", capsys=capsys)
    assert status == 0
    after = {path: path.stat().st_mtime_ns for path in out.glob("units/unit/*.json")}
    assert [path.stem for path in after if after[path] != before[path]] == ["1"]
    names = differing(content(out), plain)  # unit 0 was synthesized without unit 1, with which it shares a batch
    assert not [name for name in names if name.startswith(("images", "units/")) and "/0" not in name]


NANS = """
    import torch
    import net

    def make():
        model, spec = net.make()

        def some(module, inputs, output):
            wrong = torch.full_like(output[:, 1:2], float("nan"))
            return torch.cat([output[:, :1], wrong, output[:, 2:]], 1)

        model.unit.register_forward_hook(some)
        return model, spec
"""


def test_a_unit_that_is_never_finite_has_failed_and_is_not_dead(root, tmp_path):
    (root / "nans.py").write_text(textwrap.dedent(NANS))
    made = atlas.run(settings(root, model=f"{root}/nans.py:make", units="unit:0-2"), tmp_path / "out")
    assert [row["status"] for row in made.units] == ["done", "failed", "dead"]
    assert "isn't finite on any of 18 images; look for NaN in the weights" in made.units[1]["error"]


# The coordinator


@pytest.mark.parametrize("calls", [1, 9, 30])
def test_a_full_disk_is_one_line_and_the_same_command_resumes(calls, root, plain, tmp_path, capsys, monkeypatch):
    left, write = [calls], atlas_writer.write_whole

    def full(path: Path, whole: bytes) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, whole)

    with monkeypatch.context() as patch:
        patch.setattr(atlas_writer, "write_whole", full)
        status, printed = command(root, tmp_path / "out", "--quiet", capsys=capsys)
    assert (status, printed.err.count("\n"), "No space left" in printed.err) == (2, 1, True)
    assert command(root, tmp_path / "out", "--quiet", capsys=capsys)[0] == 0
    assert differing(content(tmp_path / "out"), plain) == []


def test_ctrl_c_is_resumed_by_the_same_command(root, plain, tmp_path, capsys, monkeypatch):
    done, process = [], coordinator.process

    def stopping(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return process(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "process", stopping)
        assert command(root, tmp_path / "out", capsys=capsys)[0] == 130
    assert AtlasFolder.read(tmp_path / "out").progress().startswith("running: 2 of 5 units")
    with pytest.raises(RunError, match=r"units\.json can't be read"):
        _ = AtlasFolder.read(tmp_path / "out").units
    assert command(root, tmp_path / "out", "--quiet", capsys=capsys)[0] == 0
    assert differing(content(tmp_path / "out"), plain) == []


def test_one_coordinator_at_a_time_uses_a_folder(root, tmp_path):
    out = tmp_path / "out"
    with files.hold(out), pytest.raises(RunError, match=f"is in use by process {os.getpid()} on .* since"):
        atlas.run(settings(root), out)
    shard = out / ".shards" / "0-of-2"
    with files.hold(shard):
        for options in ({"shard": "0/2"}, {"merge": True}, {}):
            with pytest.raises(RunError, match=f"0-of-2 is in use by process {os.getpid()}"):
                atlas.run(settings(root), out, **options)
        atlas.run(settings(root), out, shard="1/2")
    atlas.run(settings(root), out, shard="0/2")
    assert atlas.run(settings(root), out, merge=True).finished


def test_a_shard_scans_what_an_unfinished_shard_has_not(root, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("captum_mfv.jobs.atlas.plan._PART", 6)  # three parts; the first shard has two of them
    monkeypatch.setattr("captum_mfv.jobs.atlas.plan.BATCH", 6)
    scanned, one = [], scan.scan_part

    def stopping(plan, part, workers=0):
        scanned.append(part.start)
        if len(scanned) == 2:
            raise KeyboardInterrupt
        return one(plan, part, workers)

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "scan_part", stopping)
        patch.setattr(files.Checkpoint, "due", True)
        with pytest.raises(KeyboardInterrupt):
            atlas.run(settings(root), tmp_path / "out", shard="0/2")
        atlas.run(settings(root), tmp_path / "out", shard="1/2")
        assert scanned == [0, 12, 6, 12], "the first part is read from the first shard's file"
        atlas.run(settings(root), tmp_path / "out", shard="0/2")
        assert len(scanned) == 4, "and the last part is there by now"
    made = content(atlas.run(settings(root), tmp_path / "out", merge=True).path)
    assert differing(made, plain) == []


def test_an_unreadable_record_is_named_and_redone_once_removed(root, plain, tmp_path):
    out = tmp_path / "out"
    atlas.run(settings(root), out)
    (out / "units/unit/3.json").write_text('{"key": 1')
    with pytest.raises(RunError, match=r"3\.json can't be read.*remove it to redo the unit"):
        atlas.run(settings(root), out)
    (out / "units/unit/3.json").unlink()
    atlas.run(settings(root), out)
    assert differing(content(out), plain) == []
