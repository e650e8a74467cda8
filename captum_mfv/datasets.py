"""Data with known facets, made on the spot: no download."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from captum_mfv.images import InputSpec, to_pil

__all__ = ["DIGITS_SPEC", "digits", "even_or_odd", "write_even_digits"]

DIGITS_SPEC = InputSpec(32, (0.5,), (0.5,))
"""What `even_or_odd` takes: grey images of 32 pixels."""


def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1797 handwritten digits as images, (1797, 1, 32, 32) in [0, 1], and labels, (1797,)."""
    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 16
    images = torch.nn.functional.interpolate(small, size=DIGITS_SPEC.size, mode="bicubic", align_corners=False)
    return images.clamp(0, 1), torch.from_numpy(data.target)


def even_or_odd(seed: int = 0, epochs: int = 12) -> tuple[nn.Module, InputSpec]:
    """A small network trained on the spot, in seconds, to tell even digits from odd ones.

    Its unit ``logits:0``, even, has five known facets: 0, 2, 4, 6 and 8.

    Returns:
        The model in evaluation mode, and its `InputSpec`.
    """
    images, labels = digits()
    x, y = DIGITS_SPEC(images), labels % 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _small_cnn()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(x)), 64):
                optimizer.zero_grad()
                torch.autograd.backward(torch.nn.functional.cross_entropy(model(x[batch]), y[batch]))
                optimizer.step()
    optimizer.zero_grad()
    return model.eval(), DIGITS_SPEC


def _small_cnn() -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs, stride) in enumerate([(1, 16, 2), (16, 32, 2), (32, 64, 1), (64, 96, 2)], start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, outputs, 3, stride, 1)
        layers[f"relu{i}"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["logits"] = nn.Linear(96, 2)
    return nn.Sequential(layers)


def write_even_digits(root: str | os.PathLike[str]) -> dict[str, int]:
    """Write the even digits as PNG files, ``DIGIT_NUMBER.png``, and return each file's digit by its name."""
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = digits()
    known = {}
    for number in np.flatnonzero(labels.numpy() % 2 == 0):
        name = f"{int(labels[number])}_{number:04d}.png"
        to_pil(images[number]).save(folder / name)
        known[name] = int(labels[number])
    return known
