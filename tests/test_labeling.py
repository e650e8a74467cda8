"""Labels of a run's and of an atlas's facets: through the command, in the folder, and on the pages."""

import json
import re
import shutil
import textwrap
from dataclasses import replace

import pytest
import torch
from conftest import in_browser

import captum_mfv as mfv
from captum_mfv import AtlasFolder, RunFolder, cli, figures, jobs, report
from captum_mfv.errors import RunError
from captum_mfv.jobs import atlas
from captum_mfv.labels import AppearanceNamer, ClassifierNamer
from captum_mfv.report import atlas as atlas_page
from captum_mfv.report.publication import publish

pytestmark = pytest.mark.filterwarnings("ignore:no image without facets")  # noise doesn't activate the unit

COLORS = ("red", "green", "blue", "yellow")
EVIL = "<img src=x onerror=hacked=1></script><script>hacked=1</script>"

NETS = """
    import torch
    from torch import nn
    from captum_mfv.datasets import PLANTED_SPEC, planted_network

    class Strongest(nn.Module):
        # Whether a color of the planted network is there: a classifier of five classes
        def __init__(self):
            super().__init__()
            self.layers = planted_network()[0][:2]

        def forward(self, images):
            return 10 * self.layers(images).mean((2, 3))

    def make():
        return Strongest().eval(), PLANTED_SPEC
"""


