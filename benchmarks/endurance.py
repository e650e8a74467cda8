#!/usr/bin/env python
"""What many renders leave behind in one process: python benchmarks/endurance.py [--renders 200] [--model squeezenet1_0]

Renders two facets again and again and prints the median seconds and the memory of the first and of the last fifty,
after ten that warm up, and how many hooks, threads, open files and tensors there are more at the end than before.
"""

from __future__ import annotations

import argparse
import gc
import re
import threading
import time
from collections import Counter
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
    """Memory of this process in MiB, as Linux tells it."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found.group(1)) / 1024 if found else float("nan")


def held(model: nn.Module) -> Counter[str]:
    """What a call could leave behind."""
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


def main() -> None:
    """Render, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renders", type=int, default=200)
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(2)
    spec = InputSpec(args.size)
    model = torchvision.models.get_model(args.model, weights=None).eval()
    images = torch.rand(20, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    layer = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]
    facets = find_facets(model, Unit(layer, 0), images, n_facets=2, input_spec=spec)
    seconds: list[float] = []
    cpu: list[float] = []
    memory: list[float] = []
    before: Counter[str] = Counter()
    for n in tqdm(range(_WARM + args.renders)):
        if n == _WARM:
            before = held(model)
        began, spent = time.perf_counter(), time.process_time()
        render_facets(model, facets, images, steps=3, input_spec=spec, seed=n)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
        memory.append(resident())
    after = held(model)
    for name, every, unit in (("seconds", seconds, "s"), ("of the processor", cpu, "s"), ("memory", memory, "MiB")):
        values = every[_WARM:]
        first, last = median(values[:_COMPARED]), median(values[-_COMPARED:])
        print(f"{name}: first {_COMPARED} {first:.3f} {unit}, last {_COMPARED} {last:.3f} {unit}, {last / first:.3f} x")
    print("more than before:", ", ".join(f"{name} {after[name] - before[name]}" for name in after))


if __name__ == "__main__":
    main()
