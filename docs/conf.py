"""The documentation: pages, notebooks that are executed when it is built, and the reference from docstrings."""

import builtins
import importlib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable
from importlib.metadata import version as installed_version
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core import render
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from captum_mfv.report.publication import rebuild

os.environ.setdefault("OMP_NUM_THREADS", "1")  # notebooks run beside each other, on small tensors
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # notebooks run the command too
os.environ["PYTHONWARNINGS"] = ",".join(  # kornia's, when lucent imports it
    f"ignore::{kind}:torch.jit._script" for kind in ("DeprecationWarning", "FutureWarning")
)

project = "captum-mfv"
author = "The captum-mfv authors"
copyright = "the captum-mfv authors"
version = release = installed_version("captum-mfv")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "myst_nb",
]
exclude_patterns = ["_build", "_extra"]
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [  # other packages' names, whose inventories would have to be downloaded
    ("py:.*", rf"({packages})(\..*)?")
    for packages in (
        "collections|os|pathlib|typing|Path",
        "torch|Tensor|nn|numpy|np|NDArray|ArrayLike|scipy|sklearn|matplotlib|Axes|skimage|click|PIL|pydantic",
        "captum|lucent|Attribution|LayerAttribution|TCAV|visualize_image_attr",
    )
] + [("py:class", "Method|ParamF")]  # aliases of types: what stands in a docstring says what they are

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "no-value": True}
autosummary_generate = True
autosummary_ignore_module_all = False
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
add_module_names = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds of a cell, on a machine that is busy
nb_merge_streams = True
nb_output_stderr = "remove"

html_theme = "furo"
html_title = "captum-mfv"
html_static_path = ["_static"]
html_extra_path = ["_extra"]  # the gallery, but for its page, which `write_gallery` makes
html_css_files = ["pages.css"]
html_show_sphinx = False
templates_path = ["_templates"]


_NAME = re.compile(r"[A-Za-z_][\w.]*")


def shortened(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element) -> nodes.Element | None:
    """The object that a docstring names by the end of its full name: `render_facets`, `attr.FacetModel`.

    Of a module and a function that are called the same it is the function. What isn't a name, or is that of something
    without a description of its own, is code.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip("~.")
    if not _NAME.fullmatch(target):
        return contnode
    objects = env.domains.python_domain.objects
    ends = [target, target.rpartition(".")[2]] if target.startswith("captum_mfv.") else [target]
    found = [name for end in ends for name in objects if f".{name}".endswith(f".{end}")]
    if not found:
        return contnode if _exists(target.rpartition(".")[2]) else None
    name = min(found, key=lambda name: (objects[name].objtype == "module", len(name)))
    entry = objects[name]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def _exists(name: str) -> bool:
    ours = [module for path, module in sys.modules.items() if path.startswith("captum_mfv")]
    return any(hasattr(module, name) for module in (builtins, *ours))


_SHAPE = re.compile(r"^(\s+)(\([^)]*\)):")


def plain_words(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """What stands before a colon is a type to napoleon, where it may be words, or the shape of what is returned."""
    lines[:] = [_SHAPE.sub(r"\1``\2``:", line) for line in lines]
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


_ARRAY = re.compile(r"~?(numpy\.)?ndarray\[tuple\[~?(typing\.)?Any, \.\.\.\], ~?(numpy\.)?dtype\[(.*?)\]\]")


def short_arrays(app: Sphinx, domain: str, objtype: str, contentnode: nodes.Element) -> None:
    """`NDArray` as it was written, where evaluation has made a sentence of it."""
    for hints in app.env.current_document.autodoc_annotations.values():
        for name, hint in hints.items():
            hints[name] = _ARRAY.sub(r"~numpy.typing.NDArray[\4]", hint)


def without_constraints(stringify: Callable[..., str]) -> Callable[..., str]:
    """Write ``Annotated[int, …]`` as ``int``: what a setting accepts beyond its type is in its description."""
    return lambda annotation, *args, **kwargs: stringify(typing._strip_annotations(annotation), *args, **kwargs)


def _options_as_code(line: str) -> str:
    if line.startswith(".."):
        return line
    code = r"`+[^`]+`+"  # stays as it is, also with an option in it
    return re.sub(rf"({code})|(?<![\w-])--[a-z][\w-]*", lambda found: found[1] or f"``{found[0]}``", line)


def command_examples(app: Sphinx, context: object, lines: list[str]) -> None:
    """What the help keeps as it is, in lines of its own, is code, and so are options in its sentences."""
    shown: list[str] = []
    for as_it_is, group in groupby(lines, key=lambda line: line.startswith("| ")):
        block = list(group)
        if as_it_is:
            shown += [".. code-block:: text", "", *(f"   {line[2:]}" for line in block), ""]
        else:
            shown += map(_options_as_code, block)
    lines[:] = shown


def spread_executed_pages(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Spread pages with cells evenly over the others: Sphinx gives each of its processes adjacent pages."""
    executed = [name for name in docnames if "{code-cell}" in Path(env.doc2path(name)).read_text()]
    others = [name for name in docnames if name not in executed]
    place = {name: (i + 0.5) / len(group) for group in (executed, others) for i, name in enumerate(group)}
    docnames.sort(key=place.__getitem__)


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of names in ``__all__`` that the reference doesn't describe; constants are described where they are set."""
    described = env.domains.python_domain.objects
    for module in [name for name, entry in described.items() if entry.objtype == "module"]:
        source = Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")
        for name in getattr(sys.modules[module], "__all__", ()):
            value = getattr(sys.modules[module], name)
            own = inspect.isclass(value) or inspect.isfunction(value) or re.search(rf"^{name}\b", source, re.MULTILINE)
            if own and f"{module}.{name}" not in described:
                message = "%s.%s is public, and the reference doesn't describe it"
                logging.getLogger(__name__).warning(message, module, name)


