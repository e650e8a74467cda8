"""Examples in README, docs, docstrings and notebooks run; pages that Sphinx executes run in the build of the docs."""

import doctest
import importlib
import json
import pkgutil
import re
from functools import cache
from pathlib import Path

import matplotlib
import pytest
import torch
from conftest import planted_images, small_cnn

import captum_mfv as mfv
from captum_mfv.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(page for page in ROOT.glob("docs/**/*.md") if "_build" not in page.parts)])
EXAMPLES = sorted(ROOT.glob("examples/*.ipynb"))
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mfv.__path__, "captum_mfv.")
    if not any(part.startswith("_") for part in module.name.split("."))
)
SHELL = {page: re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}
TEXT = {page: page.read_text() for page in PAGES}
PYTHON = {page: re.findall(r"(<!-- downloads -->\n)?```python\n(.*?)```", TEXT[page], re.DOTALL) for page in PAGES}


def names(paths):
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.fixture(scope="module")
def few_digits():
    """Replace the digits by every fifth, and train each network of digits once."""
    few = [values[::5] for values in mfv.datasets.digits()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captum_mfv.datasets.digits", lambda: few)
        patch.setattr("captum_mfv.datasets.digit_classifier", cache(mfv.datasets.digit_classifier))
        yield


@pytest.mark.usefixtures("few_digits")
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.filterwarnings("ignore:no image without facets")  # the unit with hand-set weights is 0 on noise
@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON[page]], ids=lambda page: page.name)
def test_a_pages_examples_run_in_order_and_examples_with_downloads_compile(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for downloads, source in PYTHON[page]:
        code = compile(source, page.name, "exec")
        if not downloads:
            exec(code, scope)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_page_with_cells_is_executed_by_sphinx(page):
    assert ("```{code-cell}" in TEXT[page]) == TEXT[page].startswith("---\nfile_format: mystnb\n")


@pytest.mark.parametrize("page", [page for page in PAGES if SHELL[page]], ids=lambda page: page.name)
def test_the_commands_and_options_that_a_page_shows_exist(page):
    for line in "".join(SHELL[page]).replace("\\\n", " ").splitlines():
        if not (shown := re.search(r"captum-mfv (.*)", line)):
            continue
        command, words = app, shown[1].split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert command is not app, line
        assert {word for word in words if word.startswith("-")} <= known, line


def test_the_readme_has_two_set_up_commands_of_one_line_each():
    setup = [block for block in SHELL[ROOT / "README.md"] if "venv" in block]
    assert [block.count("\n") for block in setup] == [1, 1]
    assert "captum-mfv demo" in setup[0]
    assert "pytest" in setup[1]


def anchors(text):
    """Return the addresses of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ +(.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_between_pages_lead_to_a_file_and_a_heading(page):
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", TEXT[page], flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"^```\{image\} (\S+)", TEXT[page], re.MULTILINE)
    for target in targets:
        if re.match(r"https://|mailto:|#captum_mfv\.", target):  # the latter are of the reference: Sphinx checks them
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file() or path.is_dir(), target
        text = path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
        if included := re.search(r"```\{include\} (\S+)", text):
            text += (path.parent / included[1]).read_text(encoding="utf-8")
        assert not anchor or anchor in anchors(text), target


ISE = "central|character|custom|emphas|equal|final|general|initial|local|maxim|minim|normal|optim|organ|parametr|penal"
ISE += "|priorit|random|real|recogn|regular|serial|special|standard|summar|synthes|token|util|vector|visual"
BRITISH = re.compile(
    rf"\w*(?:{ISE})is(?:e|ed|er|es|ing|ation)s?\b|\w*(?:behavi|col|fav|hon|lab|neighb)our\w*|\b(?:cent|lit|met)re[sd]?\b"
    r"|\banalys(?:e|ed|ing)\b|\bgrey(?!hound)|\w*(?:cancell|labell|modell|travell)(?:ed|ing)\b"
    r"|\b(?:artefact|licence|whilst|learnt)",
    re.IGNORECASE,
)


def test_texts_have_american_spelling():
    kinds = ("*.md", "*.py", "*.html", "*.js", "*.css", "*.ipynb", "*.toml", "*.yml", "*.yaml", "*.cff")
    folders = [ROOT / name for name in ("captum_mfv", "docs", "examples", "tests", "benchmarks", "recipe")]
    paths = [path for folder in folders for kind in kinds for path in folder.rglob(kind)]
    paths = [
        path for path in [*paths, *ROOT.glob("*.*")] if path.suffix and path.is_file() and "_build" not in path.parts
    ]
    texts = {
        path: path.read_text(encoding="utf-8")
        for path in paths
        if path != Path(__file__) and "_extra" not in path.parts
    }
    assert [BRITISH.fullmatch(word) is not None for word in ("colours", "Normalised", "analyse", "basis", "noise")] == [
        *(True, True, True, False, False)
    ]
    found = {path.name: set(filter(BRITISH.match, set(re.findall(r"\w+", text)))) for path, text in texts.items()}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_examples_of_docstrings_are_found():
    classes = (mfv.Unit, mfv.FacetFinder, mfv.InputSpec)
    found = {test.name for one in classes for test in doctest.DocTestFinder().find(one) if test.examples}
    assert {"Unit.parse", "FacetFinder", "InputSpec"} <= found


def test_the_reference_lists_every_module():
    packages = "activations attr bench cli facets images jobs labels metrics models report"
    documented_by_package = tuple(f"captum_mfv.{name}." for name in packages.split())
    without_names = {f"captum_mfv.{name}" for name in ("cli", "display", "optvis", "runs", "storage")}
    listed = set(re.findall(r"^   (captum_mfv\.\S+)$", TEXT[ROOT / "docs" / "api.md"], re.MULTILINE))
    modules = {name for name in MODULES if not name.startswith(documented_by_package)}
    pages = {"captum_mfv.report.atlas", "captum_mfv.report.publication"}
    assert listed == (modules - without_names) | {"captum_mfv.jobs.atlas"} | pages


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/images/*")), ids=lambda path: path.name)
def test_pictures_in_the_docs_are_small(path):
    assert path.stat().st_size <= 200 * 1024


@pytest.mark.skipif(not (ROOT / "docs" / "_extra").is_dir(), reason="the source distribution has no gallery")
def test_the_gallery_holds_synthesized_images_and_no_name_of_a_photograph():
    gallery = ROOT / "docs" / "_extra" / "gallery"
    files = {path.relative_to(gallery).as_posix(): path.read_bytes() for path in gallery.rglob("*") if path.is_file()}
    record = json.loads(files.pop("publication.json"))
    assert record["files"] == sorted({*files, "index.html"})
    assert "index.html" not in files, "the documentation's build makes the page"
    images = {name for name in files if not name.endswith(".js")}
    assert all(re.fullmatch(r"images/features\.12/\d+_\d+\.webp|data/sprites-\d+\.webp", name) for name in images)
    assert len({name.partition("_")[0] for name in images if name.startswith("images/")}) >= 64
    text = b"".join(content for name, content in files.items() if name not in images)
    assert re.findall(rb"data:image|caltech|\w+\.(?:jpe?g|png)|image_\d+", text, re.IGNORECASE) == []
    assert sum(map(len, files.values())) < 6e6


MODEL_OF_RANDOM_WEIGHTS = """
import torch

import captum_mfv as mfv

spec, n_top, n_facets, steps, folder = mfv.InputSpec(32), 20, 2, 2, "images"
"""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_runs_with_another_model_in_its_model_cell(path, tmp_path, monkeypatch):
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number, image in enumerate(planted_images(8)[0]):
        mfv.images.to_pil(image).save(f"images/{number}.png")
    unit = mfv.Unit("conv2", 3, "max") if path.stem == "hidden_unit" else mfv.Unit("fc", 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # Lucent has no other
    scope = {"model": small_cnn().to(device), "unit": unit, "device": device}
    for tags, source in cells(path):
        compiled = compile(MODEL_OF_RANDOM_WEIGHTS if "model" in tags else source, path.name, "exec")
        if "model" in tags:
            compile(source, path.name, "exec")
        exec(compiled, scope)
    matplotlib.pyplot.close("all")
    assert len(scope["facets"]) == 2


def cells(path):
    """Return tags and source of a notebook's code cells, except cells that install packages."""
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in code]
    return [(tags, source) for tags, source in found if "install" not in tags]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_is_cleared_and_opens_in_colab_by_its_badge(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert sum("model" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert f"/blob/main/examples/{path.name})" in "".join(notebook["cells"][0]["source"])