def write_discs(folder, n_each=16):
    """Write images of discs of four colors, NUMBER_COLOR.png."""
    folder.mkdir()
    images, colors = mfv.datasets.planted_images(n_each, distractor=5)
    for number, (image, color) in enumerate(zip(images, colors.tolist(), strict=True)):
        mfv.images.to_pil(image).save(folder / f"{number:03}_{COLORS[color]}.png")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with images, a classifier, and lists of words."""
    root = tmp_path_factory.mktemp("labeling")
    write_discs(root / "discs")
    (root / "nets.py").write_text(textwrap.dedent(NETS))
    (root / "words.txt").write_text("a red thing\na green thing\na blue thing\na yellow thing\na cyan thing\n")
    (root / "empty.txt").write_text("# nothing\n\n")
    (root / "twice.txt").write_text("red\nred\n")
    return root


def job(root, **changes):
    options = {"model": "captum_mfv.datasets:planted_network", "unit": "unit:0", "images": str(root / "discs")}
    return jobs.RunSettings(**{**options, "facets": 4, "steps": 8, "code": "rectified", "device": "cpu", **changes})


@pytest.fixture(scope="module")
def finished(root):
    """Return the folder of a finished run with four known facets."""
    return jobs.run(job(root), root / "run").path


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def many(root):
    """Return the folder of an atlas: a unit of four facets, four units of one, and a dead one."""
    given = {"model": "captum_mfv.datasets:planted_network", "units": "unit:0,rectified:0-3", "reduce": "mean"}
    given |= {"images": str(root / "discs"), "top_k": 64, "max_facets": 4, "steps": 4, "device": "cpu"}
    return atlas.run(atlas.AtlasSettings(**given), root / "atlas").path


def call(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def color_of(row):
    """Return the color of a facet's members, from their files' names; the facet must have a single one."""
    (color,) = {re.split("[_.]", member["path"])[1] for member in row["members"]}
    return color


# A run


def test_facets_of_colors_are_named_by_the_command_and_the_page_shows_it(out, capsys):
    status, printed, errors = call(["label", out, "--with", "colors", "--quiet"], capsys)
    assert (status, errors) == (0, "")
    run = RunFolder.read(out)
    wanted = [color_of(row) for row in run.read_members()]
    labels = run.read_labels()
    assert [label.text for label in labels.facets] == wanted
    assert (labels.namer, labels.n_words, labels.seed) == ("colors", len(AppearanceNamer().words), 0)
    facets = run.read_facets()
    for label, facet in zip(labels.facets, facets, strict=True):
        assert set(label.evidence) <= set(facet.members.tolist())
        assert 0.5 < label.score.low < label.score.value == label.score.high == 1
        assert label.score.n == len(facet) / 2
    lines = printed.splitlines()
    assert lines[0].split() == ["facet", "label", "AUROC", "image", "other", "words"]
    for index, color in enumerate(wanted):
        assert re.match(rf"{index} +{color} +1\.00 \(0\.\d\d to 1\.00\)", lines[index + 1])
    assert lines[-1] == f"page: {out / 'report.html'}"
    page = (out / "report.html").read_text()
    assert page.count("AUROC 1.00 (0.") == 4
    assert "4 of 4" in page


def test_a_classifier_names_facets_by_its_classes(root, out, capsys):
    words = ["label", out, "--with", f"{root}/nets.py:make", "--words", root / "words.txt", "--device", "cpu"]
    assert call([*words, "--quiet"], capsys)[0] == 0
    run = RunFolder.read(out)
    assert [label.text for label in run.read_labels().facets] == [
        f"a {color_of(row)} thing" for row in run.read_members()
    ]
    assert "nets.py:make" in (out / "report.html").read_text()
    before = (out / "labels.json").read_bytes()
    assert call([*words, "--quiet"], capsys)[0] == 0
    assert (out / "labels.json").read_bytes() == before
    assert call(["label", out, "--with", "colors", "--quiet"], capsys)[0] == 0  # other labels replace them
    assert run.read_labels().namer == "colors"


@pytest.mark.parametrize("kind", ["run", "atlas"])
def test_words_that_a_namer_declares_comparable_are_chosen_among_the_highest(kind, out, many, tmp_path):
    """One word differs most between facets, but is never among the ten highest."""
    colors = AppearanceNamer()

    def namer(images):
        few = colors(images)[:, :3]
        return torch.cat([few - 100, torch.zeros(len(images), 10)], 1)

    namer.words, namer.comparable = [str(i) for i in range(13)], True
    if kind == "run":
        found = jobs.label(RunFolder.read(out), namer, namer_name="ours").facets
    else:
        units = jobs.label(AtlasFolder.read(shutil.copytree(many, tmp_path / "atlas")), namer, namer_name="ours").units
        found = [label for unit in units.values() for label in (unit.unit, *unit.facets)]
    assert {label.best for label in found} == {None}


def test_an_update_keeps_labels_unless_facets_or_images_change(root, finished, out, capsys):
    run = RunFolder.read(out)
    jobs.label(run, AppearanceNamer(), namer_name="colors")
    before = (out / "labels.json").read_bytes()
    jobs.run(job(root, attribution="Saliency"), out, update=True)
    assert (out / "labels.json").read_bytes() == before
    assert "AUROC" in (out / "report.html").read_text()
    for change in ({"steps": 9}, {"facets": 3}):
        shutil.rmtree(out)
        shutil.copytree(finished, out)
        jobs.label(RunFolder.read(out), AppearanceNamer(), namer_name="colors")
        jobs.run(job(root, **change), out, update=True)
        assert not (out / "labels.json").exists()
        assert RunFolder.read(out).read_labels() is None
        assert "AUROC" not in (out / "report.html").read_text()


def test_one_facet_is_named_against_other_images_and_has_no_label_without_them(root, tmp_path, capsys):
    (tmp_path / "reds").mkdir()
    (tmp_path / "others").mkdir()
    for path in (root / "discs").iterdir():
        shutil.copy(path, tmp_path / ("reds" if "red" in path.name else "others"))
    run = jobs.run(job(root, images=str(tmp_path / "reds"), facets=1), tmp_path / "run")
    assert call(["label", run.path, "--with", "colors", "--quiet"], capsys)[1].splitlines()[1] == "0      not tested"
    status, printed, _ = call(["label", run.path, "--with", "colors", "--others", tmp_path / "others", "-q"], capsys)
    assert (status, printed.splitlines()[1].split()[:2]) == (0, ["0", "red"])


MISUSE = {
    "no run": (["gone", "--with", "colors"], "gone holds no run that can be read"),
    "unknown name": (["run", "--with", "resnet51"], "no torchvision model 'resnet51'"),
    "no words": (["run", "--with", "nets.py:make", "--words", "empty.txt"], "must be 1 to 100000 words, not 0"),
    "words twice": (["run", "--with", "nets.py:make", "--words", "twice.txt"], "'red' is there twice"),
    "no file": (["run", "--with", "nets.py:make", "--words", "gone.txt"], "gone.txt can't be read as a list of words"),
    "no names": (["run", "--with", "nets.py:make"], "words are needed for a model of 5 classes"),
    "words of colors": (["run", "--with", "colors", "--words", "words.txt"], "colors have words of their own"),
    "weights of colors": (["run", "--with", "colors", "--weights", "w.safetensors"], "colors have words of their own"),
    "a run's images": (["run", "--with", "colors", "--images", "discs"], "images are for an atlas"),
    "others": (["run", "--with", "colors", "--others", "discs"], "others are for a run with one facet; 4 facets are"),
    "an atlas's others": (["atlas", "--with", "colors", "--others", "discs"], "others are for a run; an atlas"),
    "other images": (["atlas", "--with", "colors", "--images", "few"], "few isn't the dataset of"),
    "no namer": (["run"], "Missing option '--with'"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_one_line_and_changes_nothing(name, root, finished, many, capsys, monkeypatch):
    words, message = MISUSE[name]
    monkeypatch.chdir(root)
    (root / "few").mkdir(exist_ok=True)
    shutil.copy(root / "discs" / "000_red.png", root / "few")
    before = {path: path.read_bytes() for path in (*finished.glob("*.*"), *many.glob("*.*"))}
    status, printed, error = call(["label", *words, "-q"], capsys)
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert message in error
    assert {path: path.read_bytes() for path in (*finished.glob("*.*"), *many.glob("*.*"))} == before


def test_an_unfinished_run_and_missing_images_are_refused(root, out, capsys):
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    status, _, error = call(["label", out, "--with", "colors"], capsys)
    assert (status, "isn't finished; rerun the command" in error) == (2, True)
    manifest["settings"]["images"] = f"{root}/gone"
    (out / "manifest.json").write_text(json.dumps(manifest))
    status, _, error = call(["label", out, "--with", "colors"], capsys)
    assert (status, "the run's images are gone" in error) == (2, True)
    assert not (out / "labels.json").exists()


def change_labels(out, change):
    """Change the file of a run's labels."""
    labels = json.loads((out / "labels.json").read_text())
    change(labels)
    (out / "labels.json").write_text(json.dumps(labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels["facets"].pop(), "labels.json isn't of the facets"),
        (lambda labels: labels["facets"].reverse(), "labels must be of facets 0, 1, 2"),
        (lambda labels: labels["facets"][0].update(evidence=[10**9]), "labels.json isn't of the facets"),
        (lambda labels: labels["facets"][0].update(text="other"), "must be its best word"),
        (lambda labels: labels["facets"][0]["score"].update(low=-1.0), "must be an AUROC from 0 to 1"),
        (lambda labels: labels["facets"][0].update(n_words="many"), "must be a valid integer"),
        (lambda labels: labels.pop("namer"), "lacks namer"),
    ],
)
def test_labels_that_anyone_may_have_written_are_checked(change, message, out):
    run = RunFolder.read(out)
    jobs.label(run, AppearanceNamer(), namer_name="colors")
    change_labels(out, change)
    with pytest.raises(RunError, match=message):
        report.build(run)


