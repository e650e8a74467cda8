"""Parameterizations of images, started at given images; Lucent's ``param_f``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from captum_mfv.errors import ImageError
from captum_mfv.images.loading import check_range

__all__ = [
    "ParamF",
    "Transparency",
    "as_alpha",
    "check_images",
    "color_matrix",
    "fft_image_from",
    "maco_image_from",
    "mean_magnitudes",
    "pixel_image_from",
]

ParamF: TypeAlias = Callable[[], tuple[list[Tensor], Callable[[], Tensor]]]
"""Returns parameters and a function that returns images, (B, C, H, W) in [0, 1], as Lucent's parameterizations do."""

# Square root of the covariance of ImageNet's colors, as in Lucid and Lucent (lucent.optvis.param.color).
_COLOR_SQRT = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_MARGIN = 2e-4  # how far from 0 and 1 a start stays, where the logit is infinite
_NATURAL_MARGIN = 0.02  # the same where magnitudes are measured, which white and black would swamp
_SOFTNESS = 4.0  # Lucid's divisor, which keeps colors from saturating early


def pixel_image_from(images: Tensor) -> ParamF:
    """Return a parameterization by pixels, clipped to [0, 1], started at images (B, C, H, W) in [0, 1]."""
    check_images(images)

    def param_f() -> tuple[list[Tensor], Callable[[], Tensor]]:
        pixels = images.detach().float().clone().requires_grad_()
        return [pixels], lambda: pixels.clamp(0, 1)

    return param_f


def fft_image_from(images: Tensor, decay_power: float = 1.0, *, colors: Tensor | None = None) -> ParamF:
    """Return a parameterization by a Fourier spectrum of decorrelated colors, started at images exactly.

    The inverse of Lucent's ``param.image(fft=True, decorrelate=True)``: gradients reach all spatial frequencies alike,
    scaled by 1/f. Images of other than three channels keep their colors. The first images differ from the given ones by
    at most 1e-3.

    Args:
        images: (B, C, H, W) in [0, 1], any height and width; the parameters take their device and are float32.
        decay_power: exponent of the 1/f scale.
        colors: (C, C) matrix from decorrelated to real colors, such as `color_matrix` measures; by default ImageNet's.

    Example:
        >>> images = torch.rand(2, 3, 32, 32)
        >>> [spectrum], image_f = fft_image_from(images)()
        >>> spectrum.shape, torch.allclose(image_f(), images, atol=1e-3)
        (torch.Size([2, 3, 32, 17, 2]), True)
    """
    check_images(images)
    height, width = images.shape[-2:]
    scale = _frequency_scale(height, width, decay_power).to(images.device)
    mix = _mix(images, colors)

    def param_f() -> tuple[list[Tensor], Callable[[], Tensor]]:
        spectrum = _spectrum(images, mix, _MARGIN) / scale
        parameters = torch.view_as_real(spectrum).contiguous().requires_grad_()
        return [parameters], lambda: _image(torch.view_as_complex(parameters) * scale, mix, height, width)

    return param_f


