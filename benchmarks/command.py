#!/usr/bin/env python
"""Compare a whole run with its bare steps: python benchmarks/command.py MODEL WEIGHTS UNIT IMAGES [OPTION …]

Runs `captum-mfv run` with these and further options, and prints the seconds of each stage and of the whole command with
imports, and the peak memory, beside the seconds of the bare model: as many forward passes and input gradients of a
batch of as many images as the run has steps and facets. The bare steps are measured before and after the run.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

import torch
from speed import bare, seconds

from captum_mfv import RunFolder, Unit, models

_ROUNDS = 4  # measurements of the bare step before the run and after it


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "weights", "unit", "images"):
        parser.add_argument(name)
    parser.add_argument("--facets", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args, more = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    model, spec = models.load(args.model, args.weights)
    batch = torch.rand(args.facets, spec.channels, spec.size, spec.size)
    step = bare(model.requires_grad_(False), batch, Unit.parse(args.unit).layer_name)
    times = [seconds(step) for _ in range(_ROUNDS)]
    with tempfile.TemporaryDirectory() as folder:
        named = {name: getattr(args, name) for name in ("model", "weights", "unit", "images", "facets")}
        options = [word for name, value in named.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "captum_mfv", "run", *options, *more, "--quiet", "--out", f"{folder}/run"]
        began = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)})
        whole = time.perf_counter() - began
        manifest = RunFolder.read(f"{folder}/run").manifest
    times += [seconds(step) for _ in range(_ROUNDS)]
    n_steps = manifest["settings"]["n_steps"]
    base = n_steps * median(times)
    print(f"{n_steps} bare steps of {args.facets} images: {base:.0f} s, {median(times):.3f} s each")
    print("| stage | seconds | of the bare steps |\n|---|---|---|")
    for stage, took in {**manifest["timings"], "the whole command": whole}.items():
        print(f"| {stage} | {took:.1f} | {took / base:.2f} |")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