@in_browser
def test_hostile_labels_are_shown_on_the_pages_and_never_run(out, visit, tmp_path):
    run = RunFolder.read(out)
    jobs.label(run, AppearanceNamer(), namer_name="colors")
    change_labels(out, lambda labels: labels["facets"][1].update(text=EVIL, best=EVIL, runners_up=[[EVIL, 0.5]]))
    change_labels(out, lambda labels: labels.update(namer=EVIL))
    page = visit(report.build(run))
    assert page.locator("#facet-1 h3").inner_text().endswith(EVIL)
    assert page.locator("#facet-1 .facts").get_by_text(EVIL).count() == 2
    assert page.evaluate("typeof hacked") == "undefined"
    page = visit(report.compare([run, run], tmp_path / "compare.html"))
    assert page.locator("td", has_text=EVIL).count() >= 2
    assert page.evaluate("typeof hacked") == "undefined"


@in_browser
@pytest.mark.parametrize("width", [1440, 400])
def test_the_page_says_what_a_label_is_and_shows_the_images_that_tested_it(width, out, visit):
    run = RunFolder.read(out)
    labels = jobs.label(run, AppearanceNamer(), namer_name="colors").facets
    change_labels(out, lambda found: found["facets"][3].update(text=None, agrees=None))
    page = visit(report.build(run), width)
    assert page.locator(".terms dt").all_inner_texts()[-1] == "The labels"
    assert "tested on the other half" in page.locator(".terms").inner_text()
    assert page.locator(".figures", has_text="3 of 4").count() == 1
    assert page.locator(".pairs .caption b").all_inner_texts() == [label.text for label in labels[:3]]
    card = page.locator("#facet-0")
    assert card.locator("h3").inner_text().endswith(labels[0].text)
    assert card.locator(".evidence img").count() == len(labels[0].evidence)
    none = page.locator("#facet-3")
    assert "none of 36 words holds; the best" in " ".join(none.locator(".facts").inner_text().split())
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_labels_are_titles_of_figures_and_columns_of_a_comparison(out, tmp_path):
    run = RunFolder.read(out)
    labels = jobs.label(run, AppearanceNamer(), namer_name="colors").facets
    facets = run.read_facets()
    axes = figures.plot_facets(run.read_renderings(facets), titles=labels)
    assert [axis.get_title() for axis in axes] == [f"{label.index} {label.text}" for label in labels]
    odd = [replace(labels[0], text="$x"), replace(labels[1], text=None), *labels[2:]]
    axes = figures.plot_facets(run.read_renderings(facets), titles=odd)
    axes[0].figure.canvas.draw()
    assert [axis.get_title() for axis in axes[:2]] == ["0 \\$x", "1"]
    assert figures.plot_embedding(facets, titles=labels).texts[0].get_text() == f"0 {labels[0].text}"
    page = report.compare([run, run], tmp_path / "compare.html").read_text()
    assert "4 of 4, by colors" in page


