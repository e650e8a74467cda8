"""One unit from a folder of images to a run's folder: every step once, in order, continued where it ended."""

from __future__ import annotations

import logging
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from captum_mfv import models, report
from captum_mfv._version import __version__
from captum_mfv.activations.codes import collect
from captum_mfv.activations.resolve import resolve
from captum_mfv.activations.top_k import TopImages, top_images
from captum_mfv.attr import check_method, facet_maps
from captum_mfv.display.progress import Progress, waiting
from captum_mfv.errors import FacetError, ImageError, MFVWarning, ModelError, RenderError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.facets.find import find_facets
from captum_mfv.facets.head import nearest
from captum_mfv.figures import overlay_png
from captum_mfv.images import ImageFolder, InputSpec, stack
from captum_mfv.metrics import multifacetedness, percentile, score_images
from captum_mfv.optvis.recipes import Recipe, get_recipe
from captum_mfv.optvis.render import Rendering, render_facets
from captum_mfv.runs import config
from captum_mfv.runs.folder import NEAREST, RunFolder
from captum_mfv.storage.files import write_whole
from captum_mfv.storage.identity import fingerprint, weights_fingerprint
from captum_mfv.storage.lock import hold
from captum_mfv.storage.schema import LARGEST_SIDE
from captum_mfv.storage.untrusted import read_json
from captum_mfv.units import Code, Unit

__all__ = ["Job", "run"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to do for one unit.

    Args:
        model: what `models.load` takes.
        unit: the unit, as ``layer:index``.
        images: folder of images that activate it; with ``top_k``, of any images.
        weights: weights file, or None for the model's own.
        top_k: only the images that activate it most, this many; of a channel that is read at its peak,
            the crops that show what the peak sees.
        reduce: how the unit reads positions; None: ``max`` with ``top_k`` where there are maps, else ``mean``.
        channels: ``last`` if its layer returns (N, H, W, C).
        facets: number of facets, or ``auto``.
        code: layer whose output describes an image, as ``layer`` or ``layer:reduce``; None: the last
            layer with positions before the unit.
        recipe: name of the recipe, or path of its ``.json``.
        steps: number of steps, or None for the recipe's.
        size: side of the synthesised images in pixels, or None for what the model sees.
        input_size: side of the model's input in pixels, or None for the model's own.
        device: where the model runs, such as ``cuda``; None: a GPU if there is one.
        attribution: which of `captum.attr`'s methods shows where images show their facet, as `attr.facet_maps`
            takes it; None: its default.
        dtype: precision of the model under autocast while images are synthesised, such as ``bfloat16``, or
            None for its own.
        labels: JSON table of image path in the folder → known group: adds the adjusted Rand index of the facets
            against them to the metrics.
        seed: seed of everything random.
    """

    model: str
    unit: str
    images: str
    weights: str | None = None
    top_k: int | None = None
    reduce: str | None = None
    channels: str | None = None
    facets: int | Literal["auto"] = 10
    code: str | None = None
    recipe: str = "facet"
    steps: int | None = None
    size: int | None = None
    input_size: int | None = None
    attribution: str | None = None
    device: str | None = None
    dtype: str | None = None
    labels: str | None = None
    seed: int = 0

    def given(self) -> dict[str, str | int]:
        """The options that have a value, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def command(self, out: str) -> str:
        """The command that does this."""
        options = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in self.given().items()]
        return " ".join(["captum-mfv run", *options, f"--out {shlex.quote(out)}"])


@dataclass(frozen=True, eq=False)
class _Parts:
    """A job's parts, loaded and checked.

    ``images`` is what the facets are found in: the folder, or what the unit's top images show.
    """

    model: nn.Module
    spec: InputSpec
    unit: Unit
    code: Code
    folder: ImageFolder
    images: ImageFolder | TopImages
    recipe: Recipe
    dtype: torch.dtype | None
    known: Mapping[str, int] | None

    def sources(self) -> list[dict[str, Any]]:
        """Where each image comes from: its path and, of a crop, its box in the image as the model sees it."""
        if isinstance(self.images, ImageFolder):
            return [{"path": self.folder.name(i)} for i in range(len(self.folder))]
        rows = [{"path": self.folder.name(int(i))} for i in self.images.indices]
        if not self.images.cropped:
            return rows
        boxes = [(left, top, left + self.spec.size, top + self.spec.size) for top, left in self.images.corners.tolist()]
        return [{**row, "crop": box} for row, box in zip(rows, boxes, strict=True)]


