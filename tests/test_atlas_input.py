"""What an atlas takes: units, datasets, class folders and options; everything else is an error in one line."""

import importlib
import re
import shutil
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_atlas import content, settings, write_inputs

from captum_mfv import AtlasFolder, cli
from captum_mfv.errors import RunError
from captum_mfv.jobs import atlas
from captum_mfv.jobs.atlas.plan import load_plan, parse_units
from captum_mfv.runs.settings import ATLAS

estimates = importlib.import_module("captum_mfv.jobs.atlas.estimate")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with a model file, images, class folders, files of units, and files that can't be used."""
    root = write_inputs(tmp_path_factory.mktemp("inputs"), 6)
    for number, name in enumerate(("discs", "stripes", "checks")):
        (root / "photos" / name).mkdir(parents=True)
        for path in (root / "images").glob(f"*_{number}.png"):
            shutil.copy(path, root / "photos" / name)
    (root / "classes.json").write_text('{"discs": 0, "checks": 2}')
    (root / "twice.json").write_text('{"discs": 0, "checks": 0}')
    (root / "wrong.json").write_text('["discs"]')
    (root / "gone.json").write_text('{"gone": 0}')
    (root / "units.txt").write_text("unit:0, 1  # the first two\r\n\n# nothing\ndetectors:0-1\n")
    (root / "empty").mkdir()
    (root / "text").mkdir()
    (root / "text" / "notes.png").write_text("notes")
    (root / "one").mkdir()
    shutil.copy(root / "images" / "000_0.png", root / "one")
    (root / "data.py").write_text(textwrap.dedent(DATA))
    np.save(root / "direction.npy", np.array([1.0, 0, 0, 0, -1]))
    return root


DATA = """
    from pathlib import Path
    from captum_mfv import ImageFolder, InputSpec

    class Images:
        def __init__(self):
            self.folder = ImageFolder(Path(__file__).parent / "images", InputSpec(32))

        def __len__(self):
            return len(self.folder)

        def __getitem__(self, index):
            return self.folder[index]

    class Marked(Images):
        fingerprint = "red discs, version 1"

    class Nothing(Marked):
        def __len__(self):
            return 0

    class Failing(Marked):
        def __init__(self):
            raise OSError("the disk is asleep")

    def a_number():
        return 3
"""


def call(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def words(folder, output, **changes):
    given = {**settings(folder).given(), "out": output, **changes}
    flat = [[f"--{name.replace('_', '-')}", value] for name, value in given.items() if value is not None]
    return ["atlas", *(part for pair in flat for part in (pair[:1] if pair[1] is True else pair))]


# Units


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.b:0-3", [("a.b", 0), ("a.b", 1), ("a.b", 2), ("a.b", 3)]),
        ("a:1, 5 ,b:2-2,7", [("a", 1), ("a", 5), ("b", 2), ("b", 7)]),
        ("a[1]:3", [("a[1]", 3)]),
        ("a:*,b:*", ["a:*", "b:*"]),
        ("a:2,*", [("a", 2), "a:*"]),
        ("", []),
    ],
)
def test_units_are_ranges_and_lists_of_several_layers(text, wanted):
    found = [one if isinstance(one, str) else (one.layer, one.index) for one in parse_units(text)]
    assert found == wanted


def test_units_of_a_file_and_equal_units_are_listed_once(root):
    plan = load_plan(settings(root, units=str(root / "units.txt")), root / "none")
    assert [str(unit) for unit in plan.units] == ["unit:0", "unit:1", "detectors:0", "detectors:1"]
    plan = load_plan(settings(root, units=f"unit:1,0-2,1,unit:{root}/direction.npy"), root / "none")
    assert [str(unit) for unit in plan.units] == ["unit:1", "unit:0", "unit:2", "unit:direction[5]"]
    assert [
        len(group) for group in load_plan(settings(root, units="unit:*,detectors:*"), root / "none").groups(range(8))
    ] == [2, 2, 1, 2, 1]


