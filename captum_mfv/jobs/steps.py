"""The work of each stage of a run: read from the run's folder, compute, write to the folder."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from captum_mfv import report
from captum_mfv._version import __version__
from captum_mfv.activations.codes import collect
from captum_mfv.activations.peaks import peak_patches
from captum_mfv.activations.top_k import TopImages, top_images
from captum_mfv.display.progress import Progress, waiting
from captum_mfv.errors import FacetError, MFVWarning, RenderError, UnitError
from captum_mfv.facets.facet_set import FacetSet, nearest
from captum_mfv.facets.finder import find_facets
from captum_mfv.images import ImageFolder, InputSpec, stack
from captum_mfv.jobs.inputs import Inputs
from captum_mfv.metrics import multifacetedness, percentile, score_images
from captum_mfv.optvis.recipes import Recipe
from captum_mfv.optvis.render import Rendering, render_facets
from captum_mfv.runs.folder import BASELINE, NEAREST, overlay_path
from captum_mfv.runs.images import TOP_IMAGES, dump_top_images, read_top_images
from captum_mfv.runs.settings import RUN
from captum_mfv.runs.writer import RunWriter
from captum_mfv.storage.identity import canonical

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Work",
    "attribute",
    "build_report",
    "measure",
    "overlay_png",
    "render_baseline",
    "render_images",
    "search_facets",
    "search_top_images",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Work:
    """A run in progress: its folder and its input, and the results of earlier stages, read when first needed."""

    folder: RunWriter
    inputs: Inputs
    progress: bool

    @cached_property
    def images(self) -> ImageFolder | TopImages:
        """The images in which facets are found: the image folder, or the unit's top images."""
        inputs = self.inputs
        if inputs.job.top_k is None:
            return inputs.images
        return read_top_images(self.folder.path, inputs.unit, inputs.images, inputs.spec)

    @property
    def spec(self) -> InputSpec:
        """Preprocessing of ``images``; of crops, at the size of a crop."""
        return self.images.input_spec

    @cached_property
    def facets(self) -> FacetSet:
        """The run's facets."""
        return self.folder.read_facets(self.inputs.encoder)

    @cached_property
    def sources(self) -> list[dict[str, Any]]:
        """The path of each image and, of a crop, its box in the preprocessed image."""
        images, folder = self.images, self.inputs.images
        if isinstance(images, ImageFolder):
            return [{"path": folder.name(i)} for i in range(len(folder))]
        rows: list[dict[str, Any]] = [{"path": folder.name(int(i))} for i in images.indices]
        if images.cropped:
            size = images.crop_size
            for row, (top, left) in zip(rows, images.corners.tolist(), strict=True):
                row["crop"] = (left, top, left + size, top + size)
        return rows


def search_top_images(work: Work) -> None:
    """Find the images that activate the unit most."""
    inputs = work.inputs
    top_k = inputs.job.top_k or len(inputs.images)
    _log.info("finding the %d of %d images that activate %s most", top_k, len(inputs.images), inputs.unit)
    top = top_images(
        inputs.model,
        inputs.unit,
        inputs.images,
        top_k,
        input_spec=inputs.spec,
        store=work.folder.unfinished("top"),
        progress=work.progress,
    )
    work.folder.write(TOP_IMAGES, dump_top_images(top))


def search_facets(work: Work) -> None:
    """Find the unit's facets."""
    inputs = work.inputs
    _log.info("finding the facets of %s in %d images", inputs.unit, len(work.images))
    facets = find_facets(
        inputs.model,
        inputs.unit,
        work.images,
        n_facets=inputs.job.facets,
        code=inputs.code,
        input_spec=work.spec,
        seed=inputs.job.seed,
        store=work.folder.unfinished("codes"),
        progress=work.progress,
    )
    work.folder.write_facets(facets, work.sources)
    work.folder.manifest |= canonical({"unit": inputs.unit, "code": inputs.code, "seed": inputs.job.seed})


def render_images(work: Work) -> None:
    """Synthesize an image of each facet."""
    recipe = work.inputs.recipe
    _log.info("synthesizing %d images in %d steps", len(work.facets), recipe.n_steps)
    checkpoint = work.folder.unfinished("images.safetensors")
    work.folder.write_renderings(work.facets, _render(work, work.facets, checkpoint, recipe))
    work.folder.manifest["recipe"] = recipe.name


def render_baseline(work: Work) -> None:
    """Synthesize the whole unit's image without facets, in as many steps; warn if no gradient reaches it."""
    _log.info("synthesizing the unit's image without facets")
    checkpoint = work.folder.unfinished("plain.safetensors")
    try:
        (rendering,) = _render(work, work.facets.as_one_facet(), checkpoint, "plain", work.inputs.recipe.n_steps)
    except RenderError as error:
        warnings.warn(f"no image without facets: {error}", MFVWarning, stacklevel=2)
    else:
        work.folder.write_image(BASELINE, rendering.image)


def _render(
    work: Work, facets: FacetSet, checkpoint: Path, recipe: str | Recipe, steps: int | None = None
) -> list[Rendering]:
    inputs = work.inputs
    renderings = render_facets(
        inputs.model,
        facets,
        work.images,
        recipe=recipe,
        steps=steps,
        size=inputs.job.size,
        dtype=inputs.dtype,
        input_spec=work.spec,
        seed=inputs.job.seed,
        checkpoint=checkpoint,
        progress=work.progress,
    )
    if not all(rendering.complete for rendering in renderings):
        raise KeyboardInterrupt
    return renderings


