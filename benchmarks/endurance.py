#!/usr/bin/env python
"""Measure leaks over many renders: python benchmarks/endurance.py [--renders 200] [--model squeezenet1_0]

Renders two facets repeatedly. Before and after each render, another process runs a few steps of the bare model: a
change of the machine's speed affects both processes, a slowdown of the rendering process only one. Prints medians of
the first and the last fifty renders, after ten warm-up renders: seconds, seconds divided by those of the bare model,
and memory; and the increase in hooks, threads, open files and tensors.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch import nn
from tqdm import tqdm

from captum_mfv import InputSpec, Unit, find_facets
from captum_mfv.optvis.render import render_facets

_WARM, _COMPARED = 10, 50


def resident() -> float:
    """Return the memory of this process in MiB, from /proc."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found.group(1)) / 1024 if found else float("nan")


def held(model: nn.Module) -> Counter[str]:
    """Count hooks, threads, open files and tensors."""
    gc.collect()
    names = [name for name in vars(nn.Module()) if name.endswith("hooks")]
    return Counter(
        {
            "hooks": sum(len(getattr(module, name)) for module in model.modules() for name in names),
            "threads": threading.active_count(),
            "open files": len(list(Path("/proc/self/fd").iterdir())),
            "tensors": sum(isinstance(item, torch.Tensor) for item in gc.get_objects()),
        }
    )


def timed(work: Callable[[], object]) -> float:
    """Return the duration of one call in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@cache
def network(name: str) -> nn.Module:
    """Return the model with random weights."""
    torch.set_num_threads(2)
    return torchvision.models.get_model(name, weights=None).eval()


def bare(name: str, size: int) -> float:
    """Return the seconds of three steps of the bare model, run in the other process."""
    images = torch.zeros(2, 3, size, size, requires_grad=True)

    def steps() -> None:
        for _ in range(3):
            network(name)(images).sum().backward()

    return timed(steps)


def main() -> None:
    """Render repeatedly and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renders", type=int, default=200)
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    spec = InputSpec(args.size)
    model = network(args.model)
    images = torch.rand(20, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    layer = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]
    facets = find_facets(model, Unit(layer, 0), images, n_facets=2, input_spec=spec)
    seconds: list[float] = []
    others: list[float] = []
    memory: list[float] = []
    before: Counter[str] = Counter()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as elsewhere:

        def other() -> float:
            return elsewhere.submit(bare, args.model, args.size).result()

        last = other()
        for n in tqdm(range(_WARM + args.renders)):
            if n == _WARM:
                before = held(model)
            seconds.append(timed(lambda n=n: render_facets(model, facets, images, steps=3, input_spec=spec, seed=n)))
            last, earlier = other(), last
            others.append((earlier + last) / 2)
            memory.append(resident())
        after = held(model)
    relative = [own / bare for own, bare in zip(seconds, others, strict=True)]
    rows = (("seconds", seconds, "s"), ("relative to the bare model", relative, "x"), ("memory", memory, "MiB"))
    for name, every, unit in rows:
        values = every[_WARM:]
        begin, end = median(values[:_COMPARED]), median(values[-_COMPARED:])
        print(f"{name}: first {_COMPARED} {begin:.3f} {unit}, last {_COMPARED} {end:.3f} {unit}, {end / begin:.3f} x")
    print("increase:", ", ".join(f"{name} {after[name] - before[name]}" for name in after))


if __name__ == "__main__":
    main()