BAD = {
    "a layer without index": ({"units": "features.12"}, "unit 'features.12' isn't LAYER:INDEX"),
    "a range that descends": ({"units": "unit:3-1"}, "units 'unit:3-1': a range goes from a lower to a higher index"),
    "a range without end": ({"units": "unit:1-"}, "unit 'unit:1-' isn't LAYER:INDEX"),
    "an index without layer": ({"units": "3,unit:1"}, "unit '3' isn't LAYER:INDEX"),
    "an index beyond the layer": ({"units": "unit:0-9"}, "units 0 to 4; there is no unit 5"),
    "an unknown layer": ({"units": "conv7:*"}, "no layer 'conv7'"),
    "no units": ({"units": " "}, "units must name at least one unit, such as"),
    "no file of units": ({"units": "{root}/none.txt"}, "isn't LAYER:INDEX"),
    "a range of everything": ({"units": "unit:0-99999999"}, "by at most 1000000"),
    "neither images nor class folders": ({"images": None}, "give images, which are scanned, or class_folders"),
    "images and class folders": (
        {"class_folders": "{root}/photos", "classes": "{root}/classes.json"},
        "give images, which are scanned, or class_folders",
    ),
    "class folders without classes": ({"images": None, "class_folders": "{root}/photos"}, "need each other"),
    "classes without class folders": ({"classes": "{root}/classes.json"}, "need each other"),
    "classes that are a list": ({"classes": "{root}/wrong.json"}, "wrong.json isn't a JSON table"),
    "classes without a unit's folder": ({"units": "classes:0-2"}, "classes has no folder for classes:1"),
    "a class folder that doesn't exist": ({"classes": "{root}/gone.json"}, "gone' isn't a folder of images"),
    "two folders of a class": ({"classes": "{root}/twice.json"}, "has two folders for class 0"),
    "fewer top images than facets": ({"facets": 9}, "top_k must be at least the number of facets, 9, not 8"),
    "more facets than images": ({"facets": 40, "top_k": 50}, "40 facets can't be found in 18 images"),
    "no facets": ({"facets": 0}, "facets must be at least 1 or 'auto', not 0"),
    "no largest number": ({"max_facets": 0}, "max-facets must be at least 1, not 0"),
    "a shard without total": ({"shard": "3"}, "--shard must be I/N.*not '3'"),
    "a shard beyond the last": ({"shard": "4/4"}, "--shard must be I/N, from 0/N to N-1/N"),
    "a shard and a merge": ({"shard": "0/4", "merge": True}, "--shard and --merge are mutually exclusive"),
    "a merge of nothing": ({"merge": True}, "5 of 5 units aren't done; run the shards that are left"),
    "an unknown engine": ({"engine": "spark"}, "engine must be 'processes', 'dask' or 'ray', not 'spark'"),
    "an address of no cluster": ({"address": "tcp://10.0.0.1:8786"}, "address needs engine dask or ray"),
    "no jobs": ({"jobs": 0}, "jobs must be at least 1, not 0"),
    "a folder in use": ({"out": "{root}/text"}, "isn't empty and holds no atlas"),
    "a file as a folder": ({"out": "{root}/net.py"}, "is a file; choose another folder for the atlas"),
    "a missing folder of images": ({"images": "/nowhere"}, "isn't a folder of images"),
    "an empty folder of images": ({"images": "{root}/empty"}, "holds no images"),
    "unreadable images": ({"images": "{root}/text", "facets": 1}, "no image can be read"),
    "a dataset without fingerprint": ({"images": "{root}/data.py:Images"}, "data.py:Images.*fingerprint"),
    "a dataset without images": ({"images": "{root}/data.py:Nothing"}, "holds no images"),
    "a dataset that is a number": ({"images": "{root}/data.py:a_number"}, "must return a map-style dataset, not int"),
    "a dataset that fails": ({"images": "{root}/data.py:Failing"}, "data.py:Failing.*the disk is asleep"),
    "no such function": ({"images": "{root}/data.py:none"}, "has no function 'none'"),
    "no such module": ({"images": "no.such.module:images"}, "no.such.module:images.*No module named"),
    "an unknown recipe": ({"recipe": "papermean"}, "no recipe 'papermean'"),
    "an unknown device": ({"device": "gpu"}, "--device gpu can't be used"),
}


