import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import captum_mfv

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(captum_mfv.__file__).parents[1]


def python(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)


EVERYTHING = """
import json, sys
def loaded(*names):
    return [name for name in names if name in sys.modules]
import captum_mfv
captum_mfv.optvis.render.render_facets, captum_mfv.optvis.param  # available without an import of their own
from captum_mfv import jobs, metrics, report
from captum_mfv.jobs import atlas
work = loaded("captum", "matplotlib")
from captum_mfv.optvis import initializer, objectives, optimizers, param, recipes, render, transform
for name in captum_mfv.__all__:
    getattr(captum_mfv, name)
everything = loaded("lucent", "kornia", "torchvision")
import captum_mfv.attr as a
lazy = [a.maps.__name__, set(dir(a)) == set(a.__all__), hasattr(a, "nothing")]
lazy += [name for name in a.__all__ if getattr(a, name).__name__ != name]
print(json.dumps({"work": work, "everything": everything, "lazy": lazy}))
"""


@pytest.fixture(scope="module")
def imported():
    """Return what a new process finds after imports."""
    done = python(EVERYTHING)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_packages_import_lucent_kornia_torchvision_captum_and_matplotlib_only_where_they_are_used(imported):
    assert (imported["work"], imported["everything"]) == ([], [])


def test_the_first_import_is_light():
    done = python("import captum_mfv, sys; print('torch' in sys.modules, captum_mfv.__version__)")
    assert done.stdout.split() == ["False", captum_mfv.__version__]


def test_lazy_packages_have_their_names_and_modules(imported):
    assert imported["lazy"] == ["captum_mfv.attr.maps", True, False]


def test_the_public_names_are_exactly_the_documented_ones():
    assert sorted(captum_mfv.__all__) == dir(captum_mfv) == captum_mfv.__all__
    assert not hasattr(captum_mfv, "nothing")


def test_the_oldest_tested_versions_are_the_required_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    tested = {name: Version(version) for name, version in (line.split("==") for line in lines if "==" in line)}
    for requirement in map(Requirement, project["dependencies"]):
        (lowest,) = (Version(bound.version) for bound in requirement.specifier if bound.operator == ">=")
        assert tested[requirement.name] == lowest, requirement
