#!/usr/bin/env python
"""Compare an atlas with its network passes: python benchmarks/atlas.py MODEL WEIGHTS LAYER IMAGES [OPTION …]

Runs `captum-mfv atlas` on the first units of a layer, for each number of --units, in a process of its own, and prints
the seconds of each part, seconds per unit with and without the scan, and peak memory. Network passes: as many forward
passes of the bare model as images are scanned and crops are read, and as many forward passes and input gradients as the
images have steps, and as the facets' nearest images, which recipes measure. Their time is measured before and after.

--separate N runs `captum-mfv run --top-k` on N of the units, one by one, and prints the ratio per unit.
--dry-run compares the estimate with the time.
Further options are passed on to `captum-mfv atlas`.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from speed import bare, seconds
from torch import nn

from captum_mfv import AtlasFolder, InputSpec, models
from captum_mfv.activations.batching import cpu_batch_size
from captum_mfv.activations.capture import capture
from captum_mfv.activations.receptive_fields import receptive_field
from captum_mfv.optvis.recipes import get_recipe

_ROUNDS = 4  # measurements of the bare passes before and after
_MEASURED = 30  # images of a facet that recipes measure
_TOP_K = 100


@dataclass(frozen=True)
class Passes:
    """Seconds of the bare model: a forward pass of an image and of a crop, a step and a measured image of a facet."""

    image: float
    crop: float
    step: float

    @classmethod
    def measure(cls, model: nn.Module, layer: str, spec: InputSpec, rows: int) -> Passes:
        """Return the medians of a few measurements."""
        field = receptive_field(model, layer, spec)
        side = spec.size if field is None else field.crop_size
        sizes = [spec.size, side]
        n = cpu_batch_size(model, spec, 32)
        batches = [torch.rand(n, spec.channels, size, size) for size in sizes]
        step = bare(model, torch.rand(rows, spec.channels, side, side), layer)
        with torch.no_grad(), capture(model, [layer]) as run:
            forward = [median(seconds(lambda batch=batch: run(batch)) for _ in range(_ROUNDS)) / n for batch in batches]
        return cls(*forward, median(seconds(step) for _ in range(_ROUNDS)) / rows)

    def total(self, n_images: int, n_crops: int, n_facets: int, n_steps: int) -> dict[str, float]:
        """Return the seconds of an atlas's network passes, by part."""
        return {
            "scan": n_images * self.image,
            "codes": n_crops * self.crop,
            "images": n_facets * (n_steps + _MEASURED) * self.step,
        }


def call(command: str, threads: int, *options: Any) -> tuple[float, float, str]:
    """Run a command; return seconds, peak memory in GiB, and what it printed."""
    words = [sys.executable, "-m", "captum_mfv", command, *map(str, options)]
    began = time.perf_counter()
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(words, check=True, env=env, text=True, stdout=subprocess.PIPE)
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, done.stdout


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "weights", "layer", "images"):
        parser.add_argument(name)
    parser.add_argument("--units", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--separate", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", help="keep the largest atlas in this folder")
    parser.add_argument("--threads", type=int, default=2)
    args, more = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    model, spec = models.load(args.model, args.weights)
    model.requires_grad_(False)
    passes = [Passes.measure(model, args.layer, spec, 8)]
    shared = ["--model", args.model, "--weights", args.weights, "--images", args.images, "--top-k", _TOP_K]
    per_unit = 0.0
    for n_units in args.units:
        options = [*shared, "--units", f"{args.layer}:0-{n_units - 1}", "--max-facets", 4, *more, "--quiet"]
        with tempfile.TemporaryDirectory() as folder:
            out = args.out if args.out and n_units == max(args.units) else f"{folder}/atlas"
            expected = call("atlas", args.threads, *options, "--out", out, "--dry-run")[2] if args.dry_run else ""
            whole, memory, _ = call("atlas", args.threads, *options, "--out", out)
            passes.append(Passes.measure(model, args.layer, spec, 8))
            report(AtlasFolder.read(out), n_units, whole, memory, passes[-2:])
        if expected:
            print("expected by --dry-run:", *re.findall(r"about (\d.*)", expected))
        per_unit = whole / n_units
    times = []
    for index in range(args.separate):
        with tempfile.TemporaryDirectory() as folder:
            options = [*shared, "--unit", f"{args.layer}:{index}", "--facets", "auto", "--quiet"]
            times.append(call("run", args.threads, *options, "--out", f"{folder}/run")[0])
    if times:
        print(f"{len(times)} separate runs: {median(times):.1f} s each, {median(times) / per_unit:.1f} x the atlas's")


def report(atlas: AtlasFolder, n_units: int, whole: float, memory: float, passes: list[Passes]) -> None:
    """Print the figures of one atlas."""
    timings, n_facets = atlas.manifest["timings"], len(atlas.facets)
    n_images = atlas.manifest["n_images"]
    n_crops = sum(row.get("n_images", 0) for row in atlas.units)
    n_steps = get_recipe("facet").n_steps
    totals = [one.total(n_images, n_crops, n_facets, n_steps) for one in passes]
    network = {part: sum(one[part] for one in totals) / len(totals) for part in totals[0]}
    scan = timings["scan"]
    print(f"\n{n_units} units, {n_images} images, {n_facets} facets\n")
    print("| part | seconds | network passes |\n|---|---|---|")
    for part, took in {**timings, "the whole command": whole}.items():
        own = sum(network.values()) if part == "the whole command" else network.get(part)
        print(f"| {part} | {took:.1f} | {'' if own is None else f'{own:.1f}'} |")
    print(f"outside of network passes: {1 - sum(network.values()) / whole:.2f} of the time")
    print(f"seconds per unit: {whole / n_units:.2f}, without the scan {(whole - scan) / n_units:.2f}")
    print(f"peak memory {memory:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
