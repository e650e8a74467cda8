"""A namer without a network: the colors and the composition of an image, each with a stated definition."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from captum_mfv.errors import ImageError
from captum_mfv.images.preprocessing import resize
from captum_mfv.storage.identity import fingerprint

__all__ = ["APPEARANCE", "REFERENCE_COLORS", "AppearanceNamer"]

_SIDE, _BORDER = 64, 6  # pixels
_SMALLEST = 20  # pixels of a region that counts as an object
_LEAST = 0.03  # share of pixels of a color that counts: edges between two colors look like a third
_TINY = 1e-6

REFERENCE_COLORS: Mapping[str, tuple[tuple[int, int, int], ...]] = MappingProxyType(
    {
        "red": ((215, 30, 35), (140, 20, 25), (225, 85, 75)),
        "orange": ((245, 130, 30), (225, 150, 80)),
        "yellow": ((250, 220, 50), (240, 230, 140), (200, 170, 40)),
        "green": ((60, 150, 60), (30, 80, 40), (150, 200, 80), (110, 130, 60), (0, 255, 0)),
        "cyan": ((60, 200, 210), (0, 255, 255), (30, 130, 140)),
        "blue": ((40, 80, 200), (30, 40, 110), (120, 170, 230), (0, 0, 255)),
        "purple": ((120, 50, 150), (70, 30, 90), (180, 130, 215)),
        "pink": ((250, 150, 190), (240, 80, 160), (250, 200, 210)),
        "brown": ((130, 80, 40), (80, 50, 30), (190, 140, 100)),
        "black": ((15, 15, 15),),
        "gray": ((80, 80, 80), (130, 130, 130), (185, 185, 185)),
        "white": ((245, 245, 245),),
    }
)
"""Reference colors, red, green and blue from 0 to 255: a pixel has the color of the nearest one in CIELAB."""

APPEARANCE: Mapping[str, str] = MappingProxyType(
    {
        **{
            color: f"share of pixels whose nearest reference color is {color}; 0 below .03"
            for color in REFERENCE_COLORS
        },
        "bright": "mean lightness",
        "dark": "minus the mean lightness",
        "colorful": "mean chroma",
        "pale": "minus the mean chroma",
        "high contrast": "standard deviation of the lightness",
        "low contrast": "minus the standard deviation of the lightness",
        "fine detail": "mean difference of the lightness from its mean over 5 x 5 pixels",
        "smooth": "minus that difference",
        "horizontal lines": "share of the lightness gradient's energy that is vertical",
        "vertical lines": "share of the lightness gradient's energy that is horizontal",
        "diagonal lines": "share of the lightness gradient's energy that is diagonal",
        "left-right symmetry": "correlation of the lightness with its mirror image",
        "plain background": "minus the standard deviation of the border's color",
        "white background": "share of the border's pixels that are white",
        "black background": "share of the border's pixels that are black",
        "green background": "share of the border's pixels that are green",
        "blue background": "share of the border's pixels that are blue",
        "centered object": "mean foreground of the central half, minus that of the border, over that of the image",
        "one object": "share of the foreground's pixels in its largest region",
        "many objects": "number of the foreground's regions of at least 20 pixels",
        "object on the left": "distance of the foreground's center to the left of the middle",
        "object on the right": "distance of the foreground's center to the right of the middle",
        "object at the top": "distance of the foreground's center above the middle",
        "object at the bottom": "distance of the foreground's center below the middle",
    }
)
"""The words of `AppearanceNamer` and the definition of each score, on the image resized to 64 x 64 pixels, in CIELAB.

The border is 6 pixels wide. The foreground is the distance of a pixel's color from the border's mean color; its regions
are the pixels whose distance is above halfway from the border's mean distance to the 95th percentile of all.
"""


class AppearanceNamer:
    """Scores images by color and composition, without a network: the words and definitions are `APPEARANCE`.

    Images have one channel, in gray, or three, red, green and blue.

    Example:
        >>> namer = AppearanceNamer()
        >>> red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 8, 8)
        >>> namer(red)[0, namer.words.index("red")].item()
        1.0
    """

    words: tuple[str, ...] = tuple(APPEARANCE)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the words, their definitions and the reference colors."""
        return fingerprint(words=APPEARANCE, colors=REFERENCE_COLORS)

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores, (N, n_words), in float32.

        Raises:
            ImageError: if images have neither one nor three channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ImageError(
                f"appearance is that of gray or RGB images, (N, 1 or 3, H, W), not {tuple(images.shape)}; "
                f"input_spec.display(images) chooses three channels"
            )
        small = resize(images.detach().float(), _SIDE).clamp(0, 1).expand(-1, 3, -1, -1)
        lab = _lab(small.permute(0, 2, 3, 1))
        scores = {**_colors(lab), **_tones(lab), **_lines(lab[..., 0]), **_layout(lab)}
        return torch.stack([scores[word] for word in self.words], 1)


