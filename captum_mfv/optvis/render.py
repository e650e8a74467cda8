"""Render images of facets in one batch; the model is unchanged afterwards."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.display.notebook import picture, png, table
from captum_mfv.display.progress import Progress
from captum_mfv.errors import ImageError, MFVWarning, RecipeError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.images import Images, InputSpec
from captum_mfv.optvis.arguments import Facets, Seeds, as_facets, as_seeds, check_same_layers
from captum_mfv.optvis.initializer import measured_colors
from captum_mfv.optvis.loop import Callback, RenderLoop
from captum_mfv.optvis.param import check_images
from captum_mfv.optvis.recipes import Recipe, get_recipe
from captum_mfv.optvis.reference import measure_terms
from captum_mfv.storage.files import Checkpoint
from captum_mfv.storage.identity import content_fingerprint, dataset_fingerprint, weights_fingerprint
from captum_mfv.storage.schema import check_integer

_log = logging.getLogger(__name__)

__all__ = ["Rendering", "render_facets"]


@dataclass(frozen=True, eq=False)
class Rendering:
    """The image of a facet, and how it was made.

    Args:
        image: (C, H, W) float32 in [0, 1].
        start: (C, H, W) float32 in [0, 1], the image before the first step.
        history: (n_steps,) each term's unweighted loss and, as ``activation``, the unit's activation, before each step.
        transparency: (H, W) in [0, 1], how much each pixel matters to the loss: ``Σ |∂loss/∂image|`` over steps.
        complete: whether every step was done; False after Ctrl-C.
        input_spec: preprocessing of the model's input, which also chooses the channels that are displayed.
    """

    facet: Facet
    image: Tensor
    start: Tensor
    history: Mapping[str, NDArray[np.float32]]
    seed: int
    recipe: str
    transparency: Tensor
    complete: bool = True
    input_spec: InputSpec | None = None

    @property
    def rgba(self) -> Tensor:
        """(4, H, W) float32 in [0, 1], transparent where the image doesn't matter; gray images in three channels."""
        return torch.cat([self.display(self.image).expand(3, -1, -1), self.transparency[None]])

    def display(self, image: Tensor) -> Tensor:
        """Return the channels of the image, its start or a real image that are displayed, (1 or 3, H, W)."""
        return image if self.input_spec is None else self.input_spec.display(image)

    def _repr_png_(self) -> bytes | None:
        return png(self.display(self.image))

    def _repr_html_(self) -> str:
        """Return the image beside its start, and the first and last value of each term, for notebooks."""
        name, done = f"facet {self.facet.index}", "" if self.complete else ", interrupted"
        caption = f"{name} of {self.facet.unit}: recipe {self.recipe}, seed {self.seed}{done}"
        shown = {name: self.image, f"{name}, start": self.start}
        pictures = [picture(self.display(image), text) for text, image in shown.items()]
        return table(caption, ["image", "start", *self.history], [[*pictures, *map(_change, self.history.values())]])


