"""Our render loop: every facet of a unit in one batch, the model left as it was."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.display.notebook import picture, png, table
from captum_mfv.display.progress import Progress
from captum_mfv.errors import ImageError, MFVWarning, RecipeError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.images import Images, InputSpec, batches
from captum_mfv.optvis.arguments import Seeds, as_facets, as_integer, as_seeds, check_same_layers
from captum_mfv.optvis.initializer import own_generator
from captum_mfv.optvis.loop import Batch, Callback
from captum_mfv.optvis.param import color_matrix
from captum_mfv.optvis.recipes import Recipe, get_recipe
from captum_mfv.optvis.reference import measure_terms
from captum_mfv.storage.checkpoint import Checkpoint
from captum_mfv.storage.identity import content_fingerprint, dataset_fingerprint, weights_fingerprint

_log = logging.getLogger(__name__)

__all__ = ["Rendering", "render_facets"]

Job: TypeAlias = tuple[int, int]
"""Row of a facet, and a seed."""

_N_COLORED = 100  # images on which colours are measured


@dataclass(frozen=True, eq=False)
class Rendering:
    """The image of a facet, and how it came about.

    Args:
        facet: the facet.
        image: (C, H, W) float32 in [0, 1].
        start: (C, H, W) where it started.
        history: (n_steps,) each objective term (a loss, unweighted) and, as ``activation``, the unit's
            activation, on the transformed image before each step.
        seed: the seed.
        recipe: the recipe's name.
        transparency: (H, W) in [0, 1], where the image matters to the loss: ``Σ |∂loss/∂image|`` over steps.
        complete: whether every step was done; False after Ctrl-C.
    """

    facet: Facet
    image: Tensor
    start: Tensor
    history: Mapping[str, NDArray[np.float32]]
    seed: int
    recipe: str
    transparency: Tensor
    complete: bool = True

    @property
    def rgba(self) -> Tensor:
        """(4, H, W) float32 in [0, 1], transparent where the image doesn't matter; grey images in three channels."""
        return torch.cat([self.image.expand(3, -1, -1), self.transparency[None]])

    def _repr_png_(self) -> bytes | None:
        """The image, for notebooks."""
        return png(self.image)

    def _repr_html_(self) -> str:
        """The image beside its start, and where the unit and each term began and ended, for notebooks."""
        name, done = f"facet {self.facet.index}", "" if self.complete else ", interrupted"
        caption = f"{name} of {self.facet.unit}: recipe {self.recipe}, seed {self.seed}{done}"
        pictures = [picture(self.image, name), picture(self.start, f"{name}, start")]
        return table(caption, ["image", "start", *self.history], [[*pictures, *map(_went, self.history.values())]])


