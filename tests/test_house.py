"""The structure of the package: imports go one way, modules and classes stay small."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import captum_mfv

ROOT = Path(captum_mfv.__file__).parent
ORDER = (
    *("_lazy", "_version", "errors", "storage", "units", "images", "display", "models", "activations", "facets"),
    *("datasets", "optvis", "attr", "concept", "metrics", "labels", "figures", "runs", "report", "jobs", "bench"),
    "cli",
)
"""Folders and modules of the root; each imports only from earlier ones."""

FILES = {path.relative_to(ROOT).with_suffix("").parts: ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
MODULES = {parts[:-1] if parts[-1] == "__init__" else parts: tree for parts, tree in FILES.items()}


def imported(tree: ast.Module) -> set[tuple[str, ...]]:
    """Return the package's modules that a module imports, also in functions and for type checking."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = tuple(node.module.split("."))
            found |= {(*names, alias.name) if (*names, alias.name)[1:] in MODULES else names for alias in node.names}
    return {names[1:] for names in found if names[0] == "captum_mfv" and names[1:]}


def test_each_entry_of_the_root_is_in_the_order():
    assert {parts[0] for parts in MODULES if parts} - {"__main__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_folder_imports_only_from_folders_before_it(name):
    later = {
        f"{'.'.join(parts)} imports {'.'.join(other)}"
        for parts, tree in MODULES.items()
        if parts and parts[0] == name
        for other in imported(tree)
        if ORDER.index(other[0]) > ORDER.index(name)
    }
    assert later == set()


def test_no_module_imports_itself_through_others():
    own_package = {parts: parts[:-1] for parts in MODULES}
    graph = {parts: imported(tree) - {own_package[parts]} for parts, tree in MODULES.items() if parts}
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules' names


def test_the_root_holds_at_most_25_entries():
    assert len([path for path in ROOT.iterdir() if path.name != "__pycache__"]) <= 25


def test_a_module_has_at_most_350_lines_and_a_class_at_most_200():
    lengths = {}
    for path in ROOT.rglob("*.py"):
        text, name = path.read_text(), path.relative_to(ROOT).as_posix()
        lengths[name] = (text.count("\n"), 350)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                lengths[f"{name}: {node.name}"] = ((node.end_lineno or 0) - node.lineno + 1, 200)
    assert {name: length for name, (length, most) in lengths.items() if length > most} == {}