def attribute(work: Work) -> None:
    """Draw overlays that show where each facet's image and its nearest members show the facet, and the unit's peak."""
    from matplotlib.figure import Figure

    from captum_mfv.attr import facet_maps  # here, since importing Captum takes a second

    _log.info("computing attributions")
    inputs, facets = work.inputs, work.facets
    shown: list[Tensor] = []
    targets: list[int] = []
    paths: list[str] = []
    for facet, image in zip(facets, work.folder.read_images(facets), strict=True):
        batch = [work.spec.resize(image[None])[0], *stack(work.images, facet.members[:NEAREST])]
        shown += batch
        targets += [facet.index] * len(batch)
        paths += [overlay_path(facet.index, member) for member in (None, *range(len(batch) - 1))]
    maps = facet_maps(
        inputs.model,
        facets,
        shown,
        targets,
        method=inputs.job.attribution,
        input_spec=work.spec,
        progress=work.progress,
    )
    boxes = _peaks(work, shown)
    rows, figure = zip(paths, shown, maps, boxes, strict=True), Figure()
    for path, image, values, box in Progress(rows, "overlays", len(shown), unit="image", disable=not work.progress):
        work.folder.write(path, overlay_png(work.spec.display(image), values, box, figure))
    found = zip(paths, boxes.tolist(), strict=True)
    work.folder.write_peaks({path: box for path, box in found if np.isfinite(box).all()})


def _peaks(work: Work, images: Sequence[Tensor]) -> Tensor:
    """Return the patch of the unit's peak in each image, (N, 4), as `peak_patches` does; NaN if it isn't known."""
    try:
        return peak_patches(work.inputs.model, work.facets.unit, images, input_spec=work.spec)
    except UnitError as error:
        _log.info("overlays don't show the unit's peak: %s", error)
        return torch.full((len(images), 4), torch.nan)


def overlay_png(image: Tensor, attribution: Tensor, box: Tensor, figure: Figure) -> bytes:
    """Return a PNG file of an image, (C, H, W) in [0, 1], with its positive attributions, (H, W), and a box, (4,).

    The figure is emptied and drawn on: a new axis for each image would take half of the time.
    """
    from captum_mfv.figures import plot_attributions  # here, as above

    height, width = image.shape[-2:]
    figure.set_size_inches(width / 100, height / 100)
    (axis,) = figure.axes or [figure.add_axes((0, 0, 1, 1))]
    for artist in (*axis.images, *axis.patches):
        artist.remove()
    plot_attributions(image[None], attribution[None], axis, boxes=box[None])
    buffer = BytesIO()
    options: dict[str, Any] = {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 1}}
    figure.savefig(buffer, format="png", dpi=100, **options)
    return buffer.getvalue()


def measure(work: Work) -> None:
    """Measure how well the images show their facets, and how many facets the unit has."""
    _log.info("measuring how well the images show their facets")
    inputs, facets = work.inputs, work.facets
    with waiting("metrics", work.progress):
        images, starts = work.folder.read_images(facets), work.folder.read_images(facets, "_start")
        scores, retained = score_images(inputs.model, facets, images, starts, work.images, input_spec=work.spec)
        metrics: dict[str, Any] = {
            "facets": [asdict(score) for score in scores],
            "retention": retained,
            "chance": 1 / len(facets),
            "p_value": facets.p_value,
            "agreement": facets.agreement,
            "multifacetedness": asdict(multifacetedness(facets)),
        }
        if (baseline := work.folder.read_baseline()) is not None:
            metrics["plain"] = _score_baseline(work, baseline)
        if inputs.groups is not None:
            metrics["adjusted_rand_index"] = _rand_index(facets, work.sources, inputs.groups)
        work.folder.write_metrics("run", metrics)


def _score_baseline(work: Work, image: Tensor) -> dict[str, Any]:
    """Return the unit's activation on the image of the whole unit, and the facet nearest to the image."""
    facets = work.facets
    found = collect(work.inputs.model, facets.unit, [image], code=facets.code, input_spec=work.spec)
    activation = float(found.activations[0])
    return {
        "activation": activation,
        "percentile": percentile(activation, facets.activations),
        "nearest_facet": int(nearest(found.codes, facets.centers)[0]),
    }


def _rand_index(facets: FacetSet, sources: Sequence[Mapping[str, Any]], groups: Mapping[str, int]) -> float:
    """Return the adjusted Rand index over the images that have a known group and could be read."""
    names = [source["path"] for source in sources]
    rows = [int(i) for i in np.flatnonzero(np.isfinite(facets.activations)) if names[i] in groups]
    if not rows:
        raise FacetError("none of the images that activate the unit most is in the table of known groups")
    return float(adjusted_rand_score([groups[names[i]] for i in rows], facets.labels[rows]))


def build_report(work: Work) -> None:
    """Write the page, and ``run.toml``, with which the run can be repeated; a recipe of the user's is copied."""
    folder, job = work.folder, work.inputs.job
    with waiting("page", work.progress):
        given = job.given()
        if job.recipe.endswith(".json"):
            folder.write("recipe.json", work.inputs.recipe.to_json().encode())
            given["recipe"] = os.path.relpath(folder.path / "recipe.json")
        head = f"# captum-mfv {__version__}, repeated by: captum-mfv run --config run.toml --out FOLDER\n"
        text = head + RUN.to_toml(given, folder.path)
        folder.write("run.toml", text.encode("utf-8", "surrogateescape"))
        report.build(folder)
