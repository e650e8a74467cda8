#!/usr/bin/env python
"""Measure the duration of a step: python benchmarks/speed.py [--size 227] [--facets 10] [--steps 24]

Prints ratios, measured on SqueezeNet 1.0 with a batch of facets: a step of the recipe `facet` to the bare model's
forward pass and input gradient on the same batch; a step of Lucent's render loop to one of `render_facets`, with the
same facets, objective and transforms; both for a unit of features.5 with a plain objective and no transforms; and the
last of twenty calls to the first. Also prints the peak memory before Lucent is imported. Because a machine's speed
drifts, a step of the bare model follows each measured step, and the two loops alternate.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from captum_mfv import FacetSet, InputSpec, Unit, find_facets
from captum_mfv.optvis import initializer, objectives, transform
from captum_mfv.optvis.recipes import Phase, Recipe, get_recipe
from captum_mfv.optvis.render import render_facets

_ROUNDS = 4  # alternations of the two loops


class Clock:
    """Seconds of steps, and of the bare model's steps between them.

    Args:
        bare: function that runs a step of the bare model.
    """

    def __init__(self, bare: Callable[[], object]) -> None:
        self.bare = bare
        self.steps: list[float] = []
        self.bares: list[float] = []
        self._began: float | None = None

    def __call__(self, *_: object) -> None:
        """Record the end of a step."""
        ended = time.perf_counter()
        if self._began is not None:
            self.steps.append(ended - self._began)
        self.bare()
        self._began = time.perf_counter()
        self.bares.append(self._began - ended)

    def rest(self) -> None:
        """Ignore the time until the next step."""
        self._began = None

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return median(self.steps)

    @property
    def ratio(self) -> float:
        """Median ratio of a step to the bare model's step after it."""
        return median(mine / bare for mine, bare in zip(self.steps, self.bares[1:], strict=True))


def bare(model: nn.Module, images: Tensor, layer: str) -> Callable[[], object]:
    """Return a step of the bare model: forward to a layer and input gradient, in the faster memory format."""
    model = copy.deepcopy(model).requires_grad_(False)
    names = [name for name, _ in model.named_children()]
    stem, _, index = layer.partition(".")
    part = model if stem != names[0] else model.get_submodule(stem)[: int(index) + 1]

    def step_in(memory: torch.memory_format) -> Callable[[], object]:
        batch = images.contiguous(memory_format=memory)

        def step() -> object:
            x = batch.clone(memory_format=torch.preserve_format).requires_grad_()
            return torch.autograd.grad(part(x).sum(), x)

        return step

    return min((step_in(memory) for memory in (torch.contiguous_format, torch.channels_last)), key=seconds)


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call, the minimum of four."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def timed(param_f: Any, clock: Clock) -> Any:
    """Return the ``param_f`` with a clock that is called once per step."""

    def timed_f() -> Any:
        params, image_f = param_f()

        def image() -> Tensor:
            clock()
            found: Tensor = image_f()
            return found

        return params, image

    return timed_f


def compare(name: str, unit: Unit, recipe: Recipe, plain: bool, images: Tensor, args: argparse.Namespace) -> None:
    """Print the times of one unit and recipe."""
    spec = InputSpec(args.size)
    model = torchvision.models.squeezenet1_0(weights=None).eval()
    facets = find_facets(model, unit, images, n_facets=args.facets, input_spec=spec)
    alone = bare(model, spec(initializer.mean_images(facets.facets, images)), unit.layer_name)

    def ours(n: int, clock: Clock | None = None) -> object:
        def after(step: int, _: Tensor) -> None:
            if clock is not None:
                clock()

        return render_facets(model, facets, images, recipe=recipe, steps=n, input_spec=spec, callback=after)

    ours(args.steps, mine := Clock(alone))
    print(f"{name}: a step {mine.step:.3f} s, {mine.ratio:.2f} x the bare model's", flush=True)
    if name.startswith("recipe"):
        growth(ours)
        print(f"peak memory {peak():.0f} MiB", flush=True)
    from lucent.optvis.render import render_vis

    objective, param_f, transforms = _pieces(model, facets, images, plain, spec)
    own, lucents = Clock(lambda: None), Clock(lambda: None)
    for _ in range(_ROUNDS):
        own.rest()
        ours(args.steps // _ROUNDS, own)
        lucents.rest()
        render_vis(
            model,
            objective,
            timed(param_f, lucents),
            transforms=transforms,
            thresholds=[args.steps // _ROUNDS],
            preprocess=False,
            fixed_image_size=spec.size,
            show_image=False,
            progress=False,
        )
    print(f"  in Lucent's loop: {lucents.step:.3f} s, {lucents.step / own.step:.2f} x render_facets's", flush=True)


def _pieces(
    model: nn.Module, facets: FacetSet, images: Tensor, plain: bool, spec: InputSpec
) -> tuple[Any, Any, list[Any]]:
    param_f = initializer.mean_image(facets.facets, images)
    if plain:
        return objectives.unit(facets.facets), param_f, [spec]
    reference = objectives.measure_reference(model, facets.facets, images, input_spec=spec)
    affine = transform.affine(**get_recipe("facet").phases[0].transforms["affine"])
    return objectives.facet(facets.facets, reference), param_f, [affine, spec]


def growth(steps: Callable[[int], object]) -> None:
    """Print the ratio of the last of twenty calls to the first."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        steps(1)
        times.append(time.perf_counter() - began)
    first, last = sorted(times[:5])[2], sorted(times[-5:])[2]
    print(f"the last of twenty calls: {last / first:.2f} x the first", flush=True)


def peak() -> float:
    """Return the peak memory of this process in MiB, from /proc."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found.group(1)) / 1024 if found else float("nan")


def main() -> None:
    """Measure both units."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=227)
    parser.add_argument("--facets", type=int, default=10)
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(2)
    images = torch.rand(10 * args.facets, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    plain = Recipe("plain", "", "mean", "fft", (Phase(1, {"unit": 1.0}),))
    compare("recipe facet", Unit("classifier.1", 945), get_recipe("facet"), False, images, args)
    compare("plain objective, features.5", Unit("features.5", [1.0] * 256), plain, True, images, args)


if __name__ == "__main__":
    main()