def _colors(lab: Tensor) -> dict[str, Tensor]:
    """Return shares of colors, in the image and in its border."""
    references = torch.tensor([color for colors in REFERENCE_COLORS.values() for color in colors], device=lab.device)
    owners = np.repeat(np.arange(len(REFERENCE_COLORS)), [len(colors) for colors in REFERENCE_COLORS.values()])
    nearest = torch.cdist(lab.flatten(1, 2), _lab(references / 255)[None]).argmin(2)
    named = torch.from_numpy(owners).to(lab.device)[nearest].view(lab.shape[:-1])
    border, found = _border(lab.device), {}
    for i, color in enumerate(REFERENCE_COLORS):
        share = (named == i).float().mean((1, 2))
        found[color] = torch.where(share < _LEAST, 0, share)
        found[f"{color} background"] = (named == i)[:, border].float().mean(1)
    return found


def _tones(lab: Tensor) -> dict[str, Tensor]:
    """Return brightness, chroma, contrast and detail, and their opposites."""
    lightness, chroma = lab[..., 0], lab[..., 1:].norm(dim=-1)
    smoothed = torch.nn.functional.avg_pool2d(lightness[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    found = {
        ("bright", "dark"): lightness.mean((1, 2)),
        ("colorful", "pale"): chroma.mean((1, 2)),
        ("high contrast", "low contrast"): lightness.flatten(1).std(1),
        ("fine detail", "smooth"): (lightness - smoothed).abs().mean((1, 2)),
    }
    return {word: sign * score for words, score in found.items() for word, sign in zip(words, (1, -1), strict=True)}


def _lines(lightness: Tensor) -> dict[str, Tensor]:
    """Return the directions of edges, and the symmetry."""
    x, y = lightness[:, :-1, 1:] - lightness[:, :-1, :-1], lightness[:, 1:, :-1] - lightness[:, :-1, :-1]
    energy = (x**2 + y**2).sum((1, 2)) + _TINY
    centered = lightness - lightness.mean((1, 2), keepdim=True)
    mirrored = (centered * centered.flip(2)).sum((1, 2)) / ((centered**2).sum((1, 2)) + _TINY)
    return {
        "horizontal lines": (y**2).sum((1, 2)) / energy,
        "vertical lines": (x**2).sum((1, 2)) / energy,
        "diagonal lines": (2 * x * y).abs().sum((1, 2)) / energy,
        "left-right symmetry": mirrored,
    }


def _layout(lab: Tensor) -> dict[str, Tensor]:
    """Return where the foreground is, in how many regions, and how plain the background is."""
    border = _border(lab.device)
    ring = lab[:, border]
    far = (lab - ring.mean(1)[:, None, None]).norm(dim=-1)
    around = far[:, border].mean(1)
    middle = slice(_SIDE // 4, 3 * _SIDE // 4)
    above = (far - around[:, None, None]).clamp_min(0)
    place, total = torch.linspace(-1, 1, _SIDE, device=lab.device), above.sum((1, 2)) + _TINY
    right, down = (above * place).sum((1, 2)) / total, (above * place[:, None]).sum((1, 2)) / total
    threshold = (around + far.flatten(1).quantile(0.95, 1)) / 2
    largest, count = zip(*map(_regions, (far > threshold[:, None, None]).cpu().numpy()), strict=True)
    return {
        "plain background": -ring.var(1).sum(1).sqrt(),
        "centered object": (far[:, middle, middle].mean((1, 2)) - around) / (far.mean((1, 2)) + _TINY),
        "one object": torch.tensor(largest, device=lab.device),
        "many objects": torch.tensor(count, device=lab.device),
        "object on the left": -right,
        "object on the right": right,
        "object at the top": -down,
        "object at the bottom": down,
    }


def _regions(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of a mask in its largest region, and the number of regions that are not tiny."""
    numbered, n = ndimage.label(mask)
    sizes = np.bincount(numbered.ravel(), minlength=n + 1)[1:]
    return (float(sizes.max() / sizes.sum()), float((sizes >= _SMALLEST).sum())) if n else (0.0, 0.0)


def _border(device: torch.device) -> Tensor:
    ring = torch.ones(_SIDE, _SIDE, dtype=torch.bool, device=device)
    ring[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    return ring


def _lab(rgb: Tensor) -> Tensor:
    """Convert sRGB in [0, 1], (…, 3), to CIELAB with the white point D65.

    Source: IEC 61966-2-1 (sRGB) and CIE 015 (CIELAB).
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ torch.tensor(to_xyz, device=rgb.device).T / torch.tensor([0.9505, 1.0, 1.0890], device=rgb.device)
    root = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(_TINY) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
