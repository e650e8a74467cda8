#!/usr/bin/env python
"""Measure the cost of collecting codes: python benchmarks/collect.py [--images 1000] [--folder FOLDER]

Prints the throughput of `collect` as a share of the bare model's forward pass with the same batch size, for images in
memory and, with --folder, for images that are decoded; peak memory for 1 and 8 times as many images, each measured in
a separate process; and the time to find facets in 10,000 codes of 512 dimensions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from captum_mfv import FacetFinder, ImageFolder, InputSpec, Unit
from captum_mfv.activations.codes import collect
from captum_mfv.datasets import planted_codes
from captum_mfv.images import Images

UNIT = Unit("classifier.1", 0)
BATCH = 32
SPEC = InputSpec(224)


class Noise:
    """A dataset of random images, each generated when it is read."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.fingerprint = f"noise {n}"

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.n:
            raise IndexError(index)
        return torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(index))


def network() -> nn.Module:
    """Return SqueezeNet 1.0 with random weights; speed does not depend on weights."""
    return torchvision.models.squeezenet1_0(weights=None).eval()


def seconds(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the minimum of three runs of each; runs alternate, because a machine's speed drifts."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(3):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    return {name: min(spent) for name, spent in times.items()}


def bare(model: nn.Module, images: Tensor, memory_format: torch.memory_format) -> None:
    """Run the forward pass alone, on images that are normalized already."""
    with torch.no_grad():
        for batch in images.split(BATCH):
            model(batch.contiguous(memory_format=memory_format))


def speed(n_images: int, folder: str | None) -> None:
    """Print the throughput of `collect` as a share of the bare forward pass."""
    model, images = network(), torch.rand(n_images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    normalized = SPEC(images)
    sources: dict[str, Images] = {"images in memory": images}
    if folder is not None:
        sources["images decoded"] = ImageFolder(folder, SPEC)
    forward = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    works: dict[str, Callable[[], object]] = {
        **{name: partial(bare, model, normalized, kind) for name, kind in forward.items()},
        **{
            name: partial(collect, model, UNIT, source, input_spec=SPEC, batch_size=BATCH)
            for name, source in sources.items()
        },
    }
    spent = seconds(works)
    for name, source in sources.items():
        rate = len(source) / spent[name]
        shares = ", ".join(f"{rate * spent[kind] / n_images:.2f} of the bare forward pass, {kind}" for kind in forward)
        print(f"collecting, {name}: {shares} ({rate:.0f} images/s)", flush=True)


def peak(n_images: int, stored: bool) -> float:
    """Return the peak memory in MiB of a process that collects the codes of n_images images."""
    code = f"import collect as c; c.collect_in({n_images}, {stored})"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    return float(ended.stdout) / 1024


def collect_in(n_images: int, stored: bool) -> None:
    """Collect codes and print this process's peak memory in KiB, from /proc."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/rows" if stored else None
        collect(network(), UNIT, Noise(n_images), input_spec=SPEC, batch_size=BATCH, store=store)
    print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def memory(n_images: int) -> None:
    """Print peak memory for 1 and 8 times as many images."""
    for stored in (False, True):
        one, eight = peak(n_images, stored), peak(8 * n_images, stored)
        where = "in files" if stored else "in memory"
        found = f"{n_images} images {one:.0f} MiB, {8 * n_images} {eight:.0f} MiB"
        print(f"peak memory, rows {where}: {found} ({eight / one:.2f})", flush=True)


def facets() -> None:
    """Print the time to find facets in 10,000 codes of 512 dimensions, with the default settings and with auto."""
    codes, _ = planted_codes(10, 10_000, 512)
    codes = codes.astype(np.float32)
    for name, finder in (("default", FacetFinder(random_state=0)), ("auto", FacetFinder("auto", random_state=0))):
        began = time.perf_counter()
        finder.fit(codes)
        print(f"{len(codes)} codes of 512 to {finder.n_facets_} facets, {name}: {time.perf_counter() - began:.0f} s")


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--folder")
    args = parser.parse_args()
    torch.set_num_threads(2)
    memory(args.images)
    speed(args.images, args.folder)
    facets()


if __name__ == "__main__":
    main()
