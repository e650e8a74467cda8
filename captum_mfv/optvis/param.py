"""Images to optimise, startable from given images; Lucent's ``param_f``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from captum_mfv.errors import ImageError

__all__ = ["ParamF", "fft_image_from", "pixel_image_from"]

ParamF: TypeAlias = Callable[[], tuple[list[Tensor], Callable[[], Tensor]]]

# Square root of the covariance of ImageNet's colours, columns scaled as in Lucid and Lucent
# (lucent.optvis.param.color), so that images started here mean the same there.
_COLOR_SQRT = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_MARGIN = 2e-4  # how far from 0 and 1 a start stays, where the logit is infinite
_SOFTNESS = 4.0  # Lucid's divisor, which keeps colours from saturating early


def pixel_image_from(images: Tensor) -> ParamF:
    """Pixels themselves as parameters, started at images.

    Args:
        images: (B, C, H, W) in [0, 1]; the parameters take their device and are float32.

    Returns:
        A ``param_f``: parameters and a function to (B, C, H, W), clipped to [0, 1].
    """
    _check(images)

    def param_f() -> tuple[list[Tensor], Callable[[], Tensor]]:
        pixels = images.detach().float().clone().requires_grad_()
        return [pixels], lambda: pixels.clamp(0, 1)

    return param_f


def fft_image_from(images: Tensor, decay_power: float = 1.0) -> ParamF:
    """A Fourier spectrum of decorrelated colours as parameters, started at images exactly.

    The inverse of Lucent's ``param.image(fft=True, decorrelate=True)``: gradients reach all spatial
    frequencies alike, scaled by 1/f. Images of other than three channels keep their colours.

    Args:
        images: (B, C, H, W) in [0, 1], any height and width; the parameters take their device and are
            float32.
        decay_power: exponent of the 1/f scale.

    Returns:
        A ``param_f``: parameters and a function to (B, C, H, W) in [0, 1], which at the start gives
        the images back to within 1e-3.
    """
    _check(images)
    height, width = images.shape[-2:]
    scale = _frequency_scale(height, width, decay_power).to(images.device)
    mix = _color_matrix(images.shape[1], images.device)

    def start() -> Tensor:
        logits = images.detach().float().clamp(_MARGIN, 1 - _MARGIN).logit()
        decorrelated = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(mix), logits)
        spectrum = torch.fft.rfft2(decorrelated * _SOFTNESS, norm="ortho") / scale
        return torch.view_as_real(spectrum).contiguous()

    def param_f() -> tuple[list[Tensor], Callable[[], Tensor]]:
        parameters = start().requires_grad_()

        def image_f() -> Tensor:
            spectrum = torch.view_as_complex(parameters) * scale
            colors = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho") / _SOFTNESS
            return torch.einsum("ij,bjhw->bihw", mix, colors).sigmoid()

        return [parameters], image_f

    return param_f


def _check(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, not {type(images).__name__}")
    if images.ndim != 4:
        raise ImageError(f"images must be (B, C, H, W), not {tuple(images.shape)}")
    if not (images.min() >= -1e-4 and images.max() <= 1 + 1e-4):
        raise ImageError(f"images must lie in [0, 1], not [{images.min():.3g}, {images.max():.3g}]")


def _frequency_scale(height: int, width: int, decay_power: float) -> Tensor:
    """1/f over the half plane of `torch.fft.rfft2`, finite at f = 0."""
    rows = torch.fft.fftfreq(height)[:, None]
    columns = torch.fft.rfftfreq(width)[None, :]
    return torch.hypot(rows, columns).clamp_min(1 / max(height, width)) ** -decay_power


def _color_matrix(channels: int, device: torch.device) -> Tensor:
    if channels != 3:
        return torch.eye(channels, device=device)
    root = torch.tensor(_COLOR_SQRT, device=device)
    scaled: Tensor = root / torch.linalg.vector_norm(root, dim=0).max()
    return scaled
