"""Data and small networks with known facets, which are computed without a download."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from captum_mfv.images import InputSpec, to_pil

__all__ = [
    "DIGITS_SPEC",
    "PLANTED_SPEC",
    "digit_classifier",
    "digits",
    "even_or_odd",
    "planted_codes",
    "planted_images",
    "planted_network",
    "ten_digits",
    "write_even_digits",
]

DIGITS_SPEC = InputSpec(32, (0.5,), (0.5,))
"""Input of `even_or_odd`: gray images of 32 pixels."""

PLANTED_SPEC = InputSpec(32, (0.0,) * 3, (1.0,) * 3)
"""Input of `planted_network`: RGB images of 32 pixels, not normalized."""

_COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 1.0, 1.0))
_N_WANTED = 4  # the last color has a detector too, but the unit ignores it


def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1797 handwritten digits as images, (1797, 1, 32, 32) in [0, 1], and labels, (1797,)."""
    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 16
    images = torch.nn.functional.interpolate(small, size=DIGITS_SPEC.size, mode="bicubic", align_corners=False)
    return images.clamp(0, 1), torch.from_numpy(data.target)


def even_or_odd(seed: int = 0, epochs: int = 12) -> tuple[nn.Module, InputSpec]:
    """Train a small network, in seconds, to classify digits as even or odd.

    The unit ``logits:0``, even, has five known facets: 0, 2, 4, 6 and 8.

    Returns:
        The model in evaluation mode, and its `InputSpec`.
    """
    return digit_classifier(2, seed, epochs)


def ten_digits(seed: int = 1, epochs: int = 12) -> tuple[nn.Module, InputSpec]:
    """Train a small network to classify the ten digits: an independent network for images from `even_or_odd`.

    The layer ``logits`` returns the logits. Returns the model and its `InputSpec`, as `even_or_odd` does.
    """
    return digit_classifier(10, seed, epochs)


def digit_classifier(n_classes: int, seed: int = 0, epochs: int = 12) -> tuple[nn.Module, InputSpec]:
    """Train a small network to classify digits by their remainder modulo a number of classes.

    With five classes, the unit ``logits:2`` has two known facets: 2 and 7. Returns the model and its `InputSpec`, as
    `even_or_odd` does.
    """
    images, labels = digits()
    x, y = DIGITS_SPEC(images), labels % n_classes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _small_cnn(n_classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(x)), 64):
                optimizer.zero_grad()
                torch.autograd.backward(torch.nn.functional.cross_entropy(model(x[batch]), y[batch]))
                optimizer.step()
    optimizer.zero_grad()
    return model.eval(), DIGITS_SPEC


def _small_cnn(n_classes: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs, stride) in enumerate([(1, 16, 2), (16, 32, 2), (32, 64, 1), (64, 96, 2)], start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, outputs, 3, stride, 1)
        layers[f"relu{i}"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["logits"] = nn.Linear(96, n_classes)
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


def planted_network() -> tuple[nn.Module, InputSpec]:
    """Return a network built by hand, whose unit ``unit:0`` is the OR of four known detectors, and its `InputSpec`.

    Layer ``detectors`` has one channel per color (red, green, blue, yellow, cyan), above zero only where a pixel is
    of that color. The unit sums the first four over the image and ignores cyan.
    """
    colors = torch.tensor(_COLORS)
    weights = (torch.arange(len(_COLORS)) < _N_WANTED).float()
    with torch.random.fork_rng():  # fresh weights, replaced at once, are drawn from torch's global generator
        detectors, unit = nn.Conv2d(3, len(_COLORS), 1), nn.Conv2d(len(_COLORS), 1, 1, bias=False)
    bias = 0.5 - colors.sum(1)  # 0.5 where a pixel is of the color, 0 or below elsewhere
    detectors.load_state_dict({"weight": (2 * colors - 1)[:, :, None, None], "bias": bias})
    unit.load_state_dict({"weight": weights[None, :, None, None]})
    layers = OrderedDict(detectors=detectors, rectified=nn.ReLU(), unit=unit)
    return nn.Sequential(layers).requires_grad_(False).eval(), PLANTED_SPEC


def planted_images(n_each: int = 30, seed: int = 0, distractor: int = 16) -> tuple[Tensor, Tensor]:
    """Return images for `planted_network`, (4 · n_each, 3, 32, 32) in [0, 1], and the detector that each activates.

    Each image shows a disc of one of the four colors and a cyan square, which the unit ignores, on dim noise.

    Args:
        n_each: number of images for each detector.
        seed: seed of the draw.
        distractor: side of the largest square in pixels; the smallest is 4, and discs are 8 to 12 wide. Squares
            change codes of activations as discs do, but not attributions to the unit.
    """
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images, labels = [], []
    for label in np.repeat(range(_N_WANTED), n_each).tolist():
        draw = torch.rand(6, generator=generator)
        image = 0.2 * torch.rand(3, 32, 32, generator=generator)
        side = 4 + (distractor - 4) * draw[0]
        square = (x - 20 * draw[1]).clamp_min(0).lt(side) & (y - 20 * draw[2]).clamp_min(0).lt(side)
        square &= (x >= 20 * draw[1]) & (y >= 20 * draw[2])
        disc = (x - 8 - 16 * draw[3]) ** 2 + (y - 8 - 16 * draw[4]) ** 2 < (4 + 2 * draw[5]) ** 2
        for shape, color in ((square, _COLORS[-1]), (disc, _COLORS[label])):
            image = torch.where(shape, torch.tensor(color)[:, None, None] * 0.96 + 0.02, image)
        images.append(image)
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def planted_codes(
    n_facets: int, n_codes: int, n_dimensions: int, *, separation: float = 9.0, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return codes, (n, n_dimensions), in Gaussian facets of unequal size and spread, and the facet of each, (n,).

    The noise has the same shape in every facet: variances decrease from 1 to 1/20 over random axes, times a factor of
    0.6 to 1.4 for each facet. Sizes are Dirichlet(4), at least eight and a quarter of the mean.

    Args:
        n_facets: number of facets.
        n_codes: approximate number of codes.
        n_dimensions: length of a code.
        separation: distance of the facets' centers from the origin, in standard deviations of the noise along its
            widest axis; two centers are about 1.4 times as far apart.
        seed: seed of the draw.
    """
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(n_facets, 4.0))
    sizes = np.maximum((shares * n_codes).astype(int), max(8, n_codes // (4 * n_facets)))
    axes, _ = np.linalg.qr(rng.normal(size=(n_dimensions, n_dimensions)))
    noise = (axes * np.exp(-np.linspace(0, 3, n_dimensions) / 2)).T
    centers = rng.normal(size=(n_facets, n_dimensions))
    centers *= separation / np.linalg.norm(centers, axis=1, keepdims=True)
    labels = np.repeat(np.arange(n_facets), sizes)
    spread = rng.uniform(0.6, 1.4, size=n_facets)[labels, None]
    return centers[labels] + spread * rng.normal(size=(len(labels), n_dimensions)) @ noise, labels
