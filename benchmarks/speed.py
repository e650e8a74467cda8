#!/usr/bin/env python
"""How fast a step is: python benchmarks/speed.py [--size 224] [--facets 10]

Prints, as ratios in one run on SqueezeNet 1.0 with a batch of facets: a step of the recipe `facet` against the bare
model's forward pass and input gradient on the same batch; the same facets, objective and transforms through Lucent's
render loop against ours; the same for a unit of features.5 with a plain objective and no transforms; the last of
twenty calls against the first; and the peak memory of the process before Lucent is loaded.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from captum_mfv import FacetSet, InputSpec, Unit, find_facets
from captum_mfv.optvis import initializer, objectives, transform
from captum_mfv.optvis.recipes import Phase, Recipe, get_recipe
from captum_mfv.optvis.render import render_facets

_SHORT, _LONG = 2, 8


def a_step(steps: Callable[[int], object]) -> float:
    """Seconds of one step, what comes before the first left out; the quickest of three goes."""
    times = []
    for _ in range(3):
        marks = []
        for n in (_SHORT, _LONG):
            began = time.perf_counter()
            steps(n)
            marks.append(time.perf_counter() - began)
        times.append((marks[1] - marks[0]) / (_LONG - _SHORT))
    return min(times)


def bare(model: nn.Module, images: Tensor, layer: str) -> Callable[[int], None]:
    """Forward to a layer and gradient with respect to the images, weights frozen."""
    model = copy.deepcopy(model).requires_grad_(False)
    names = [name for name, _ in model.named_children()]
    stem, _, index = layer.partition(".")
    part = model if stem != names[0] else model.get_submodule(stem)[: int(index) + 1]

    def steps(n: int) -> None:
        for _ in range(n):
            x = images.clone(memory_format=torch.preserve_format).requires_grad_()
            torch.autograd.grad(part(x).sum(), x)

    return steps


def through_lucent(model: nn.Module, objective: Any, param_f: Any, transforms: list[Any], size: int) -> Any:
    """Steps of Lucent's own loop."""
    from lucent.optvis.render import render_vis

    def steps(n: int) -> None:
        render_vis(
            model,
            objective,
            param_f,
            transforms=transforms,
            thresholds=[n],
            preprocess=False,
            fixed_image_size=size,
            show_image=False,
            progress=False,
        )

    return steps


def compare(name: str, unit: Unit, recipe: Recipe, plain: bool, images: Tensor, n_facets: int, spec: InputSpec) -> None:
    """One unit and recipe: ours, the bare model, Lucent."""
    model = torchvision.models.squeezenet1_0(weights=None).eval()
    facets = find_facets(model, unit, images, n_facets=n_facets, input_spec=spec)

    def ours(n: int) -> None:
        render_facets(model, facets, images, recipe=recipe, steps=n, input_spec=spec)

    ours_takes = a_step(ours)
    batch = spec(initializer.mean_images(facets.facets, images))
    kinds = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    alone = {
        kind: a_step(bare(model, batch.contiguous(memory_format=memory), unit.layer_name))
        for kind, memory in kinds.items()
    }
    fastest = min(alone, key=lambda kind: alone[kind])
    print(
        f"{name}: a step {ours_takes:.3f} s, {ours_takes / alone[fastest]:.2f} x the bare model's ({fastest})",
        flush=True,
    )
    if name.startswith("recipe"):
        growth(ours)
        print(f"peak memory {peak():.0f} MiB", flush=True)
    lucent = through_lucent(model, *_pieces(model, facets, images, plain, spec), spec.size)
    lucent_takes = a_step(lucent)
    print(f"  the same through Lucent: {lucent_takes:.3f} s, {lucent_takes / ours_takes:.2f} x ours", flush=True)


def _pieces(
    model: nn.Module, facets: FacetSet, images: Tensor, plain: bool, spec: InputSpec
) -> tuple[Any, Any, list[Any]]:
    param_f = initializer.mean_image(facets.facets, images)
    if plain:
        return objectives.unit(facets.facets), param_f, [spec]
    reference = objectives.measure_reference(model, facets.facets, images, input_spec=spec)
    affine = transform.affine(**get_recipe("facet").phases[0].transforms["affine"])
    return objectives.facet(facets.facets, reference), param_f, [affine, spec]


def growth(steps: Callable[[int], None]) -> None:
    """Twenty calls in one process."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        steps(1)
        times.append(time.perf_counter() - began)
    first, last = sorted(times[:5])[2], sorted(times[-5:])[2]
    print(f"the last of twenty calls: {last / first:.2f} x the first", flush=True)


def peak() -> float:
    """Peak memory of this process in MiB, as Linux tells it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found.group(1)) / 1024 if found else float("nan")


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--facets", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(2)
    spec = InputSpec(args.size)
    images = torch.rand(10 * args.facets, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    plain = Recipe("plain", "", "mean", "fft", (Phase(1, {"unit": 1.0}),))
    compare("recipe facet", Unit("classifier.1", 945), get_recipe("facet"), False, images, args.facets, spec)
    compare("plain objective, features.5", Unit("features.5", [1.0] * 256), plain, True, images, args.facets, spec)


if __name__ == "__main__":
    main()
