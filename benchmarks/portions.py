#!/usr/bin/env python
"""Measure the fastest batch size on a CPU: python benchmarks/portions.py [--models NAME …]

Prints, for each of torchvision's models, the seconds that 32 images take in batches of each size, for the forward pass
alone and with the gradient with respect to the images, and the size that `activations.batching.cpu_batch_size` returns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torchvision
from torch import Tensor, nn

from captum_mfv import InputSpec
from captum_mfv.activations.batching import cpu_batch_size

_SIZES, _N = (1, 2, 4, 8, 16, 32), 32


def forward(model: nn.Module, batch: Tensor) -> None:
    """Run a forward pass."""
    with torch.no_grad():
        model(batch)


def gradient(model: nn.Module, batch: Tensor) -> None:
    """Run a forward pass and compute the gradient with respect to the images."""
    x = batch.clone(memory_format=torch.preserve_format).requires_grad_()
    torch.autograd.grad(model(x).sum(), x)


def seconds(work: Callable[[nn.Module, Tensor], None], model: nn.Module, images: Tensor, runs: int) -> dict[int, float]:
    """Return median seconds for all images by batch size; the sizes alternate."""
    times: dict[int, list[float]] = {size: [] for size in _SIZES}
    for _ in range(runs):
        for size in _SIZES:
            began = time.perf_counter()
            for batch in images.split(size):
                work(model, batch)
            times[size].append(time.perf_counter() - began)
    return {size: median(found) for size, found in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["squeezenet1_0", "resnet18", "vgg11"])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(2)
    print("| network | pass |", " | ".join(map(str, _SIZES)), "| chosen |")
    print("|---" * (len(_SIZES) + 3) + "|")
    for name in args.models:
        model = torchvision.models.get_model(name, weights=None).eval().requires_grad_(False)
        model = model.to(memory_format=torch.channels_last)
        images = torch.rand(_N, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        chosen = cpu_batch_size(model, InputSpec(), _N)
        for work in (forward, gradient):
            times = seconds(work, model, images, args.runs)
            row = " | ".join(f"{found:.2f}" for found in times.values())
            print(f"| {name} | {work.__name__} | {row} | {chosen} |", flush=True)


if __name__ == "__main__":
    main()
