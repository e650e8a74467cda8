"""The render loop: a batch of images through the phases of a recipe, saved and resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from captum_mfv.activations.batching import AdaptiveBatches
from captum_mfv.activations.capture import capture, guard
from captum_mfv.display.progress import Progress
from captum_mfv.errors import MFVWarning, RecipeError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.images import Images, InputSpec
from captum_mfv.images.preprocessing import resize
from captum_mfv.optvis import initializer
from captum_mfv.optvis.param import as_alpha
from captum_mfv.optvis.recipes import Phase, Recipe
from captum_mfv.optvis.step import History, Passes, PhaseState, prefixed
from captum_mfv.optvis.terms import INPUT, Term, activation_term
from captum_mfv.optvis.transform import center_crop
from captum_mfv.storage.files import Checkpoint

__all__ = ["Callback", "RenderLoop"]

Callback: TypeAlias = Callable[[int, Tensor], None]
"""Called with the number of steps so far and the images."""


@dataclass(eq=False)
class RenderLoop:
    """The optimization of a batch of images by a recipe; ``facets``, ``seeds`` and rows of ``terms``: one per image.

    Fields are as for `render_facets`; ``colors`` is the parameterization's color decorrelation, None for ImageNet's.
    """

    model: nn.Module
    images: Images
    recipe: Recipe
    facets: tuple[Facet, ...]
    seeds: tuple[int, ...]
    terms: Mapping[str, Term]
    start: Tensor | None
    spec: InputSpec
    size: int
    colors: Tensor | None
    dtype: torch.dtype | None
    batches: AdaptiveBatches
    bar: Progress
    callback: Callback | None
    checkpoint: Checkpoint | None = None
    interrupted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.history = History(self.facets)
        pairs = zip(self.seeds, self.facets, strict=True)
        self._generators = [initializer.own_generator(seed, item) for seed, item in pairs]
        self._transparencies: list[Tensor] = []

    def run(self) -> tuple[Tensor, Tensor]:
        """Return the images at the start and at the end, (B, C, size, size) on the CPU."""
        start = self._start().cpu()
        canvas = start.to(next(self.model.parameters(), start).device)
        saved = None if self.checkpoint is None else self.checkpoint.load()
        reading = nullcontext if self.checkpoint is None else self.checkpoint.reading
        with reading():
            first = 0 if saved is None else self._restore(saved)
        with guard(self.model), torch.enable_grad():
            for number, phase in enumerate(self.recipe.phases[first:], first):
                canvas = _resized(canvas, int(self.size * phase.scale))
                param_f = initializer.parameterize(self.recipe, canvas, self.facets, self.images, self.colors)
                state = PhaseState.begin(phase, param_f, self.size, self._generators)
                if saved is not None and number == first:
                    with reading():
                        self._restore_phase(state, number, saved)
                canvas = self._run_phase(state, number)
                if self.interrupted:
                    break
        return start, self._output(canvas)

    def transparency(self) -> Tensor:
        """Return (B, size, size) in [0, 1], over all phases."""
        if not self._transparencies:
            return torch.zeros(len(self.facets), self.size, self.size)
        return as_alpha(torch.stack(self._transparencies).sum(0))

    def _start(self) -> Tensor:
        """Return the images at the start."""
        if self.start is not None:
            return resize(self.start.detach().float(), self.size)
        shape = (self.spec.channels, self.size, self.size)
        return initializer.start_images(self.recipe, self.facets, self.images, self._generators, shape)

    def _run_phase(self, state: PhaseState, number: int) -> Tensor:
        """Return the canvas after a phase, or after the last step before Ctrl-C."""
        try:
            self._run_steps(state, number)
        except KeyboardInterrupt:
            self.interrupted = True
        self.history.read()
        if state.step:
            self._transparencies.append(self._output(state.transparency.total[:, None])[:, 0])
        if not self.interrupted:
            self._check_gain(state.phase)
        return state.image_f().detach()

    def _run_steps(self, state: PhaseState, number: int) -> None:
        """Do the steps of a phase that are left."""
        weights = state.phase.weights
        terms = {name: self.terms[name] for name in weights} | {"activation": activation_term(self.facets)}
        layers = {layer for term in terms.values() for layer in term.layers} - {INPUT}
        with capture(self.model, sorted(layers)) as run:
            passes = Passes(run, self.spec.feed(self.model), terms, weights, self.dtype, self.batches)
            while state.step < state.phase.steps:
                images = state.advance(passes, self.history)
                self.bar.update()
                if self.checkpoint is not None and self.checkpoint.due:
                    self.checkpoint.save(self._state(state, number))
                if self.callback is not None:
                    self.callback(len(self.history), images)

    def _check_gain(self, phase: Phase) -> None:
        """Warn of facets whose loss is no lower over a phase's last tenth than over its first."""
        tenth = phase.steps // 10
        if tenth < 2:  # too few steps to average out the transforms' noise
            return
        losses = [
            torch.stack([weight * step[name] for name, weight in phase.weights.items()]).sum(0)
            for step in self.history.steps[-phase.steps :]
        ]
        first, last = torch.stack(losses[:tenth]).mean(0), torch.stack(losses[-tenth:]).mean(0)
        stuck = [self.facets[i] for i in (last >= first).nonzero().flatten().tolist()]
        if stuck:
            units = {item.unit: [str(other.index) for other in stuck if other.unit == item.unit] for item in stuck}
            named = "; ".join(f"facet {', '.join(indices)} of {unit}" for unit, indices in units.items())
            message = f"{named}: {phase.steps} steps gained nothing; the image may not show the facet"
            warnings.warn(message, MFVWarning, stacklevel=5)

    def _output(self, canvas: Tensor) -> Tensor:
        """Crop or resize the canvas to the output size, on the CPU."""
        if canvas.shape[-1] < self.size:
            return resize(canvas, self.size).cpu()
        return center_crop(self.size, 0.0)(canvas).cpu()

    def _state(self, state: PhaseState, number: int) -> dict[str, Tensor]:
        """Return the state needed to resume, in the phase of a number."""
        history = {f"history.{name}": torch.from_numpy(values) for name, values in self.history.arrays().items()}
        generators = torch.stack([generator.get_state() for generator in self._generators])
        earlier = {f"transparency.{i:04}": total for i, total in enumerate(self._transparencies)}
        return {**state.state(), "phase": torch.tensor(number), "generators": generators, **history, **earlier}

    def _restore(self, saved: Mapping[str, Tensor]) -> int:
        """Resume generators, history and earlier phases from `_state`; return the number of the phase."""
        for generator, its in zip(self._generators, saved["generators"], strict=True):
            generator.set_state(its.clone())
        self._transparencies = [saved[name] for name in sorted(saved) if name.startswith("transparency.")]
        self.history.restore(prefixed("history.", saved))
        self.bar.update(len(self.history))
        return int(saved["phase"])

    def _restore_phase(self, state: PhaseState, number: int, saved: Mapping[str, Tensor]) -> None:
        state.restore(saved)
        n_steps = sum(phase.steps for phase in self.recipe.phases[:number]) + state.step
        if len(self.history) != n_steps:
            raise ValueError(f"it has the losses of {len(self.history)} steps, not of {n_steps}")


def _resized(canvas: Tensor, size: int) -> Tensor:
    """Return the canvas at another size, in [0, 1]."""
    if canvas.shape[-1] == size:
        return canvas
    if size < 1:
        raise RecipeError("the recipe's scale leaves no pixel of the image")
    if canvas.shape[-1] > size:
        return resize(canvas, size)
    return torch.nn.functional.interpolate(canvas, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