@pytest.mark.filterwarnings("ignore::captum_mfv.errors.MFVWarning")
@pytest.mark.parametrize("case", BAD)
def test_what_an_atlas_cannot_use_is_one_line_exit_2_and_no_traceback(case, root, tmp_path, capsys):
    changes, message = BAD[case]
    if "classes" in changes and changes.get("images", 1) and "class_folders" not in changes and "units" not in changes:
        changes = {"class_folders": "{root}/photos", "images": None, "units": "classes:0", **changes}
    if case == "classes without class folders":
        changes = {"classes": "{root}/classes.json"}
    if case == "classes without a unit's folder":
        changes = {**changes, "images": None, "class_folders": "{root}/photos", "classes": "{root}/classes.json"}
    changes = {name: value.format(root=root) if isinstance(value, str) else value for name, value in changes.items()}
    status, printed, error = call([*words(root, tmp_path / "out", **changes), "--quiet"], capsys)
    lines = [line for line in error.splitlines() if "left out" not in line]
    assert (status, printed, len(lines)) == (2, "", 1), error
    assert re.search(message, lines[0]), lines[0]
    assert not [path.name for path in tmp_path.glob("out/[!.]*") if path.name != "manifest.json"]


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_an_engine_without_its_library_names_the_extra(engine, root, tmp_path, capsys, monkeypatch):
    load = importlib.import_module

    def without(name, package=None):
        if name.partition(".")[0] in ("distributed", "ray"):
            raise ImportError(f"No module named {name!r}")
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    status, _, error = call(words(root, tmp_path / "out", engine=engine, quiet=True), capsys)
    assert (status, error.count("\n")) == (2, 1)
    assert f'--engine {engine} needs {engine}: pip install "captum-mfv[{engine}]"' in error


# Datasets


def test_a_dataset_in_python_is_scanned_by_index_and_its_fingerprint_is_kept(root, tmp_path, capsys):
    made = atlas.run(settings(root, images=f"{root}/data.py:Marked", units="unit:0"), tmp_path / "out")
    plain = atlas.run(settings(root, units="unit:0"), tmp_path / "plain")
    paths = [[member["path"] for row in one.facets for member in row["members"]] for one in (made, plain)]
    names = sorted(path.name for path in (root / "images").iterdir())
    assert [names[int(path)] for path in paths[0]] == paths[1]
    assert made.manifest["settings"]["images_hash"] == "red discs, version 1"


def test_a_unit_of_a_class_reads_the_images_of_its_folder(root, tmp_path, capsys):
    given = {"images": None, "class_folders": root / "photos", "classes": root / "classes.json"}
    status, printed, _ = call(words(root, tmp_path / "out", units="classes:2,0", **given), capsys)
    assert (status, printed.startswith("2 units: 2 done; 4 facets\n")) == (0, True)
    folder = AtlasFolder.read(tmp_path / "out")
    for row in folder.facets:
        kind = {"classes:0": "discs", "classes:2": "checks"}[row["unit"]]
        assert {member["path"].partition("/")[0] for member in row["members"]} == {kind}
        assert "crop" not in row["members"][0]
    assert [row["n_images"] for row in folder.units] == [6, 6]
    assert folder.unit("classes:2").images[0].shape == (3, 32, 32)
    assert folder.unit("classes:2").facets.unit.reduce == "mean"


def test_an_atlas_of_one_image_has_one_facet_of_each_unit(root, tmp_path):
    made = atlas.run(settings(root, images=str(root / "one"), units="unit:0-1,detectors:*", facets="auto"), tmp_path)
    found = {row["unit"]: (row["status"], row.get("n_facets"), row.get("p_value")) for row in made.units}
    assert found["unit:0"] == found["unit:1"] == found["detectors:0"] == ("done", 1, 1.0)


def test_unreadable_images_are_left_out_and_named(root, tmp_path, capsys):
    shutil.copytree(root / "images", tmp_path / "images")
    (tmp_path / "images" / "000_a.png").write_text("notes")
    options = {"images": tmp_path / "images", "units": "unit:0"}
    status, _, error = call([*words(root, tmp_path / "out", **options), "--quiet"], capsys)
    assert (status, error.count("\n"), "left out" in error, "000_a.png" in error) == (0, 1, True, True)
    plain = atlas.run(settings(root, units="unit:0"), tmp_path / "plain")
    assert AtlasFolder.read(tmp_path / "out").facets == plain.facets


BANDS = """
    import torch
    from torch import nn
    from captum_mfv import InputSpec

    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(13, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, 2, 1), nn.ReLU())
        return net, InputSpec(16, (0.2,) * 13, (0.1,) * 13, value_range=(0, 10_000), rgb=(3, 2, 1))
"""


