"""The loop of one batch: its images from their start to the end of a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations import capture, guard
from captum_mfv.errors import MFVWarning, RecipeError, RenderError
from captum_mfv.facets import Facet
from captum_mfv.images import Images, InputSpec, resize
from captum_mfv.memory import Portions
from captum_mfv.optvis.initializer import mean_images, medoid_images, noise_images, spectra, spectral_images
from captum_mfv.optvis.optimizers import TVAscent
from captum_mfv.optvis.param import (
    ParamF,
    Transparency,
    as_alpha,
    fft_image_from,
    maco_image_from,
    pixel_image_from,
)
from captum_mfv.optvis.passes import Pass, Seen
from captum_mfv.optvis.recipes import Phase, Recipe
from captum_mfv.optvis.terms import INPUT, Term
from captum_mfv.optvis.transform import CenterCrop, center_crop, compose, make_transform

__all__ = ["Batch", "Callback"]

Callback: TypeAlias = Callable[[int, Tensor], None]


@dataclass(eq=False)
class Batch:
    """A batch of images of facets, and what became of it so far.

    Args:
        model: the model.
        facets: the facet of each image.
        images: the dataset in which the facets were found.
        spec: what turns images into the model's input.
        size: side of the images in pixels.
        terms: objective terms by name, a row for each image.
        generators: each image's own.
        given: where the images start, (B, C, H, W), or None for the recipe's start.
        colors: decorrelation of colours for the parameterization, or None for ImageNet's.
        dtype: precision of the network under autocast, or None for its own.
        portions: how many images go through the network at once.
        callback: called after each step.
        bar: progress.
    """

    model: nn.Module
    facets: tuple[Facet, ...]
    images: Images
    spec: InputSpec
    size: int
    terms: Mapping[str, Term]
    generators: Sequence[torch.Generator]
    given: Tensor | None
    colors: Tensor | None
    dtype: torch.dtype | None
    portions: Portions
    callback: Callback | None
    bar: Any
    records: list[dict[str, Tensor]] = field(default_factory=list, init=False)
    totals: list[Tensor] = field(default_factory=list, init=False)
    seen: list[Tensor] = field(default_factory=list, init=False)
    interrupted: bool = field(default=False, init=False)

    def run(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Where the images started and where they ended, (B, C, size, size) on the CPU."""
        start = self.start(recipe)
        canvas = start.to(next(self.model.parameters(), start).device)
        with guard(self.model), torch.enable_grad():
            for phase in recipe.phases:
                if not self.interrupted:
                    canvas = self.phase(_zoomed(canvas, int(self.size * phase.scale)), phase, recipe)
        return start, self.middle(canvas)

    def start(self, recipe: Recipe) -> Tensor:
        """Where the images start, on the CPU."""
        if self.given is not None:
            return resize(self.given.detach().float().cpu(), self.size)
        if recipe.start == "noise":
            return noise_images((self.spec.channels, self.size, self.size), self.generators, *recipe.noise)
        if recipe.start == "spectrum":
            return spectral_images(self.facets, self.images, self.generators, size=self.size)
        if recipe.start == "medoid":
            return resize(medoid_images(self.facets, self.images), self.size)
        return resize(mean_images(self.facets, self.images, recipe.n_images), self.size)

    def phase(self, canvas: Tensor, phase: Phase, recipe: Recipe) -> Tensor:
        """The canvas after a phase, or as far as it came before Ctrl-C."""
        transparency = Transparency(self.param_f(canvas, recipe))
        params, image_f = transparency()
        transforms = [
            make_transform(name, arguments, self.size, self.generators) for name, arguments in phase.transforms.items()
        ]
        optimizer = _optimizer(phase, params, transforms)
        self.totals.clear()
        try:
            self.descend(phase, params, image_f, compose(transforms), optimizer)
        except KeyboardInterrupt:
            self.interrupted = True
        if self.totals:
            self.seen.append(self.middle(transparency.total[:, None])[:, 0])
        self.check_gain()
        return image_f().detach()

    def param_f(self, canvas: Tensor, recipe: Recipe) -> ParamF:
        """The recipe's parameterization, started at the canvas."""
        if recipe.param == "pixel":
            return pixel_image_from(canvas)
        if recipe.param == "fft":
            return fft_image_from(canvas, colors=self.colors)
        magnitudes = spectra(self.facets, self.images, size=canvas.shape[-1], colors=self.colors)
        return maco_image_from(canvas, magnitudes, colors=self.colors)

    def middle(self, canvas: Tensor) -> Tensor:
        """What of a canvas is the image, on the CPU."""
        if canvas.shape[-1] < self.size:
            return resize(canvas, self.size).cpu()
        return center_crop(self.size, 0.0)(canvas).cpu()

    def descend(
        self,
        phase: Phase,
        params: list[Tensor],
        image_f: Callable[[], Tensor],
        transform: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """The steps of a phase."""
        unit, terms = self.facets[0].unit, {name: self.terms[name] for name in phase.weights}
        layers = {unit.layer_name, *(layer for term in terms.values() for layer in term.layers)} - {INPUT}
        with capture(self.model, sorted(layers)) as run:
            look = Pass(run, self.spec.feed(self.model), unit, terms, phase.weights, self.dtype, self.portions)
            for step in range(phase.steps):
                _set_schedule(optimizer, phase, step)
                images = image_f()
                views = transform(images)
                seen = look(images, views)
                torch.autograd.backward([views, images], [seen.views, seen.images], inputs=params)
                self.check(seen, params[0])
                optimizer.step()
                optimizer.zero_grad()
                self.record(seen)
                if self.callback is not None:
                    self.callback(len(self.records), images.detach())

    def check(self, seen: Seen, parameter: Tensor) -> None:
        """Name the facet whose loss or gradient can't be followed, instead of drawing grey noise."""
        assert parameter.grad is not None
        steepest = parameter.grad.flatten(1).abs().amax(1)  # NaN where any number is
        finite = seen.total.isfinite() & seen.activation.isfinite() & steepest.isfinite()
        for item, is_finite, is_alive in zip(self.facets, finite.tolist(), (steepest > 0).tolist(), strict=True):
            if not is_finite:
                raise RenderError(
                    f"facet {item.index}: the loss, its gradient or the unit isn't finite at step {len(self.records)}"
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

    def record(self, seen: Seen) -> None:
        """Note a step."""
        now = {**seen.losses, "activation": seen.activation}
        self.records.append({name: value.float().cpu() for name, value in now.items()})
        self.totals.append(seen.total.cpu())
        self.bar.update()

    def transparency(self) -> Tensor:
        """(B, size, size) in [0, 1], over all phases."""
        return (
            as_alpha(torch.stack(self.seen).sum(0))
            if self.seen
            else torch.zeros(len(self.facets), self.size, self.size)
        )

    def history(self) -> dict[str, NDArray[np.float32]]:
        """(n_steps, B) of each term; NaN in phases that don't have it."""
        names = {name: None for record in self.records for name in record}
        missing = torch.full((len(self.facets),), torch.nan)
        return {name: torch.stack([record.get(name, missing) for record in self.records]).numpy() for name in names}


def _zoomed(canvas: Tensor, size: int) -> Tensor:
    if canvas.shape[-1] == size:
        return canvas
    if size < 1:
        raise RecipeError("the recipe's scale leaves no pixel of the image")
    if canvas.shape[-1] > size:
        return resize(canvas, size)
    return torch.nn.functional.interpolate(canvas, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def _optimizer(
    phase: Phase, params: list[Tensor], transforms: Sequence[Callable[[Tensor], Tensor]]
) -> torch.optim.Optimizer:
    if phase.optimizer == "adam":
        return torch.optim.Adam(params, lr=phase.lr.start)
    return TVAscent(params, crop=next((one for one in transforms if isinstance(one, CenterCrop)), None))


def _set_schedule(optimizer: torch.optim.Optimizer, phase: Phase, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = phase.lr.at(step, phase.steps)
        if phase.tv_weight is not None:
            group["tv_weight"] = phase.tv_weight.at(step, phase.steps)
