"""Our render loop: every facet of a unit in one batch, the model left as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from captum_mfv.activations import capture, guard
from captum_mfv.errors import RecipeError, RenderError
from captum_mfv.facets import Facet
from captum_mfv.images import Images, InputSpec
from captum_mfv.optvis.initializer import as_facets, mean_images, noise_images
from captum_mfv.optvis.objectives import Reference, Term, make_term, measure_reference
from captum_mfv.optvis.optimizers import TVAscent
from captum_mfv.optvis.param import ParamF, fft_image_from, pixel_image_from
from captum_mfv.optvis.recipes import Phase, Recipe, get_recipe
from captum_mfv.optvis.transform import CenterCrop, affine, center_crop

__all__ = ["Rendering", "render_facets"]

_PARAMS: dict[str, Callable[[Tensor], ParamF]] = {"fft": fft_image_from, "pixel": pixel_image_from}


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
    """

    facet: Facet
    image: Tensor
    start: Tensor
    history: Mapping[str, NDArray[np.float32]]
    seed: int
    recipe: str


def render_facets(
    model: nn.Module,
    facets: Facet | Sequence[Facet],
    images: Images,
    *,
    recipe: str | Recipe = "facet",
    steps: int | None = None,
    input_spec: InputSpec | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[Rendering]:
    """Synthesise one image per facet, all in one batch.

    The images depend on each other in nothing. On one machine the same seed gives the same bytes; no
    global generator is touched.

    Args:
        model: the model in which the facets were found, on any device; left as it was.
        facets: a facet set, a facet or several of one unit.
        images: the dataset in which they were found.
        recipe: name of a recipe, or a `Recipe`.
        steps: this many steps, the recipe's phases in proportion.
        input_spec: what turns images in [0, 1] into the model's input; its size is the images' size.
        seed: seed of transforms and noise.
        progress: show a progress bar.

    Returns:
        One `Rendering` for each facet, in their order.

    Raises:
        RecipeError: if the recipe isn't known or doesn't fit.
        RenderError: if a loss stops being finite, or no gradient reaches an image.
    """
    chosen = as_facets(facets)
    plan = get_recipe(recipe) if steps is None else get_recipe(recipe).with_steps(steps)
    with tqdm(total=plan.n_steps, desc=f"{len(chosen)} facets", unit="step", disable=not progress) as bar:
        loop = _Loop.make(model, chosen, images, plan, input_spec or InputSpec(), seed, bar)
        start, canvas = loop.run(plan)
    final = center_crop(loop.spec.size, 0.0)(canvas).cpu()
    return [
        Rendering(item, final[i], start[i], {n: h[:, i] for n, h in loop.history().items()}, seed, plan.name)
        for i, item in enumerate(chosen)
    ]


@dataclass(eq=False)
class _Loop:
    """What all phases of a rendering share."""

    model: nn.Module
    facets: tuple[Facet, ...]
    images: Images
    spec: InputSpec
    reference: Reference | None
    generator: torch.Generator
    records: list[dict[str, Tensor]]
    bar: Any

    @classmethod
    def make(
        cls,
        model: nn.Module,
        facets: tuple[Facet, ...],
        images: Images,
        plan: Recipe,
        spec: InputSpec,
        seed: int,
        bar: Any,
    ) -> _Loop:
        matched = any("distribution" in phase.weights for phase in plan.phases)
        reference = measure_reference(model, facets, images, input_spec=spec) if matched else None
        return cls(model, facets, images, spec, reference, torch.Generator().manual_seed(seed), [], bar)

    def run(self, plan: Recipe) -> tuple[Tensor, Tensor]:
        """The start, on the CPU, and the canvas after the last phase."""
        start = self.start(plan)
        canvas = start.to(next(self.model.parameters(), start).device)
        with guard(self.model), torch.enable_grad():
            for phase in plan.phases:
                canvas = self.phase(canvas, phase, plan.param)
        return start, canvas

    def start(self, plan: Recipe) -> Tensor:
        size, channels = self.spec.size, self.spec.channels
        if plan.start == "noise":
            return noise_images(len(self.facets), (channels, size, size), self.generator, *plan.noise)
        if plan.start != "mean":
            raise RecipeError(f"a recipe starts at mean or noise, not {plan.start!r}")
        return self.spec.resize(mean_images(self.facets, self.images, plan.n_images))

    def phase(self, canvas: Tensor, phase: Phase, param: str) -> Tensor:
        params, image_f = _PARAMS[param](_zoomed(canvas, phase.scale))()
        terms = {name: make_term(name, self.facets, self.reference) for name in phase.weights}
        transform = self.transform(phase)
        optimizer = _optimizer(phase, params, transform, self.spec.size)
        unit, feed = self.facets[0].unit, self.spec.feed(self.model)
        layers = {unit.layer_name, *(layer for term in terms.values() for layer in term.layers)}
        with capture(self.model, sorted(layers)) as run:
            for step in range(phase.steps):
                _set_schedule(optimizer, phase, step)
                outputs = run(feed(transform(image_f())))
                losses = _losses(terms, outputs)
                total = torch.stack([phase.weights[name] * loss for name, loss in losses.items()]).sum(0)
                (params[0].grad,) = torch.autograd.grad(total.sum(), params)
                self.check(total, params[0].grad)
                optimizer.step()
                self.record(losses, unit.read(outputs[unit.layer_name]))
        return image_f().detach()

    def transform(self, phase: Phase) -> Callable[[Tensor], Tensor]:
        if phase.optimizer == "tv":
            return center_crop(self.spec.size, phase.window, generator=self.generator)
        if phase.affine is None:
            return lambda images: images
        return affine(*phase.affine, generator=self.generator)

    def check(self, total: Tensor, gradient: Tensor) -> None:
        """Name the facet whose loss or gradient can't be followed, instead of drawing grey noise."""
        finite = total.isfinite() & gradient.flatten(1).isfinite().all(1)
        alive = gradient.flatten(1).any(1)
        for item, is_finite, is_alive in zip(self.facets, finite.tolist(), alive.tolist(), strict=True):
            if not is_finite:
                raise RenderError(
                    f"facet {item.index}: the loss or its gradient isn't finite at step {len(self.records)}"
                )
            if not is_alive:
                raise RenderError(
                    f"facet {item.index}: no gradient reaches the image at step {len(self.records)}; "
                    f"is {item.unit} dead, or behind a saturated layer?"
                )

    def record(self, losses: Mapping[str, Tensor], activation: Tensor) -> None:
        now = {**losses, "activation": activation}
        self.records.append({name: value.detach().float().cpu() for name, value in now.items()})
        self.bar.update()

    def history(self) -> dict[str, NDArray[np.float32]]:
        """(n_steps, n_facets) of each term; NaN in phases that don't have it."""
        names = {name: None for record in self.records for name in record}
        missing = torch.full((len(self.facets),), torch.nan)
        return {name: torch.stack([record.get(name, missing) for record in self.records]).numpy() for name in names}


def _losses(terms: Mapping[str, Term], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: term(outputs).float() for name, term in terms.items()}


def _zoomed(canvas: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return canvas
    size = [round(side * scale) for side in canvas.shape[-2:]]
    return torch.nn.functional.interpolate(canvas, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def _optimizer(
    phase: Phase, params: list[Tensor], transform: Callable[[Tensor], Tensor], size: int
) -> torch.optim.Optimizer:
    if phase.optimizer == "adam":
        return torch.optim.Adam(params, lr=phase.lr.start)
    if phase.optimizer == "tv":
        crop = transform if isinstance(transform, CenterCrop) else None
        return TVAscent(params, margin=round(phase.margin * size), crop=crop)
    raise RecipeError(f"a phase's optimizer is adam or tv, not {phase.optimizer!r}")


def _set_schedule(optimizer: torch.optim.Optimizer, phase: Phase, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = phase.lr.at(step, phase.steps)
        if phase.tv_weight is not None:
            group["tv_weight"] = phase.tv_weight.at(step, phase.steps)