def render_facets(
    model: nn.Module,
    facets: Facets,
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
    """Synthesize one image per facet, all of them in one batch.

    Each image has its own random generator, seeded by the seed and the facet's index, so that an image doesn't depend
    on the other images of the batch, but for rounding. On one machine's CPU the same seed and batch give the same
    bytes; on a GPU they differ by rounding. No global generator is used. Ctrl-C stops the optimization: the images so
    far are returned, with a warning.

    On an NVIDIA GPU, the third step's forward and backward pass is recorded as a CUDA graph and replayed in later
    steps (`cuda_graph.Recorded`), unless ``max_batch`` or memory divides the batch: what a forward pass does in Python,
    such as counting its calls, is not repeated.

    Args:
        model: the model in which the facets were found, on any device; unchanged afterwards.
        facets: a facet set, a facet or several, of any units that read the same layers with the same reductions.
        images: the dataset in which they were found.
        recipe: name of a recipe, path of a recipe's ``.json``, or a `Recipe`.
        steps: total number of steps, with the recipe's phases in proportion; by default the recipe's.
        size: side of the images in pixels, which are resized for the network; by default the network's input size.
        start: (C, H, W) or (n_facets, C, H, W) in [0, 1], images to start from instead of the recipe's start.
        input_spec: what turns images in [0, 1] into the model's input.
        seed: seed of transforms and noise; with several seeds, each facet is rendered once for each.
        dtype: precision of the network under `torch.autocast`, such as ``torch.bfloat16`` on a GPU.
        max_batch: largest number of images in one forward pass; by default all on a GPU, and on a CPU as many as are
            fastest. When memory runs out, the step is repeated with half as many.
        callback: called after each step with its number, from 1, and the images before it, (B, C, H, W).
        checkpoint: a file, ``.safetensors``, in which the state is saved every 15 seconds; the same call resumes from
            it and returns the same bytes (with another device or ``max_batch``, up to rounding). Remove it afterwards.
        key: a name for a dataset that has no fingerprint, as in `collect`; needed with ``checkpoint`` only.
        progress: show a progress bar.

    Returns:
        One `Rendering` for each facet, in their order; for several seeds, all facets of each seed in turn.

    Raises:
        TypeError: if an argument is of another type.
        FacetError: if the facets read different layers.
        RecipeError: if the recipe isn't known or doesn't fit, or ``max_batch`` is below 1.
        ImageError: if ``size`` is below 1, or ``start`` isn't as described.
        RenderError: if a loss stops being finite, or no gradient reaches an image; the message names facet and step.
        RunError: if the checkpoint is of another rendering, or ``key`` is needed.

    Warns:
        MFVWarning: if it was interrupted, memory ran out, or a facet's loss ends no lower than it began.
    """
    chosen, seeds, spec = as_facets(facets), as_seeds(seed), input_spec or InputSpec()
    check_same_layers(chosen)
    plan = get_recipe(recipe) if steps is None else get_recipe(recipe).with_steps(check_integer(steps, "steps"))
    dataset = None if checkpoint is None else dataset_fingerprint(images, key)
    starts = None if start is None else _starts(start, len(chosen))
    limit = None if max_batch is None else check_integer(max_batch, "max_batch", 1, RecipeError)
    side = spec.size if size is None else check_integer(size, "size", 1, ImageError)
    names = {name: None for phase in plan.phases for name in phase.weights}
    terms = measure_terms(names, model, chosen, images, spec, progress)
    for name, term in terms.items():
        _log.debug("objective %s reads %s", name, ", ".join(term.layers))
    order = list(range(len(chosen))) * len(seeds)  # every facet with the first seed, then with the next
    with Progress(total=plan.n_steps, desc=_title(len(chosen), len(seeds)), unit="step", disable=not progress) as bar:
        loop = RenderLoop(
            model,
            images,
            plan,
            facets=tuple(chosen[row] for row in order),
            seeds=tuple(one for one in seeds for _ in chosen),
            terms={name: term.rows(order) for name, term in terms.items()},
            start=None if starts is None else starts[order],
            spec=spec,
            size=side,
            colors=measured_colors(plan, images, spec),
            dtype=dtype,
            batches=AdaptiveBatches(limit or cpu_batch_size(model, spec, len(order))),
            bar=bar,
            callback=callback,
        )
        if checkpoint is not None and dataset is not None:
            loop.checkpoint = Checkpoint(checkpoint, _parts(loop, dataset))
        made = _rendered(loop)
    if loop.interrupted:
        done = f"after {len(loop.history)} of {plan.n_steps} steps"
        warnings.warn(f"interrupted {done}; these are the images so far", MFVWarning, stacklevel=2)
    return made


def _rendered(loop: RenderLoop) -> list[Rendering]:
    start, final = loop.run()
    history, transparency = loop.history.arrays(), loop.transparency()
    return [
        Rendering(
            facet=item,
            image=final[i],
            start=start[i],
            history={name: values[:, i] for name, values in history.items()},
            seed=seed,
            recipe=loop.recipe.name,
            transparency=transparency[i],
            complete=not loop.interrupted,
            input_spec=loop.spec,
        )
        for i, (item, seed) in enumerate(zip(loop.facets, loop.seeds, strict=True))
    ]


def _parts(loop: RenderLoop, dataset: str) -> dict[str, Any]:
    """Return everything that the images depend on, but for rounding: device and ``max_batch`` don't count."""
    return {
        "weights": weights_fingerprint(loop.model),
        "recipe": loop.recipe,
        "facets": [item.fingerprint for item in loop.facets],
        "seeds": loop.seeds,
        "images": dataset,
        "start": None if loop.start is None else content_fingerprint(loop.start),
        "input_spec": loop.spec,
        "size": loop.size,
        "dtype": str(loop.dtype),
    }


def _starts(start: Tensor, n_facets: int) -> Tensor:
    """Return the caller's start images, one for each facet."""
    if not isinstance(start, Tensor):
        raise TypeError(f"start must be a tensor, not {type(start).__name__}")
    every = start.expand(n_facets, *start.shape) if start.ndim == 3 else start
    if every.ndim != 4 or len(every) != n_facets:
        raise ImageError(f"start must be (C, H, W) or ({n_facets}, C, H, W), not {tuple(start.shape)}")
    check_images(every, "start")
    return every


def _change(values: NDArray[np.float32]) -> str:
    known = values[np.isfinite(values)]
    return f"{known[0]:.3g} → {known[-1]:.3g}" if len(known) else ""


def _title(n_facets: int, n_seeds: int) -> str:
    title = "1 facet" if n_facets == 1 else f"{n_facets} facets"
    return title if n_seeds == 1 else f"{title}, {n_seeds} seeds"
