"""The loop of one batch: its images from their start to the end of a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.batching import AdaptiveBatches
from captum_mfv.activations.capture import capture, guard
from captum_mfv.errors import MFVWarning, RecipeError, RenderError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.images import Images, InputSpec, resize
from captum_mfv.optvis.descent import Descent
from captum_mfv.optvis.initializer import mean_images, medoid_images, noise_images, spectra, spectral_images
from captum_mfv.optvis.param import ParamF, as_alpha, fft_image_from, maco_image_from, pixel_image_from
from captum_mfv.optvis.passes import Pass, Seen
from captum_mfv.optvis.recipes import Recipe
from captum_mfv.optvis.terms import INPUT, Term, activation_term
from captum_mfv.optvis.transform import center_crop
from captum_mfv.storage.checkpoint import Checkpoint

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
        checkpoint: where the state is saved now and then, and taken up from.
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
    portions: AdaptiveBatches
    callback: Callback | None
    bar: Any
    checkpoint: Checkpoint | None = None
    records: list[dict[str, Tensor]] = field(default_factory=list, init=False)
    seen: list[Tensor] = field(default_factory=list, init=False)
    interrupted: bool = field(default=False, init=False)

    def run(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Where the images started and where they ended, (B, C, size, size) on the CPU."""
        start = self.start(recipe)
        canvas = start.to(next(self.model.parameters(), start).device)
        saved = None if self.checkpoint is None else self.checkpoint.load()
        reading = nullcontext if self.checkpoint is None else self.checkpoint.reading
        with reading():
            first = 0 if saved is None else self.restore(saved)
        with guard(self.model), torch.enable_grad():
            for number, phase in enumerate(recipe.phases[first:], first):
                if not self.interrupted:
                    canvas = _zoomed(canvas, int(self.size * phase.scale))
                    descent = Descent.begin(phase, self.param_f(canvas, recipe), self.size, self.generators)
                    if saved is not None and number == first:
                        with reading():
                            descent.restore(saved)
                    canvas = self.phase(descent, number)
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

    def phase(self, descent: Descent, number: int) -> Tensor:
        """The canvas after a phase, or as far as it came before Ctrl-C."""
        try:
            self.descend(descent, number)
        except KeyboardInterrupt:
            self.interrupted = True
        if descent.totals:
            self.seen.append(self.middle(descent.transparency.total[:, None])[:, 0])
        self.check_gain(descent.totals)
        return descent.image_f().detach()

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

    def descend(self, descent: Descent, number: int) -> None:
        """The steps of a phase that are left."""
        phase, params = descent.phase, descent.params
        terms, activation = {name: self.terms[name] for name in phase.weights}, activation_term(self.facets)
        layers = {*activation.layers, *(layer for term in terms.values() for layer in term.layers)} - {INPUT}
        with capture(self.model, sorted(layers)) as run:
            look = Pass(run, self.spec.feed(self.model), activation, terms, phase.weights, self.dtype, self.portions)
            while descent.step < phase.steps:
                descent.schedule()
                images = descent.image_f()
                views = descent.transform(images)
                seen = look(images, views)
                torch.autograd.backward([views, images], [seen.views, seen.images], inputs=params)
                self.check(seen, params[0])
                descent.optimizer.step()
                descent.optimizer.zero_grad()
                descent.totals.append(seen.total.cpu())
                descent.step += 1
                self.record(seen)
                if self.checkpoint is not None and self.checkpoint.due:
                    self.checkpoint.save(self.state(descent, number))
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

    def check_gain(self, totals: Sequence[Tensor]) -> None:
        """Name facets whose loss is no lower over a phase's last tenth than over its first."""
        tenth = len(totals) // 10
        if self.interrupted or tenth < 2:  # too few to tell from the transforms' noise
            return
        first, last = torch.stack([*totals[:tenth]]).mean(0), torch.stack([*totals[-tenth:]]).mean(0)
        stuck = [str(self.facets[i].index) for i in (last >= first).nonzero().flatten().tolist()]
        if stuck:
            message = f"facet {', '.join(stuck)}: {len(totals)} steps gained nothing"
            warnings.warn(f"{message}; the image may not show the facet", MFVWarning, stacklevel=5)

    def record(self, seen: Seen) -> None:
        """Note a step."""
        now = {**seen.losses, "activation": seen.activation}
        self.records.append({name: value.float().cpu() for name, value in now.items()})
        self.bar.update()

    def state(self, descent: Descent, number: int) -> dict[str, Tensor]:
        """All that the batch goes on from, in its phase of some number, as `restore` takes it."""
        history = {f"history.{name}": torch.from_numpy(values) for name, values in self.history().items()}
        generators = torch.stack([generator.get_state() for generator in self.generators])
        seen = {f"seen.{i:04}": total for i, total in enumerate(self.seen)}
        return {**descent.state(), "phase": torch.tensor(number), "generators": generators, **history, **seen}

    def restore(self, state: Mapping[str, Tensor]) -> int:
        """Go on from what `state` gave; returns the number of the phase."""
        for generator, its in zip(self.generators, state["generators"], strict=True):
            generator.set_state(its.clone())
        self.seen = [state[name] for name in sorted(state) if name.startswith("seen.")]
        history = {name.removeprefix("history."): state[name] for name in state if name.startswith("history.")}
        for step in range(len(history["activation"])):
            row = {name: values[step] for name, values in history.items()}
            self.records.append({name: values for name, values in row.items() if not values.isnan().all()})
        self.bar.update(len(self.records))
        return int(state["phase"])

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