def render_facets(
    model: nn.Module,
    facets: Facet | Sequence[Facet],
    images: Images,
    *,
    recipe: str | Recipe = "facet",
    steps: SupportsIndex | None = None,
    size: SupportsIndex | None = None,
    start: Tensor | None = None,
    input_spec: InputSpec | None = None,
    seed: Seeds = 0,
    dtype: torch.dtype | None = None,
    max_batch: SupportsIndex | None = None,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    key: str | None = None,
    progress: bool = False,
) -> list[Rendering]:
    """Synthesise one image per facet, all of them together.

    Each image draws from its own generator, seeded by the seed and the facet's index, so that it doesn't
    depend on what else is drawn, but for rounding. On one machine the same seed and batch give the same
    bytes; no global generator is touched. Ctrl-C ends it with the images so far and a warning.

    Args:
        model: the model in which the facets were found, on any device; left as it was.
        facets: a facet set, a facet or several of one unit.
        images: the dataset in which they were found.
        recipe: name of a recipe, path of a recipe's ``.json``, or a `Recipe`.
        steps: this many steps, the recipe's phases in proportion.
        size: side of the images in pixels, of which the network sees a copy at its own size; by default that.
        start: (C, H, W), or (n_facets, C, H, W) one for each facet, in [0, 1]: where the images start, in the
            place of the recipe's start.
        input_spec: what turns images in [0, 1] into the model's input.
        seed: seed of transforms and noise; several: each facet once for each.
        dtype: precision in which the network runs under `torch.autocast`, such as ``torch.bfloat16`` on a GPU;
            by default its own.
        max_batch: images that go through the network at once, at most; by default as many as are fastest, all on
            a GPU. When memory runs out, the step is done again with half as many, and a warning says so.
        callback: called after each step with its number, from 1, and the images before it, (B, C, H, W).
        checkpoint: a file, ``.safetensors``, that holds the state of at most 15 seconds ago: the same call resumes from
            it after an interruption and returns the same bytes, on the same device and with the same ``max_batch``;
            with others it resumes too, and images differ by rounding. Remove the file afterwards.
        key: a name for a dataset that has no fingerprint, as in `collect`; needed with ``checkpoint`` only.
        progress: show a progress bar.

    Returns:
        One `Rendering` for each facet, in their order; of several seeds, one seed after the other.

    Raises:
        RecipeError: if the recipe isn't known or doesn't fit, or ``max_batch`` is below 1.
        ImageError: if ``size`` is below 1, or ``start`` isn't as described.
        RenderError: if a loss stops being finite, or no gradient reaches an image.
        RunError: if the checkpoint is of another rendering, or ``key`` is needed.

    Warns:
        MFVWarning: if it was interrupted, memory ran out, or a facet's loss ends no lower than it began.
    """
    chosen = as_facets(facets)
    check_same_layers(chosen)
    seeds = as_seeds(seed)
    plan = get_recipe(recipe) if steps is None else get_recipe(recipe).with_steps(as_integer(steps, "steps"))
    spec = input_spec or InputSpec()
    dataset = None if checkpoint is None else dataset_fingerprint(images, key)
    given = None if start is None else _given(start, len(chosen))
    at_once = None if max_batch is None else as_integer(max_batch, "max_batch", 1, RecipeError)
    side = spec.size if size is None else as_integer(size, "size", 1, ImageError)
    names = {name: None for phase in plan.phases for name in phase.weights}
    terms = measure_terms(names, model, chosen, images, spec, progress)
    for name, term in terms.items():
        _log.debug("objective %s reads %s", name, ", ".join(term.layers))
    jobs = [(row, one) for one in seeds for row in range(len(chosen))]
    rows = [row for row, _ in jobs]
    with Progress(total=plan.n_steps, desc=_title(jobs, chosen), unit="step", disable=not progress) as bar:
        batch = Batch(
            model=model,
            facets=tuple(chosen[row] for row in rows),
            images=images,
            spec=spec,
            size=side,
            terms={name: term.rows(rows) for name, term in terms.items()},
            generators=[own_generator(one, chosen[row]) for row, one in jobs],
            given=None if given is None else given[rows],
            colors=_colors(images) if plan.colors == "images" else None,
            dtype=dtype,
            portions=AdaptiveBatches(at_once or cpu_batch_size(model, spec, len(jobs))),
            callback=callback,
            bar=bar,
        )
        if checkpoint is not None and dataset is not None:
            batch.checkpoint = Checkpoint(checkpoint, _parts(batch, plan, jobs, dataset))
        made = _rendered(batch, plan, jobs)
    if batch.interrupted:
        done = f"after {len(batch.records)} of {plan.n_steps} steps"
        warnings.warn(f"interrupted {done}; these are the images so far", MFVWarning, stacklevel=2)
    return made


def _rendered(batch: Batch, plan: Recipe, jobs: Sequence[Job]) -> list[Rendering]:
    start, final = batch.run(plan)
    history, transparency = batch.history(), batch.transparency()
    return [
        Rendering(
            facet=item,
            image=final[i],
            start=start[i],
            history={name: values[:, i] for name, values in history.items()},
            seed=jobs[i][1],
            recipe=plan.name,
            transparency=transparency[i],
            complete=not batch.interrupted,
        )
        for i, item in enumerate(batch.facets)
    ]


def _parts(batch: Batch, plan: Recipe, jobs: Sequence[Job], dataset: str) -> dict[str, Any]:
    """Everything that the images depend on, but for rounding: device and ``max_batch`` don't count."""
    return {
        "weights": weights_fingerprint(batch.model),
        "recipe": plan,
        "facets": [item.fingerprint for item in batch.facets],
        "seeds": [seed for _, seed in jobs],
        "images": dataset,
        "start": None if batch.given is None else content_fingerprint(batch.given),
        "input_spec": batch.spec,
        "size": batch.size,
        "dtype": str(batch.dtype),
    }


def _given(start: Tensor, n_facets: int) -> Tensor:
    """Start images that the caller gives, one for each facet."""
    if not isinstance(start, Tensor):
        raise TypeError(f"start must be a tensor, not {type(start).__name__}")
    every = start.expand(n_facets, *start.shape) if start.ndim == 3 else start
    if every.ndim != 4 or len(every) != n_facets:
        raise ImageError(f"start must be (C, H, W) or ({n_facets}, C, H, W), not {tuple(start.shape)}")
    if not (every.min() >= -1e-4 and every.max() <= 1 + 1e-4):
        raise ImageError(f"start must lie in [0, 1], not [{every.min():.3g}, {every.max():.3g}]")
    return every


def _colors(images: Images) -> Tensor:
    """Colour decorrelation, measured on images evenly spread over the dataset."""
    spread = np.unique(np.linspace(0, len(images) - 1, _N_COLORED).astype(int)).tolist()
    _, sample = next(batches(Subset(images, spread), _N_COLORED))  # type: ignore[arg-type]
    return color_matrix(sample)


def _went(values: NDArray[np.float32]) -> str:
    known = values[np.isfinite(values)]
    return f"{known[0]:.3g} → {known[-1]:.3g}" if len(known) else ""


def _title(jobs: list[Job], facets: Sequence[Facet]) -> str:
    n_seeds = len(jobs) // len(facets)
    title = "1 facet" if len(facets) == 1 else f"{len(facets)} facets"
    return title if n_seeds == 1 else f"{title}, {n_seeds} seeds"