def short_code(app: Sphinx, doctree: nodes.document) -> None:
    """Mark short inline code, which pages.css keeps in one line: browsers break ``--images`` after its hyphens."""
    for code in doctree.findall(nodes.literal):
        if len(code.astext()) <= 20:
            code["classes"].append("short")


def join_streams(coalesce: Callable[[list[Any]], list[Any]]) -> Callable[[list[Any]], list[Any]]:
    """Join the pieces in which a cell's text arrives before myst-nb makes lines of them: one can end within a word."""

    def joined(outputs: list[Any]) -> list[Any]:
        streams: dict[str, Any] = {}
        others = []
        for output in outputs:
            if output["output_type"] == "stream" and output["name"] in streams:
                streams[output["name"]]["text"] += output["text"]
                continue
            others.append(output.copy())
            if output["output_type"] == "stream":
                streams[output["name"]] = others[-1]
        return coalesce(others)

    return joined


def write_gallery(app: Sphinx, error: Exception | None) -> None:
    """Write the gallery's page beside its data and images; a source distribution has no gallery."""
    gallery = Path(app.outdir) / "gallery"
    if error is None and app.builder.name == "html" and gallery.is_dir():
        (gallery / "index.html").write_bytes(rebuild(gallery))


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    for name, module in list(sys.modules.items()):
        if name.startswith("sphinx.ext.autodoc") and hasattr(module, "stringify_annotation"):
            module.stringify_annotation = without_constraints(module.stringify_annotation)
    render.coalesce_streams = join_streams(render.coalesce_streams)
    app.connect("doctree-read", short_code)
    app.connect("env-before-read-docs", spread_executed_pages)
    app.connect("env-check-consistency", check_public_names)
    app.connect("build-finished", write_gallery)
    app.connect("missing-reference", shortened)
    app.connect("autodoc-process-docstring", plain_words, priority=400)  # before napoleon
    app.connect("object-description-transform", short_arrays, priority=400)  # before autodoc writes them down
    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", command_examples)
