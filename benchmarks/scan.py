#!/usr/bin/env python
"""Measure an atlas's scan: python benchmarks/scan.py [--folder FOLDER] [--model NAME --weights FILE --layer LAYER]

Prints, each measured in a process of its own:

throughput   images per second of the scan, as a share of the bare model's forward pass with the same batches: of images
             in memory, and with --folder of decoded files, where the bare loop reads the same files with one thread
memory       peak for 1 and 8 times as many images, and for 64 and 512 units
scale        512 units of a small network on 100,000 images that are made on the fly: time and peak memory
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_mfv import InputSpec
from captum_mfv.activations.batching import cpu_batch_size
from captum_mfv.activations.capture import capture, guard
from captum_mfv.images import batches
from captum_mfv.jobs.atlas import AtlasSettings
from captum_mfv.jobs.atlas.plan import BATCH, Plan, load_plan
from captum_mfv.jobs.atlas.scan import ScanState, scan_part

_HERE = Path(__file__).resolve()
_N = 512  # images of a measurement of throughput


def small_network() -> tuple[nn.Module, InputSpec]:
    """Return a network of 512 channels for images of 32 pixels, with weights of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.Conv2d(64, 512, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers).eval(), InputSpec(32)


class Noise:
    """A dataset of random images, each made when it is read."""

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, size
        self.fingerprint = f"{n} images of noise"

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.rand(3, self.size, self.size, generator=generator)


def few() -> Noise:
    """Return 2048 small images."""
    return Noise(2048, 32)


def more() -> Noise:
    """Return eight times as many."""
    return Noise(8 * 2048, 32)


def many() -> Noise:
    """Return 100,000 small images."""
    return Noise(100_000, 32)


def large() -> Noise:
    """Return images of 224 pixels."""
    return Noise(_N, 224)


def plan_of(images: str, units: str, **options: Any) -> Plan:
    """Return the plan of an atlas of these images; a name without a slash is a function of this file."""
    source = images if "/" in images else f"{_HERE}:{images}"
    job = AtlasSettings(
        **{"model": f"{_HERE}:small_network", "images": source, "units": units, "device": "cpu", **options}
    )
    return load_plan(job, Path("none"))


def scan(plan: Plan) -> float:
    """Return the seconds of a whole scan, merged part by part."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        state = ScanState.open(plan, Path(folder, "scan.safetensors"))
        for number in state.left():
            state.add(number, scan_part(plan, plan.parts[number]))
        return time.perf_counter() - began


def throughput(images: str, model: str, weights: str | None, layer: str) -> None:
    """Print the scan's throughput and the bare loop's, in turns."""
    plan = plan_of(images, f"{layer}:0-127", model=model, weights=weights)
    assert plan.images is not None
    part = range(min(_N, len(plan.images)))
    size = cpu_batch_size(plan.model, plan.spec, BATCH)
    feed = plan.spec.feed(plan.model)

    def bare() -> None:
        with guard(plan.model), torch.no_grad(), capture(plan.model, [layer]) as run:
            for _, batch in batches(plan.images, BATCH, 0, part.stop):  # type: ignore[arg-type]
                for some in batch.split(size):
                    run(feed(some))

    times: dict[str, list[float]] = {"scan": [], "bare": []}
    for _ in range(3):
        for name, work in (("scan", lambda: scan_part(plan, part)), ("bare", bare)):
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    ours, theirs = (len(part) / min(times[name]) for name in ("scan", "bare"))
    print(f"{images}: {ours:.0f} images/s, {ours / theirs:.2f} of the bare loop's {theirs:.0f}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder")
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--weights")
    parser.add_argument("--layer", default="features.12")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, help="measure one scan of images and units in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        took = scan(plan_of(*args.one))
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # ru_maxrss includes the parent's
        peak = int(found[1]) / 2**10 if found else float("nan")
        print(f"{args.one[0]}, units {args.one[1]}: {took:.1f} s, peak memory {peak:.0f} MiB", flush=True)
        return
    for images in ("large", *([args.folder] if args.folder else [])):
        throughput(images, args.model, args.weights, args.layer)
    for one in (("few", "3:0-63"), ("more", "3:0-63"), ("few", "3:0-511"), ("many", "3:0-511")):
        subprocess.run([sys.executable, __file__, "--threads", str(args.threads), "--one", *one], check=True)


if __name__ == "__main__":
    main()