def test_images_of_many_channels_are_stored_with_all_of_them(tmp_path):
    (tmp_path / "net.py").write_text(textwrap.dedent(BANDS))
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        np.save(tmp_path / "images" / f"{number:02d}.npy", rng.integers(0, 9000, (13, 16, 16), np.uint16))
    made = atlas.run(settings(tmp_path, units="2:*", batch=1), tmp_path / "out")
    together = atlas.run(settings(tmp_path, units="2:*", batch=4), tmp_path / "together")
    done = [row for row in made.units if row["status"] == "done"]
    for name in (row["unit"] for row in done):  # colors are measured on the unit's own images
        torch.testing.assert_close(made.unit(name).images, together.unit(name).images, atol=1e-3, rtol=0)
    row, one = done[0], made.unit(done[0]["unit"])
    index = row["index"]
    size = one.images[0].shape[-1]
    assert one.images[0].shape == (13, size, size)
    assert np.load(made.path / f"images/2/{index}_0.npy").shape == (13, size, size)
    with Image.open(made.path / f"images/2/{index}_0.webp") as shown:
        assert (shown.mode, shown.size) == ("RGB", (size, size))


def test_latents_of_an_autoencoder_are_units(root, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    weights = {"W_enc": torch.rand(5, 7, generator=generator) - 0.3, "W_dec": torch.rand(7, 5, generator=generator)}
    weights |= {"b_enc": torch.zeros(7), "b_dec": torch.zeros(5)}
    save_file(weights, tmp_path / "sae.safetensors", metadata={"activation": "relu", "subtract_b_dec": "false"})
    given = words(root, tmp_path / "out", units="relu:*", sae=tmp_path / "sae.safetensors")
    status, _, error = call(given, capsys)
    assert status == 0, error
    folder = AtlasFolder.read(tmp_path / "out")
    assert len(folder.units) == 7
    name = next(row["unit"] for row in folder.units if row["status"] == "done")
    assert len(folder.manifest["settings"]["sae_hash"]) == 32
    assert isinstance(folder.unit(name).facets.unit.encoder, str)


# Settings


def test_relative_paths_of_a_config_are_relative_to_the_file(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (root / "atlas.toml").write_text('units = "unit:0-3,relu:1"\nimages = "images"\nmodel = "net.py:make"\n')
    found = ATLAS.read_toml(root / "atlas.toml")
    assert found == {"units": "unit:0-3,relu:1", "images": str(root / "images"), "model": f"{root}/net.py:make"}
    (root / "atlas.toml").write_text('units = "units.txt"\nimages = "data.py:Marked"\n')
    assert ATLAS.read_toml(root / "atlas.toml") == {"units": f"{root}/units.txt", "images": f"{root}/data.py:Marked"}
    (root / "atlas.toml").write_text('images = "captum_mfv.datasets:digits"\n')
    assert ATLAS.read_toml(root / "atlas.toml") == {"images": "captum_mfv.datasets:digits"}


def test_other_settings_need_update_which_redoes_the_units_that_depend_on_them(root, tmp_path, capsys):
    def run(folder, **changes):
        return call([*words(root, folder, **{"units": "unit:0-1", **changes}), "--quiet"], capsys)

    out = tmp_path / "out"
    assert run(out)[0] == 0
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    for change, named in (
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"units": "unit:1"}, "units unit:0-1 there, unit:1 here"),
        ({"batch": 1}, "batch 2 there, 1 here"),
    ):
        status, _, error = run(out, **change)
        assert (status, error.count("\n")) == (2, 1)
        assert f"holds another atlas ({named}" in error
        assert "--update to redo the units that depend on what changed" in error
    assert run(out, units="unit:0-3", update=True)[0] == 0
    kept = {path: path.stat().st_mtime_ns for path in out.glob("units/unit/[01].safetensors")}
    assert kept == {path: time for path, time in first.items() if path in kept}, "known units are left as they are"
    assert len(AtlasFolder.read(out).units) == 4
    assert run(out, units="unit:1-2", seed=1, facets=1, update=True)[0] == 0
    assert run(tmp_path / "new", units="unit:1-2", seed=1, facets=1)[0] == 0
    assert content(out) == content(tmp_path / "new"), "no file of other units or facets stays"
    assert "finished: 2 of 2 units" in AtlasFolder.read(out).progress()


