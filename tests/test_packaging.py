"""What a release holds: distributions, citation, recipe of conda-forge, workflow, and one address of the repository."""

import email
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import captum_mfv

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(captum_mfv.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [Requirement(line) for line in PROJECT["dependencies"]]
FILES = [*("LICENSE", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md")]
FILES += ["pyproject.toml", "setup.cfg", "setup.py"]
FOLDERS = ("captum_mfv", "docs", "examples", "recipe", "tests")
JUNK = [
    *("captum_mfv/notes.txt", "captum_mfv/optvis/presets/mine.json.orig", "captum_mfv/__pycache__/x.cpython-311.pyc"),
    *(
        "tests/__pycache__/x.cpython-311.pyc",
        "docs/_build/html/index.html",
        "docs/api/x.rst",
        "docs/_extra/gallery/x.js",
    ),
    *("benchmarks/x.py", "out/pepper/report.html", ".env", "weights.safetensors"),
]


def yaml(name):
    return pytest.importorskip("yaml").safe_load((ROOT / name).read_text(encoding="utf-8"))


def files(folder):
    """Return the files of a folder that belong to the project, by path from the root."""
    generated = ("__pycache__", "docs/_build/", "docs/api/", "docs/_extra/", ".ipynb_checkpoints", ".egg-info")
    names = [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {name for name in names if not any(part in name for part in generated)}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Build a copy of the project, with files in it that must not be distributed; the wheel is built from the sdist."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("project")
    for name in {*FILES, *(name for folder in FOLDERS for name in files(folder))}:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in JUNK:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("junk")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted((source / "dist").iterdir())


def test_the_source_distribution_holds_the_package_its_tests_and_documentation_and_nothing_else(distributions):
    sdist = next(path for path in distributions if path.suffix == ".gz")
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    generated = {name for name in names if name == "PKG-INFO" or name.startswith("captum_mfv.egg-info/")}
    assert set(names) - generated == {*FILES, *(name for folder in FOLDERS for name in files(folder))}
    assert sdist.stat().st_size < 3e6


def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    wheel = next(path for path in distributions if path.suffix == ".whl")
    with zipfile.ZipFile(wheel) as archive:
        names, info = set(archive.namelist()), f"captum_mfv-{captum_mfv.__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert {name for name in names if not name.startswith(f"{info}/")} == files("captum_mfv")
    own = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    assert {name.removeprefix(f"{info}/") for name in names if name.startswith(info)} == own
    assert metadata["Requires-Python"] == ">=3.10"
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 1e6


def test_links_and_pictures_of_the_readme_are_absolute_in_the_metadata(distributions):
    wheel = next(path for path in distributions if path.suffix == ".whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"captum_mfv-{captum_mfv.__version__}.dist-info/METADATA"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", metadata.get_payload())
    source = PROJECT["urls"]["Source"]
    assert [target for _, target in links if not target.startswith("https://")] == []
    pictures = [target.removeprefix(f"{source}/raw/main/") for image, target in links if image]
    assert pictures == re.findall(r"^!\[.*\]\((.+)\)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"{source}/blob/main/docs/start.md#in-python" in {target for _, target in links}


def test_twine_accepts_the_distributions(distributions):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("PASSED")) == (0, 2), done.stdout


def test_every_mention_of_the_repository_is_the_address_in_pyproject():
    address = PROJECT["urls"]["Source"]
    assert all(url.startswith(address) for url in PROJECT["urls"].values())
    paths = [ROOT / name for name in {*FILES, *(name for folder in FOLDERS for name in files(folder))}]
    texts = {
        path: path.read_text(encoding="utf-8") for path in paths if path.suffix in (".md", ".ipynb", ".cff", ".yaml")
    }
    found = {
        path: re.findall(r"(?:github\.com|google\.com/github)/([\w.-]+/captum-mfv)\b", text)
        for path, text in texts.items()
    }
    assert sum(map(len, found.values())) >= 12
    other = {path.name: names for path, names in found.items() if set(names) - {address.partition(".com/")[2]}}
    assert other == {}, f"the repository's address is Source in pyproject.toml, {address}"


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == captum_mfv.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Nguyen", "Yosinski", "Clune"]
    assert paper["url"] == "https://arxiv.org/abs/1602.03616"


CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
"""Names at conda-forge that differ from those at PyPI."""


def test_the_recipe_of_conda_forge_requires_what_pyproject_requires():
    recipe = yaml("recipe/recipe.yaml")
    required = {f"{CONDA.get(one.name, one.name)} {one.specifier}" for one in REQUIREMENTS}  # noarch: without markers
    (python, *run) = recipe["requirements"]["run"]
    assert set(run) == required
    assert recipe["context"]["version"] == captum_mfv.__version__
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]
    assert python == "python >=${{ python_min }}"
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert entry == "captum-mfv = " + PROJECT["scripts"]["captum-mfv"]
    assert recipe["requirements"]["host"][-1] == "setuptools >=77"


def test_the_page_on_installation_describes_every_extra():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w[\w-]*)` \|", page, re.MULTILINE)
    assert set(PROJECT["optional-dependencies"]) <= set(rows)
    assert {one.name for one in REQUIREMENTS} - {"tomli"} <= set(rows)


def arguments(text, tool):
    """Return the arguments of each call of a tool in a script or a workflow."""
    lines = text.replace('"$bin/', "").replace('"$bin"/', "").replace('"', " ")
    return re.findall(rf"(?:^|[\s;]){re.escape(tool)}\s+([^;|&>\n#]*[^;|&>\n#\s])", lines, re.MULTILINE)


def test_the_workflow_runs_the_parts_of_the_gate_on_each_system_and_python():
    workflow, gate = yaml(".github/workflows/tests.yml"), (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    known = (
        "pip install",
        "ruff",
        "mypy",
        "captum-mfv",
        "python -m pytest",
        "python -m build",
        "twine",
        "sphinx-build",
    )
    assert [step for step in steps if not step.startswith(known)] == []
    for tool in ("ruff", "mypy", "sphinx-build"):
        calls = [call for step in steps for call in arguments(step, tool)]
        assert set(arguments(gate, tool)) <= set(calls), tool


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.stem)
def test_issue_forms_have_the_keys_that_github_requires(path):
    form = yaml(path.relative_to(ROOT).as_posix())
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    asked = [item for item in form["body"] if item["type"] != "markdown"]
    assert len({item["id"] for item in asked}) == len(asked) > 0
    assert all(item["attributes"]["label"] for item in asked)
    assert all(item["attributes"]["value"] for item in form["body"] if item["type"] == "markdown")


def test_hooks_of_pre_commit_call_tools_of_the_test_environment():
    (repository,) = yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    tools = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert tools <= {Requirement(line).name for line in PROJECT["optional-dependencies"]["test"]}
    assert all(hook["language"] == "system" for hook in repository["hooks"])


def test_notebooks_install_the_repository_itself():
    for path in ROOT.glob("examples/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        install = ["".join(cell["source"]) for cell in cells if "install" in cell["metadata"].get("tags", [])]
        assert [f"git+{PROJECT['urls']['Source']}" in text for text in install] == [True]