_NEEDS: Mapping[str, Sequence[str]] = {
    "top images": (
        "model",
        "weights_hash",
        "images_hash",
        "input_spec",
        "unit",
        "reduce",
        "channels",
        "top_k",
        "device",
    ),
    "facets": ("facets", "code", "seed"),
    "images": ("recipe_data", "size", "dtype"),
    "plain image": ("steps",),
    "attributions": ("attribution",),
    "metrics": ("known_groups", "labels_hash"),
    "report": ("images", "weights", "input_size", "recipe", "labels"),
}
"""Of each stage, in order, the settings that it depends on beside those of the stages before it."""


def run(job: Job, out: str | os.PathLike[str], *, update: bool = False, progress: bool = False) -> RunFolder:
    """Do a job, or go on with it, and leave its result in a folder.

    All input is checked before anything is written. Stages that the folder already has are not done again, and
    one that was stopped goes on where it can, with the same result; a finished run is returned as it is. What
    happens is logged.

    Args:
        job: what to do.
        out: the run's folder; one process at a time works on it.
        update: take a folder that holds a run with other settings or input, and do what depends on what changed.
        progress: show progress bars.

    Raises:
        MFVError: if the input can't be used, naming what and why.
    """
    parts = _load(job, progress)
    with hold(out):
        folder = RunFolder.open(out, _settings(job, os.fspath(out), parts), _NEEDS, update=update)
        if folder.finished:
            _log.info("%s is finished; nothing to do", folder.path)
            return folder
        _do(folder, job, parts, progress)
    return folder


def _do(folder: RunFolder, job: Job, parts: _Parts, progress: bool) -> None:
    """The stages that are left."""
    parts = parts if job.top_k is None else _narrowed(folder, job.top_k, parts, progress)
    _find(folder, job, parts, progress)
    facets = folder.read_facets()
    _render(folder, facets, job, parts, progress)
    _draw_plain(folder, facets, job, parts, progress)
    _attribute(folder, facets, parts, job.attribution, progress)
    _score(folder, facets, parts, job.seed, progress)
    _report(folder, job, parts.recipe, progress)
    folder.finish()


def _load(job: Job, progress: bool) -> _Parts:
    check_method(job.attribution)
    for name, size in {"--size": job.size, "--input-size": job.input_size}.items():
        if size is not None and not 1 <= size <= LARGEST_SIDE:
            raise ImageError(f"{name} must be 1 to {LARGEST_SIDE} pixels, not {size}")
    recipe = get_recipe(job.recipe)
    recipe = recipe if job.steps is None else recipe.with_steps(job.steps)
    unit = _unit(job)
    known = None if job.labels is None else _read_labels(job.labels)
    model, spec = _model(job, progress)
    spec = spec if job.input_size is None else replace(spec, size=job.input_size)
    unit, code = resolve(model, unit, Code.parse(job.code), spec)
    images = ImageFolder(job.images, spec)
    if job.top_k is not None and job.top_k < 1:
        raise ImageError(f"--top-k must be at least 1 image, not {job.top_k}")
    if job.facets != "auto" and not 1 <= job.facets <= len(images):
        raise FacetError(f"{job.facets} facets can't be found in {len(images)} images; ask for 1 to {len(images)}")
    _log.debug("unit %s, read by %s; code: %s of %s", unit, unit.reduce, code.reduce, code.layer)
    return _Parts(model, spec, unit, code, images, images, recipe, models.autocast_dtype(job.dtype), known)


def _model(job: Job, progress: bool) -> tuple[nn.Module, InputSpec]:
    _log.info("loading %s", job.model)
    with waiting(f"loading {job.model}", progress):
        model, spec = models.load(job.model, job.weights, progress=progress)
    device = _device(job.device)
    _log.debug("%s: %s, %d parameters, on %s", job.model, spec, sum(p.numel() for p in model.parameters()), device)
    return model.to(device), spec