def maco_image_from(images: Tensor, magnitudes: Tensor, *, colors: Tensor | None = None) -> ParamF:
    """Return a parameterization by the phases of a Fourier spectrum with fixed magnitudes (MACO, Fel et al. 2023).

    With the magnitudes of natural images, or of a facet's own images, unnatural high frequencies can't arise.

    Args:
        images: (B, C, H, W) in [0, 1], whose phases the optimization starts from.
        magnitudes: (B, C, H, W // 2 + 1) or without B, output of `mean_magnitudes`.
        colors: as for `fft_image_from`, and as the magnitudes were measured.
    """
    check_images(images)
    height, width = images.shape[-2:]
    if tuple(magnitudes.shape[-3:]) != (images.shape[1], height, width // 2 + 1):
        raise ImageError(
            f"magnitudes of images {tuple(images.shape)} must be (C, H, W // 2 + 1), not {tuple(magnitudes.shape)}"
        )
    mix = _mix(images, colors)
    fixed = magnitudes.to(mix)

    def param_f() -> tuple[list[Tensor], Callable[[], Tensor]]:
        phases = _spectrum(images, mix, _NATURAL_MARGIN).angle().requires_grad_()
        return [phases], lambda: _image(torch.polar(fixed.expand_as(phases), phases), mix, height, width)

    return param_f


def mean_magnitudes(images: Tensor, *, colors: Tensor | None = None) -> Tensor:
    """Return each frequency's mean magnitude, (C, H, W // 2 + 1), over images (N, C, H, W) in [0, 1].

    The magnitudes are those of decorrelated colors (``colors`` as for `fft_image_from`) before the sigmoid.
    """
    check_images(images)
    return _spectrum(images, _mix(images, colors), _NATURAL_MARGIN).abs().mean(0)


def color_matrix(images: Tensor) -> Tensor:
    """Return the color decorrelation of images (N, C, H, W) in [0, 1], for ``colors`` of `fft_image_from`.

    The decorrelation, (C, C), is the square root of the pixels' covariance, scaled so that the longest column has
    length 1, as Lucid and Lucent do with ImageNet's.
    """
    check_images(images)
    pixels = images.detach().double().transpose(0, 1).flatten(1)
    if pixels.shape[1] < 2:
        raise ImageError("colors are measured on more than one pixel")
    values, vectors = torch.linalg.eigh(torch.cov(pixels).reshape(len(pixels), len(pixels)))
    floor = values.max().clamp_min(1e-12) * 1e-4  # images of one hue still need an inverse
    return _scaled((vectors * values.clamp_min(floor).sqrt()).flip(1).float())


class Transparency:
    """How much each pixel matters: ``Σ |∂loss/∂image|``, summed over optimization steps (MACO, Fel et al. 2023).

    The object is a ``param_f`` itself, and replaces the one that it watches::

        param_f = Transparency(initializer.mean_image(facet, images))
        render_vis(model, objective, param_f)
        param_f.alpha
    """

    def __init__(self, param_f: ParamF) -> None:
        self.param_f = param_f
        self.total = torch.zeros(())
        """(B, H, W) sum over steps and channels, in the scale of the loss; a single 0 before the first step."""

    def __call__(self) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """Return the watched parameterization's parameters and function to images, and reset the sum."""
        self.total = torch.zeros(())
        params, image_f = self.param_f()

        def watched() -> Tensor:
            images = image_f()
            if images.requires_grad:
                images.register_hook(self._add)  # type: ignore[no-untyped-call]
            return images

        return params, watched

    def _add(self, gradient: Tensor) -> None:
        self.total = self.total + gradient.detach().abs().sum(1)

    @property
    def alpha(self) -> Tensor:
        """(B, H, W) in [0, 1]; ImageError before the first step."""
        if not self.total.ndim:
            raise ImageError("there is no transparency before the first step")
        return as_alpha(self.total)


def as_alpha(total: Tensor) -> Tensor:
    """Return (B, H, W) sums of gradients scaled to [0, 1], with the 99th percentile of each image at 1."""
    high = torch.quantile(total.flatten(1).float(), 0.99, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.clamp(total / high[:, None, None], 0, 1)


def check_images(images: Tensor, name: str = "images") -> None:
    """Raise TypeError or ImageError, which names the argument, unless images are (B, C, H, W) in [0, 1]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(images).__name__}")
    if images.ndim != 4:
        raise ImageError(f"{name} must be (B, C, H, W), not {tuple(images.shape)}")
    check_range(images, name)


def _spectrum(images: Tensor, mix: Tensor, margin: float) -> Tensor:
    """Return the complex spectrum, (B, C, H, W // 2 + 1), of the images' logits in decorrelated colors."""
    logits = images.detach().float().clamp(margin, 1 - margin).logit()
    decorrelated = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(mix), logits)
    spectrum: Tensor = torch.fft.rfft2(decorrelated * _SOFTNESS, norm="ortho")
    return spectrum


def _image(spectrum: Tensor, mix: Tensor, height: int, width: int) -> Tensor:
    """Return the images of a spectrum, the inverse of `_spectrum`: (B, C, H, W) in [0, 1]."""
    colors: Tensor = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
    return ((mix / _SOFTNESS) @ colors.flatten(2)).view(colors.shape).sigmoid()


def _frequency_scale(height: int, width: int, decay_power: float) -> Tensor:
    """Return 1/f over the half plane of `torch.fft.rfft2`, finite at f = 0."""
    rows = torch.fft.fftfreq(height)[:, None]
    columns = torch.fft.rfftfreq(width)[None, :]
    return torch.hypot(rows, columns).clamp_min(1 / max(height, width)) ** -decay_power


def _mix(images: Tensor, colors: Tensor | None) -> Tensor:
    """Return the given color matrix, or the default for the number of channels."""
    channels = images.shape[1]
    if colors is None:
        colors = _scaled(torch.tensor(_COLOR_SQRT)) if channels == 3 else torch.eye(channels)
    if tuple(colors.shape) != (channels, channels):
        raise ImageError(f"colors of {channels} channels must be {(channels, channels)}, not {tuple(colors.shape)}")
    return colors.to(images.device, torch.float32)


def _scaled(root: Tensor) -> Tensor:
    scaled: Tensor = root / torch.linalg.vector_norm(root, dim=0).max()
    return scaled