def test_a_changed_file_of_units_is_another_atlas(root, tmp_path):
    (tmp_path / "units.txt").write_text("unit:0")
    job = settings(root, units=str(tmp_path / "units.txt"))
    atlas.run(job, tmp_path / "out")
    (tmp_path / "units.txt").write_text("unit:0-1")
    with pytest.raises(RunError, match=r"holds another atlas \(units_hash .*--update"):
        atlas.run(job, tmp_path / "out")
    assert len(atlas.run(job, tmp_path / "out", update=True).units) == 2


def test_changed_images_of_a_class_are_another_atlas_and_redo_its_unit_alone(root, tmp_path):
    shutil.copytree(root / "photos", tmp_path / "photos")
    given = {"images": None, "class_folders": str(tmp_path / "photos"), "classes": str(root / "classes.json")}
    job, out = settings(root, units="classes:0,2", **given), tmp_path / "out"
    atlas.run(job, out)
    before = (out / "units/classes/0.safetensors").stat().st_mtime_ns
    (tmp_path / "photos" / "checks" / "new.png").write_bytes((root / "one" / "000_0.png").read_bytes())
    with pytest.raises(RunError, match=r"holds another atlas \(images_hash "):
        atlas.run(job, out)
    assert [row["n_images"] for row in atlas.run(job, out, update=True).units] == [6, 7]
    assert (out / "units/classes/0.safetensors").stat().st_mtime_ns == before


# Status and estimate


def test_status_counts_the_units_that_are_done(root, tmp_path, capsys):
    atlas.run(settings(root, units="unit:0-1"), tmp_path / "out", shard="0/2")
    (tmp_path / "out" / "units" / "unit" / "nowhere.json").symlink_to(tmp_path / "nothing")
    status, printed, _ = call(["status", tmp_path / "out"], capsys)
    assert (status, printed.startswith("running: 2 of 2 units")) == (0, True), printed
    atlas.run(settings(root, units="unit:0-1"), tmp_path / "out", merge=True)
    assert call(["status", tmp_path / "out"], capsys)[1].startswith("finished: 2 of 2 units")
    for other in (tmp_path, root / "images", tmp_path / "none"):
        status, printed, error = call(["status", other], capsys)
        assert (status, printed, error.count("\n"), "holds no atlas" in error) == (2, "", 1, True)


@pytest.mark.parametrize("recipe", ["facet", "paper-center-biased"])  # of one phase, and of several
def test_an_estimate_adds_the_measured_rates(recipe, root, tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(estimates, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr("captum_mfv.jobs.atlas.unit.perf_counter", lambda: float(next(ticks)))
    job = settings(root, units="unit:0-1,3-4", batch=4, recipe=recipe, steps=90)
    found = atlas.estimate(job, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert (found.n_images, found.n_units, found.n_facets, found.jobs) == (18, 4, 8, 1)
    assert list(found.seconds) == ["scan", "codes", "facets", "images", "scores"]
    assert found.seconds["scan"] == pytest.approx(1)  # one tick for all 18 images
    assert found.seconds["facets"] == found.seconds["scores"] == pytest.approx(1)
    assert found.total == pytest.approx(sum(found.seconds.values()))
    assert found.disk > 4 * 1000
    assert found.text().splitlines()[0] == "18 images, 4 units, about 8 facets, --jobs 1"


def test_an_estimate_divides_the_work_by_the_number_of_processes(root):
    plan = load_plan(settings(root, units="unit:0-3", steps=10), root / "none")
    rates = {"image": 0.5, "crop": 0.25, "facets": 1.0, "step": 0.1, "start": 0.5, "scores": 2.0, "n_facets": 2.0}
    one = estimates._Rates(**rates, disk=1000.0, memory=10**9)
    found = estimates._total(plan, 2, [one, one])
    wanted = {"scan": 18 * 0.5, "codes": 4 * 8 * 0.25, "facets": 4, "images": 8 * (0.5 + 10 * 0.1), "scores": 8}
    assert found.seconds == {name: pytest.approx(seconds / 2) for name, seconds in wanted.items()}
    assert (found.n_facets, found.disk, found.memory) == (8, 4000, 2 * 10**9)
    assert "disk 0 MB, memory 2.0 GB" in found.text()


def test_a_dry_run_prints_the_estimate_and_writes_nothing(root, tmp_path, capsys):
    status, printed, _ = call([*words(root, tmp_path / "out", units="unit:0"), "--dry-run", "--quiet"], capsys)
    assert (status, printed.splitlines()[0]) == (0, "18 images, 1 units, about 2 facets, --jobs 1")
    assert not (tmp_path / "out").exists()