def _read_labels(path: str) -> dict[str, int]:
    try:
        table = read_json(Path(path))
        return {str(name): int(group) for name, group in table.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FacetError(f"{path} isn't a JSON table of image path and group number: {error}") from error


def _device(name: str | None) -> torch.device:
    """The device of a name, tried.

    Raises:
        ModelError: if there is none.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"--device {name} can't be used: {reason}") from error
    return device


def _unit(job: Job) -> Unit:
    unit = Unit.parse(job.unit)
    reduce = job.reduce or ("max" if job.top_k is not None else "mean")
    return replace(unit, reduce=reduce, channels=job.channels)


def _narrowed(folder: RunFolder, top_k: int, parts: _Parts, progress: bool) -> _Parts:
    """The same job on the images that activate the unit most, at the size of what they show."""
    _log.info("finding the %d of %d images that activate %s most", top_k, len(parts.folder), parts.unit)
    with nullcontext() if folder.done("top images") else folder.stage("top images"):
        top = top_images(
            parts.model,
            parts.unit,
            parts.folder,
            top_k,
            input_spec=parts.spec,
            store=folder.unfinished("top"),
            progress=progress,
        )
    return replace(parts, images=top, spec=top.input_spec)


def _settings(job: Job, out: str, parts: _Parts) -> dict[str, Any]:
    """All that the result depends on, and the command that repeats it."""
    return {
        **asdict(job),
        "recipe_data": asdict(parts.recipe),
        "input_spec": asdict(parts.spec),
        "images_hash": parts.folder.files_fingerprint(),
        "weights_hash": weights_fingerprint(parts.model),
        "known_groups": None if parts.known is None else len(set(parts.known.values())),
        "labels_hash": None if parts.known is None else fingerprint(labels=parts.known),
        "command": job.command(out),
    }


def _find(folder: RunFolder, job: Job, parts: _Parts, progress: bool) -> None:
    if folder.done("facets"):
        return
    _log.info("finding the facets of %s in %d images", parts.unit, len(parts.images))
    with folder.stage("facets", unit=asdict(parts.unit), code=asdict(parts.code), seed=job.seed):
        facets = find_facets(
            parts.model,
            parts.unit,
            parts.images,
            n_facets=job.facets,
            code=parts.code,
            input_spec=parts.spec,
            seed=job.seed,
            store=folder.unfinished("codes"),
            progress=progress,
        )
        folder.write_facets(facets, parts.sources())


def _report(folder: RunFolder, job: Job, recipe: Recipe, progress: bool) -> None:
    if folder.done("report"):
        return
    with folder.stage("report"), waiting("page", progress):
        _write_config(folder, job, recipe)
        report.build(folder)


def _write_config(folder: RunFolder, job: Job, recipe: Recipe) -> None:
    """``run.toml``, with which the run can be repeated; a recipe of the user's is copied, as it was."""
    given = job.given()
    if job.recipe.endswith(".json"):
        own = folder.path / "recipe.json"
        write_whole(own, recipe.to_json().encode())
        given["recipe"] = os.path.relpath(own)
    head = f"# captum-mfv {__version__}, repeated by: captum-mfv run --config run.toml --out FOLDER\n"
    text = head + config.dumps(given, folder.path)
    write_whole(folder.path / "run.toml", text.encode("utf-8", "surrogateescape"))


def _render(folder: RunFolder, facets: FacetSet, job: Job, parts: _Parts, progress: bool) -> None:
    if folder.done("images"):
        return
    _log.info("synthesising %d images in %d steps", len(facets), parts.recipe.n_steps)
    with folder.stage("images", recipe=job.recipe):
        saved = folder.unfinished("images.safetensors")
        folder.write_renderings(facets, _drawn(facets, job, parts, progress, saved, recipe=parts.recipe))


def _draw_plain(folder: RunFolder, facets: FacetSet, job: Job, parts: _Parts, progress: bool) -> None:
    """What the unit's image is without facets, to compare with; a unit that noise leaves silent has none."""
    if folder.done("plain image"):
        return
    _log.info("synthesising what the unit shows without facets")
    with folder.stage("plain image"):
        try:
            saved = folder.unfinished("plain.safetensors")
            (rendering,) = _drawn(facets.as_one_facet(), job, parts, progress, saved, recipe="plain", steps=job.steps)
        except RenderError as error:
            warnings.warn(f"no image without facets: {error}", MFVWarning, stacklevel=2)
        else:
            folder.write_plain(rendering)


def _drawn(
    facets: FacetSet,
    job: Job,
    parts: _Parts,
    progress: bool,
    saved: Path,
    recipe: str | Recipe,
    steps: int | None = None,
) -> list[Rendering]:
    renderings = render_facets(
        parts.model,
        facets,
        parts.images,
        recipe=recipe,
        steps=steps,
        size=job.size,
        dtype=parts.dtype,
        input_spec=parts.spec,
        seed=job.seed,
        checkpoint=saved,
        progress=progress,
    )
    if not all(rendering.complete for rendering in renderings):
        raise KeyboardInterrupt
    return renderings


def _attribute(folder: RunFolder, facets: FacetSet, parts: _Parts, method: str | None, progress: bool) -> None:
    """Where each facet's image and its nearest members show it, as overlays."""
    if folder.done("attributions"):
        return
    _log.info("finding where the images show their facets")
    with folder.stage("attributions"):
        shown, targets = [], []
        for facet, image in zip(facets, folder.read_images(facets), strict=True):
            its = [parts.spec.resize(image[None])[0], *stack(parts.images, facet.members[:NEAREST])]
            shown += its
            targets += [facet.index] * len(its)
        maps = facet_maps(parts.model, facets, shown, targets, method=method, input_spec=parts.spec, progress=progress)
        pairs = Progress(zip(shown, maps, strict=True), "overlays", len(shown), unit="image", disable=not progress)
        overlays = [overlay_png(*pair) for pair in pairs]
        for facet in facets:
            folder.write_overlays(facet.index, [overlays[i] for i, k in enumerate(targets) if k == facet.index])


def _score(folder: RunFolder, facets: FacetSet, parts: _Parts, seed: int, progress: bool) -> None:
    if folder.done("metrics"):
        return
    _log.info("measuring how well the images show their facets")
    with folder.stage("metrics"), waiting("metrics", progress):
        images, starts = folder.read_images(facets), folder.read_images(facets, "_start")
        scores, retained = score_images(parts.model, facets, images, starts, parts.images, input_spec=parts.spec)
        metrics: dict[str, Any] = {
            "facets": [asdict(score) for score in scores],
            "retention": retained,
            "chance": 1 / len(facets),
            "p_value": facets.p_value,
            "multifacetedness": asdict(multifacetedness(facets, seed=seed)),
        }
        if (plain := folder.read_plain()) is not None:
            metrics["plain"] = _score_plain(parts, facets, plain)
        if parts.known is not None:
            metrics["adjusted_rand_index"] = _rand_index(facets, parts.sources(), parts.known)
        folder.write_metrics(metrics)


def _score_plain(parts: _Parts, facets: FacetSet, image: Tensor) -> dict[str, Any]:
    """What the network makes of the image of the whole unit, and which facet it is nearest to."""
    seen = collect(parts.model, facets.unit, [image], code=facets.code, input_spec=parts.spec)
    activation = float(seen.activations[0])
    return {
        "activation": activation,
        "percentile": percentile(activation, facets.activations),
        "nearest_facet": int(nearest(seen.codes, facets.centers)[0]),
    }


def _rand_index(facets: FacetSet, sources: Sequence[Mapping[str, Any]], known: Mapping[str, int]) -> float:
    """Over the images that have a known group and could be read."""
    names = [source["path"] for source in sources]
    rows = [int(i) for i in np.flatnonzero(np.isfinite(facets.activations)) if names[i] in known]
    if not rows:
        raise FacetError("none of the images is in the table of known groups; its names are paths in the folder")
    return float(adjusted_rand_score([known[names[i]] for i in rows], facets.labels[rows]))
