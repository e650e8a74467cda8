"""Methods that are compared: recipes, controls, other packages, and functions in users' files."""

from __future__ import annotations

import copy
import inspect
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.bench.controls import BENCH_CONTROLS, BenchControl
from captum_mfv.bench.peers import PEERS, Peer, Render
from captum_mfv.bench.scene import Scene
from captum_mfv.bench.scores import checked_images
from captum_mfv.errors import RunError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.models.functions import run_file
from captum_mfv.models.sources import as_model_error
from captum_mfv.optvis.recipes import RECIPES, Recipe, get_recipe
from captum_mfv.optvis.render import render_facets
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.schema import suggest

__all__ = ["REAL", "Method", "Rendered", "find_method", "method_names"]

REAL = "real images"
"""Name of the row of real images, which no method may have."""

_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<function>\w+))?")
_NAME = re.compile(r"[\w .+'-]{1,60}")


@dataclass(frozen=True, eq=False)
class Rendered:
    """A method's images of a cell, one for each facet, and the CPU seconds of one step of one image."""

    images: list[Tensor]
    seconds: float


@dataclass(frozen=True, eq=False)
class Method:
    """A way to render the facets of a cell.

    Args:
        name: name of the method's rows and folders.
        identity: fingerprint of everything that determines the images: results of another identity are another
            method's.
        steps: number of steps; None if nothing is synthesized.
        render: function from a scene and a seed to images.
        has_facets: whether the images are in the order of the facets; otherwise each judge assigns them.
        package: distribution whose version the results state, beside those of this package.
        labels: function from facets and seed to the labels of the real images with which the images are compared.
    """

    name: str
    identity: str
    steps: int | None
    render: Callable[[Scene, int], Rendered]
    has_facets: bool = True
    package: str | None = None
    labels: Callable[[FacetSet, int], NDArray[np.int64]] = lambda facets, seed: facets.labels


def method_names() -> dict[str, str]:
    """Return the names of the package's methods, and what each is in one line."""
    tables: list[Mapping[str, Recipe | BenchControl | Peer]] = [RECIPES, BENCH_CONTROLS, PEERS]
    return {name: one.summary for table in tables for name, one in table.items()}


def find_method(text: str, steps: int | None = None) -> Method:
    """Return the method of a name, of a recipe's ``FILE.json``, or of a function in ``FILE.py`` or ``FILE.py:NAME``.

    A file is *run*: name only files that you trust.

    Args:
        text: the method; a function is called ``render`` unless it is named.
        steps: number of steps; by default a recipe's own, and that of the recipe ``facet`` for other methods.

    Raises:
        RunError: if there is no such method, a package is missing, or the function takes other arguments.
        RecipeError, ModelError: if a file can't be read or run.
    """
    default = get_recipe("facet").n_steps
    n_steps = steps or default
    if found := _FILE.fullmatch(text):
        method = _of_file(text, Path(found["path"]), found["function"] or "render", n_steps)
    elif text in RECIPES or text.endswith(".json"):
        recipe = get_recipe(text)
        default, n_steps = recipe.n_steps, steps or recipe.n_steps
        method = _of_recipe(recipe.with_steps(n_steps))
    elif text in BENCH_CONTROLS:
        method = _of_control(text, n_steps)
    elif text in PEERS:
        method = _of_peer(text, n_steps)
    else:
        names = method_names()
        hint = f"; write {text}.py for the file" if Path(f"{text}.py").is_file() else suggest(text, names)
        raise RunError(f"no method {text!r}; there are {', '.join(names)}, FILE.json and FILE.py{hint}")
    if not _NAME.fullmatch(method.name) or method.name == REAL:
        raise RunError(f"a method can't be named {method.name!r}; take up to 60 letters, digits, spaces and . _ + ' -")
    return method if method.steps in (None, default) else replace(method, name=f"{method.name}-{n_steps}")


def _of_recipe(recipe: Recipe) -> Method:
    return Method(recipe.name, fingerprint(recipe=recipe), recipe.n_steps, partial(_render_recipe, recipe))


def _render_recipe(recipe: Recipe, scene: Scene, seed: int) -> Rendered:
    times: list[float] = []

    def note(step: int, images: Tensor) -> None:
        times.append(time.process_time())

    options: dict[str, Any] = {"recipe": recipe, "input_spec": scene.spec, "seed": seed, "callback": note}
    made = render_facets(scene.model, scene.facets, scene.images, **options)
    if not all(one.complete for one in made):
        raise KeyboardInterrupt
    images = checked_images([one.image for one in made], scene)
    return Rendered(images, (times[-1] - times[0]) / max(1, len(times) - 1) / len(images))


def _of_control(name: str, steps: int) -> Method:
    control = BENCH_CONTROLS[name]
    recipe = get_recipe("facet").with_steps(steps) if control.has_steps else None
    identity, shown = fingerprint(control=name, recipe=recipe), None if recipe is None else steps
    return Method(name, identity, shown, partial(_call, control.render, steps), labels=control.labels)


def _of_peer(name: str, steps: int) -> Method:
    peer = PEERS[name]
    if find_spec(peer.module) is None:
        raise RunError(f"method {name} needs the module {peer.module}: pip install {peer.distribution}")
    package = peer.distribution.split()[0]
    identity = fingerprint(peer=name, version=version(package), steps=steps)
    return Method(name, identity, steps, partial(_call, peer.render, steps), peer.has_facets, package)


def _of_file(text: str, path: Path, name: str, steps: int) -> Method:
    with as_model_error(text, False):
        function = getattr(run_file(path), name, None)
    if not callable(function):
        raise RunError(f"{path} has no function {name!r}; name another as {path}:NAME")
    try:
        inspect.signature(function).bind(None, None, None, None, input_spec=None, seed=0, steps=1)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{name} in {path} must be {name}(model, unit, facets, images, *, input_spec, seed, steps): {error}"
        ) from error
    identity = fingerprint(source=path.read_bytes().hex(), function=name, steps=steps)
    own = path.stem if name == "render" else name
    return Method(own, identity, steps, partial(_call, function, steps), getattr(function, "has_facets", True))


def _call(function: Render, steps: int, scene: Scene, seed: int) -> Rendered:
    """Call a method's function with a copy of the model, which it may change, and seeded global generators."""
    model = copy.deepcopy(scene.model)
    with _seeded(seed):
        began = time.process_time()
        made: Sequence[Any] = function(
            model, scene.facets.unit, scene.facets, scene.images, input_spec=scene.spec, seed=seed, steps=steps
        )
        seconds = time.process_time() - began
    images = checked_images(made, scene)
    return Rendered(images, seconds / steps / len(images))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, from which some packages draw, and restore them afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