def test_a_publication_has_labels_without_real_images_and_paths(root, out, tmp_path):
    run = RunFolder.read(out)
    model, spec = mfv.models.load(f"{root}/nets.py:make")
    words = (root / "words.txt").read_text().splitlines()
    labels = jobs.label(run, ClassifierNamer(model, words, spec), namer_name=f"{root}/nets.py:make").facets
    publish(run, tmp_path / "site")
    page = (tmp_path / "site" / "index.html").read_text()
    assert f"<bdi>{labels[0].text}</bdi>" in page
    assert str(root) not in page
    assert 'class="members evidence"' not in page


# An atlas


def test_units_and_facets_of_an_atlas_are_named_and_the_tables_have_the_labels(many, tmp_path, capsys):
    out = shutil.copytree(many, tmp_path / "atlas")
    status, printed, _ = call(["label", out, "--with", "colors", "--quiet"], capsys)
    assert (status, printed.splitlines()[:2]) == (0, ["units with a label: 4 of 5", "facets with a label: 8 of 8"])
    made = AtlasFolder.read(out)
    for row in made.facets:
        assert row["label"] == color_of(row)
    assert {row["unit"]: row["label"] for row in made.units} == {
        **{f"rectified:{k}": color for k, color in enumerate(COLORS)},
        "unit:0": None,  # the only unit of its layer: nothing to contrast it with
    }
    frame = made.to_pandas("labels")
    assert len(frame) == 5 + 8
    assert set(frame.columns) == {"unit", "index", "label", "best", "agrees", "auroc", "low", "high", "n"}
    assert made.to_pandas().set_index("unit").loc["rectified:2", "label"] == "blue"
    assert not (out / ".scores").exists()
    assert made.manifest["timings"]["labels"] > 0


class Counting(AppearanceNamer):
    """Counts the images that it scores; raises an error after a number of them."""

    def __init__(self, most=10**9):
        super().__init__()
        self.most, self.n = most, 0

    def __call__(self, images):
        self.n += len(images)
        if self.n > self.most:
            raise KeyboardInterrupt
        return super().__call__(images)


def test_an_interrupted_labeling_of_an_atlas_resumes_and_scores_each_image_once(many, tmp_path, monkeypatch):
    monkeypatch.setattr("captum_mfv.activations.codes._SECONDS", 0)
    out = shutil.copytree(many, tmp_path / "atlas")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    whole, first, rest = Counting(), Counting(40), Counting()
    with pytest.raises(KeyboardInterrupt):
        jobs.label(AtlasFolder.read(out), first, namer_name="colors")
    assert {path: path.read_bytes() for path in before} == before
    assert (out / ".scores").exists()
    jobs.label(AtlasFolder.read(out), rest, namer_name="colors")
    resumed = (out / "labels.json").read_bytes()
    jobs.label(AtlasFolder.read(out), whole, namer_name="colors")
    assert (out / "labels.json").read_bytes() == resumed
    assert whole.n == 64 + 8  # images of all units, which share them, and synthesized images
    assert rest.n == whole.n - 40  # the first batch of the images was done


