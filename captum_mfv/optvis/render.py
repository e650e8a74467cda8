"""Our render loop: every facet of a unit in one batch, the model left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from captum_mfv.activations import capture, guard
from captum_mfv.errors import MFVWarning, RecipeError, RenderError
from captum_mfv.facets import Facet
from captum_mfv.images import Images, InputSpec
from captum_mfv.optvis.initializer import as_facets, mean_images, noise_images
from captum_mfv.optvis.objectives import Reference, Term, make_term, measure_reference
from captum_mfv.optvis.optimizers import TVAscent
from captum_mfv.optvis.param import ParamF, fft_image_from, pixel_image_from
from captum_mfv.optvis.recipes import Phase, Recipe, get_recipe
from captum_mfv.optvis.transform import CenterCrop, affine, center_crop

__all__ = ["Rendering", "render_facets"]

Callback: TypeAlias = Callable[[int, Tensor], None]
Job: TypeAlias = tuple[int, int]
"""Row of a facet, and a seed."""

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
        complete: whether every step was done; False after Ctrl-C.
    """

    facet: Facet
    image: Tensor
    start: Tensor
    history: Mapping[str, NDArray[np.float32]]
    seed: int
    recipe: str
    complete: bool = True


def render_facets(
    model: nn.Module,
    facets: Facet | Sequence[Facet],
    images: Images,
    *,
    recipe: str | Recipe = "facet",
    steps: int | None = None,
    input_spec: InputSpec | None = None,
    seed: int | Sequence[int] = 0,
    max_batch: int | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> list[Rendering]:
    """Synthesise one image per facet, all in one batch.

    Each image draws from its own generator, seeded by the seed and the facet's index, so that it is the
    same in whatever batch. On one machine the same seed and
    batch give the same bytes; no global generator is touched. Ctrl-C ends it with the images so far and a
    warning.

    Args:
        model: the model in which the facets were found, on any device; left as it was.
        facets: a facet set, a facet or several of one unit.
        images: the dataset in which they were found.
        recipe: name of a recipe, or a `Recipe`.
        steps: this many steps, the recipe's phases in proportion.
        input_spec: what turns images in [0, 1] into the model's input; its size is the images' size.
        seed: seed of transforms and noise; several: each facet once for each.
        max_batch: images in one batch at most; by default all, and half as many when a GPU's memory is short.
        callback: called after each step with its number, from 1, and the images before it, (B, C, H, W).
        progress: show a progress bar.

    Returns:
        One `Rendering` for each facet, in their order; of several seeds, one seed after the other.

    Raises:
        RecipeError: if the recipe isn't known or doesn't fit, or ``max_batch`` is below 1.
        RenderError: if a loss stops being finite, or no gradient reaches an image.

    Warns:
        MFVWarning: if it was interrupted, or a facet's loss ends no lower than it began.
    """
    chosen = as_facets(facets)
    plan = get_recipe(recipe) if steps is None else get_recipe(recipe).with_steps(steps)
    spec = input_spec or InputSpec()
    matched = any("distribution" in phase.weights for phase in plan.phases)
    reference = measure_reference(model, chosen, images, input_spec=spec) if matched else None
    jobs = [(row, one) for one in ([seed] if isinstance(seed, int) else seed) for row in range(len(chosen))]
    batches = _split(jobs, max_batch or len(jobs))
    renderings: list[Rendering] = []
    with tqdm(total=plan.n_steps * len(batches), desc=_title(jobs, chosen), unit="step", disable=not progress) as bar:
        while batches:
            jobs = batches.pop(0)
            loop = _Loop.make(model, chosen, images, spec, reference, jobs, callback, bar)
            try:
                renderings += loop.run(plan)
            except torch.cuda.OutOfMemoryError:
                if len(jobs) == 1:
                    raise
                batches[:0] = _split(jobs, -(-len(jobs) // 2))
                bar.total += plan.n_steps + len(loop.records)
            if loop.interrupted:
                done = f"after {len(loop.records)} of {plan.n_steps} steps"
                warnings.warn(f"interrupted {done}; these are the images so far", MFVWarning, stacklevel=2)
                break
    return renderings


def _split(jobs: list[Job], size: int) -> list[list[Job]]:
    if size < 1:
        raise RecipeError(f"max_batch must be at least 1 image, not {size}")
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]


def _title(jobs: list[Job], facets: Sequence[Facet]) -> str:
    n_seeds = len(jobs) // len(facets)
    return f"{len(facets)} facets" if n_seeds == 1 else f"{len(facets)} facets, {n_seeds} seeds"


@dataclass(eq=False)
class _Loop:
    """What all phases of a batch share."""

    model: nn.Module
    facets: tuple[Facet, ...]
    seeds: tuple[int, ...]
    images: Images
    spec: InputSpec
    reference: Reference | None
    generators: list[torch.Generator]
    callback: Callback | None
    bar: Any
    records: list[dict[str, Tensor]] = field(default_factory=list)
    totals: list[Tensor] = field(default_factory=list)
    interrupted: bool = False

    @classmethod
    def make(
        cls,
        model: nn.Module,
        facets: Sequence[Facet],
        images: Images,
        spec: InputSpec,
        reference: Reference | None,
        jobs: Sequence[Job],
        callback: Callback | None,
        bar: Any,
    ) -> _Loop:
        rows, seeds = zip(*jobs, strict=True)
        chosen = tuple(facets[row] for row in rows)
        generators = [_generator(seed, item) for item, seed in zip(chosen, seeds, strict=True)]
        own = None if reference is None else reference.rows(rows)
        return cls(model, chosen, seeds, images, spec, own, generators, callback, bar)

    def run(self, plan: Recipe) -> list[Rendering]:
        start = self.start(plan)
        canvas = start.to(next(self.model.parameters(), start).device)
        with guard(self.model), torch.enable_grad():
            for phase in plan.phases:
                if not self.interrupted:
                    canvas = self.phase(canvas, phase, plan.param)
        final = center_crop(self.spec.size, 0.0)(canvas).cpu()
        history = self.history()
        return [
            Rendering(
                facet=item,
                image=final[i],
                start=start[i],
                history={name: values[:, i] for name, values in history.items()},
                seed=self.seeds[i],
                recipe=plan.name,
                complete=not self.interrupted,
            )
            for i, item in enumerate(self.facets)
        ]

    def start(self, plan: Recipe) -> Tensor:
        """Where the images start, on the CPU."""
        size, channels = self.spec.size, self.spec.channels
        if plan.start == "noise":
            return noise_images((channels, size, size), self.generators, *plan.noise)
        if plan.start != "mean":
            raise RecipeError(f"a recipe starts at mean or noise, not {plan.start!r}")
        return self.spec.resize(mean_images(self.facets, self.images, plan.n_images))

    def phase(self, canvas: Tensor, phase: Phase, param: str) -> Tensor:
        """The canvas after a phase, or as far as it came before Ctrl-C."""
        params, image_f = _PARAMS[param](_zoomed(canvas, phase.scale))()
        terms = {name: make_term(name, self.facets, self.reference) for name in phase.weights}
        transform = self.transform(phase)
        optimizer = _optimizer(phase, params, transform, self.spec.size)
        self.totals.clear()
        try:
            self.descend(phase, terms, params, image_f, transform, optimizer)
        except KeyboardInterrupt:
            self.interrupted = True
        self.check_gain()
        return image_f().detach()

    def descend(
        self,
        phase: Phase,
        terms: Mapping[str, Term],
        params: list[Tensor],
        image_f: Callable[[], Tensor],
        transform: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        unit, feed = self.facets[0].unit, self.spec.feed(self.model)
        layers = {unit.layer_name, *(layer for term in terms.values() for layer in term.layers)}
        with capture(self.model, sorted(layers)) as run:
            for step in range(phase.steps):
                _set_schedule(optimizer, phase, step)
                images = image_f()
                outputs = run(feed(transform(images)))
                losses = _losses(terms, outputs)
                total = torch.stack([phase.weights[name] * loss for name, loss in losses.items()]).sum(0)
                (params[0].grad,) = torch.autograd.grad(total.sum(), params)
                self.check(total, params[0].grad)
                optimizer.step()
                self.record(total, losses, unit.read(outputs[unit.layer_name]))
                if self.callback is not None:
                    self.callback(len(self.records), images.detach())

    def transform(self, phase: Phase) -> Callable[[Tensor], Tensor]:
        if phase.optimizer == "tv":
            return center_crop(self.spec.size, phase.window, generator=self.generators)
        if phase.affine is None:
            return lambda images: images
        return affine(*phase.affine, generator=self.generators)

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

    def check_gain(self) -> None:
        """Name facets whose loss is no lower over a phase's last tenth than over its first."""
        tenth = len(self.totals) // 10
        if self.interrupted or tenth < 2:  # too few to tell from the transforms' noise
            return
        first, last = torch.stack(self.totals[:tenth]).mean(0), torch.stack(self.totals[-tenth:]).mean(0)
        stuck = [str(self.facets[i].index) for i in (last >= first).nonzero().flatten().tolist()]
        if stuck:
            message = f"facet {', '.join(stuck)}: {len(self.totals)} steps gained nothing"
            warnings.warn(f"{message}; the image may not show the facet", MFVWarning, stacklevel=5)

    def record(self, total: Tensor, losses: Mapping[str, Tensor], activation: Tensor) -> None:
        now = {**losses, "activation": activation}
        self.records.append({name: value.detach().float().cpu() for name, value in now.items()})
        self.totals.append(total.detach().cpu())
        self.bar.update()

    def history(self) -> dict[str, NDArray[np.float32]]:
        """(n_steps, n_facets) of each term; NaN in phases that don't have it."""
        names = {name: None for record in self.records for name in record}
        missing = torch.full((len(self.facets),), torch.nan)
        return {name: torch.stack([record.get(name, missing) for record in self.records]).numpy() for name in names}


def _generator(seed: int, facet: Facet) -> torch.Generator:
    """An image's own generator, on the CPU, so that devices agree."""
    state = np.random.SeedSequence([abs(seed), int(seed < 0), facet.index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


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