def test_an_update_keeps_labels_of_units_that_are_not_redone(root, tmp_path):
    given = {"model": "captum_mfv.datasets:planted_network", "reduce": "mean", "images": str(root / "discs")}
    given |= {"top_k": 64, "max_facets": 4, "steps": 2, "device": "cpu"}
    out = tmp_path / "atlas"
    atlas.run(atlas.AtlasSettings(units="rectified:0-1", **given), out)
    jobs.label(AtlasFolder.read(out), AppearanceNamer(), namer_name="colors")
    atlas.run(atlas.AtlasSettings(units="rectified:1-2", **given), out, update=True)
    made = AtlasFolder.read(out)
    assert {row["unit"]: row["label"] for row in made.units} == {"rectified:1": "green", "rectified:2": None}
    assert list(made.labels.units) == ["rectified:1"]
    atlas.run(atlas.AtlasSettings(units="rectified:1-2", **{**given, "steps": 3}), out, update=True)
    made = AtlasFolder.read(out)
    assert (made.labels, [row["label"] for row in made.units]) == (None, [None, None])
    assert not (out / "labels.json").exists()


def test_class_folders_are_labeled_and_a_function_of_a_manifest_is_not_run(root, tmp_path, capsys):
    for color in COLORS[:3]:
        (tmp_path / "photos" / color).mkdir(parents=True)
        for path in (root / "discs").glob(f"*_{color}.png"):
            shutil.copy(path, tmp_path / "photos" / color)
    (tmp_path / "classes.json").write_text(json.dumps({color: k for k, color in enumerate(COLORS[:3])}))
    given = {"model": "captum_mfv.datasets:planted_network", "units": "rectified:0-2", "reduce": "mean", "facets": 1}
    given |= {"class_folders": str(tmp_path / "photos"), "classes": str(tmp_path / "classes.json"), "steps": 2}
    out = atlas.run(atlas.AtlasSettings(**given), tmp_path / "atlas").path
    assert call(["label", out, "--with", "colors", "-q"], capsys)[0] == 0
    assert [row["label"] for row in AtlasFolder.read(out).facets] == list(COLORS[:3])
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["settings"] |= {"images": f"{tmp_path}/evil.py:make", "class_folders": None}
    (out / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    status, _, error = call(["label", out, "--with", "colors", "-q"], capsys)
    assert (status, "code that a manifest names is never run" in error) == (2, True)


def test_labels_of_an_atlas_that_contradict_its_tables_are_refused(many, tmp_path):
    out = shutil.copytree(many, tmp_path / "atlas")
    jobs.label(AtlasFolder.read(out), AppearanceNamer(), namer_name="colors")
    change_labels(out, lambda labels: labels["units"]["unit:0"]["facets"].pop())
    with pytest.raises(RunError, match=r"labels\.json isn't of unit:0 in the tables; label again"):
        atlas_page.build(AtlasFolder.read(out))
    (out / "labels.json").write_text("{")
    with pytest.raises(RunError, match=r"labels\.json can't be read.*remove it, and label again"):
        atlas_page.build(AtlasFolder.read(out))


@in_browser
def test_units_of_an_atlas_are_found_by_labels_which_every_view_shows(many, tmp_path, visit):
    out = shutil.copytree(many, tmp_path / "atlas")
    jobs.label(AtlasFolder.read(out), AppearanceNamer(), namer_name="colors")
    page = visit(out / "index.html")
    page.wait_for_selector("main:not([aria-busy])")
    page.get_by_label("Search by unit or label").fill("green")
    assert page.locator("#count").inner_text() == "2 of 5 units"
    captions = page.locator("#wall .caption i").all_inner_texts()
    assert sorted(captions)[0] == "green"
    assert "green" in sorted(captions)[1].split(", ")
    page.locator("[data-key=q]").fill("")
    page.locator(".filters summary").click()
    page.locator("[data-key=label]").select_option("without")
    assert page.locator("#count").inner_text() == "0 of 5 units"
    page.locator("[data-key=label]").select_option("with")
    page.get_by_role("button", name="Table").click()
    assert "blue" in page.locator("td.of-label").all_inner_texts()
    page.evaluate("location.hash = '#unit=unit:0'")
    cards = page.locator(".facet")
    cards.first.wait_for()
    labels = [row["label"] for row in AtlasFolder.read(out).facets if row["unit"] == "unit:0"]
    assert [text.split()[2] for text in cards.locator("h2").all_inner_texts()] == labels
    assert "AUROC 1.00 (0." in cards.first.inner_text()
    assert "a word of which a facet" in page.locator("#unit .note").first.inner_text()
    page.evaluate("location.hash = '#unit=rectified:2'")
    page.locator("#unit .lead", has_text="blue").wait_for()
    assert "of which these images have more than images of the layer" in page.locator("#unit .note").first.inner_text()
