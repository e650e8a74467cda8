"""Optimizers of images: Adam without the amplification of noise, and the paper's ascent step with its TV denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from captum_mfv.errors import RenderError
from captum_mfv.optvis.transform import CenterCrop

__all__ = ["DampedAdam", "TVAscent", "denoise_tv"]

_N_SWEEPS = 100  # of the denoiser at most
_TOLERANCE = 1e-3  # root mean square change of a channel below which the denoiser stops


class _ImageOptimizer(torch.optim.Optimizer):
    """An optimizer whose step changes each tensor of parameters, with one row per image, by its gradient alone."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with a closure, the loss that it returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step(param, param.grad, group)
        return loss

    def _step(self, param: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError


class DampedAdam(_ImageOptimizer):
    """Adam with an epsilon per image: the root mean square of the image's gradient.

    Adam divides each parameter's gradient by that parameter's own root mean square, so that a parameter whose gradient
    is small and random changes as fast as one that matters. In a Fourier spectrum these are the high frequencies,
    which become a fine texture all over the image. With the image's root mean square added to the denominator, a
    parameter moves in proportion to its gradient where this is below average. A step is about half as long as Adam's.

    Args:
        params: parameters with one row per image, such as those of `param.fft_image_from`.
        lr: learning rate.
        betas: decay rates of the means of the gradient and of its square, as in Adam.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        if lr < 0 or not all(0 <= beta < 1 for beta in betas):
            raise RenderError(f"lr must be 0 or more, betas at least 0 and below 1; got {lr} and {betas}")
        super().__init__(params, {"lr": lr, "betas": betas})

    def _step(self, param: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[param], group["betas"]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        state["step"] += 1  # a tensor, so that no step waits for the device
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        scale = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).sqrt()
        of_image = scale.square().mean(dim=tuple(range(1, scale.ndim)), keepdim=True).sqrt()
        scale.add_(of_image).clamp_min_(torch.finfo(param.dtype).tiny)
        unbiased = (1 - beta2 ** state["step"]).sqrt() / (1 - beta1 ** state["step"])
        param.sub_(mean.div(scale).mul_(group["lr"] * unbiased))


class TVAscent(_ImageOptimizer):
    """Normalized steps on pixels, each followed by a total-variation denoiser (arXiv 1602.03616).

    One step, within the window that ``crop`` last cut, or the whole image: the gradient is divided by its mean
    magnitude over the window, and followed for ``lr`` gray levels; pixels are clipped to [0, 1] and denoised.

    Args:
        params: pixels in [0, 1], (B, C, H, W), such as those of `param.pixel_image_from`.
        lr: step in gray levels of 255 where the gradient is of mean magnitude.
        tv_weight: the denoiser's weight on 0-255 pixels; smaller smooths more, None doesn't denoise.
        crop: the transform that cuts the window out of the image.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1.0, tv_weight: float | None = None, crop: CenterCrop | None = None
    ) -> None:
        if lr < 0 or (tv_weight is not None and tv_weight <= 0):
            raise RenderError(f"lr must be 0 or more, tv_weight above 0; got {lr} and {tv_weight}")
        super().__init__(params, {"lr": lr, "tv_weight": tv_weight})
        self.crop = crop

    def _step(self, pixels: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        crop = self.crop
        window, gradient = (crop.cut(pixels), crop.cut(gradient)) if crop else (pixels, gradient)
        size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        window = (window - group["lr"] / 255 * gradient / size).clamp(0, 1)
        if group["tv_weight"] is not None:
            window = denoise_tv(window * 255, group["tv_weight"]) / 255
        if crop:
            crop.paste(pixels, window)
        else:
            pixels.copy_(window)


@torch.no_grad()
def denoise_tv(images: Tensor, weight: float) -> Tensor:
    """Total-variation denoising by split Bregman, isotropic, each channel alone, on any device.

    Follows `skimage.restoration.denoise_tv_bregman` with the arguments that the paper's authors used (the same borders,
    the same rational shrinkage s·λs/(λs + 1) with λ = 2·weight), but updates the pixels of a checkerboard's color at
    once. On 0-255 images the two differ by less than half a gray level.

    Args:
        images: (B, C, H, W), on the scale of 0-255 that the weight is meant for.
        weight: the weight of the data term; smaller smooths more.

    Source: Goldstein & Osher 2009, "The split Bregman method for L1 regularized problems".
    """
    return torch.stack([_split_bregman(image, weight) for image in images])  # one stays in the cache


def _split_bregman(image: Tensor, weight: float) -> Tensor:
    shrink = 2 * weight
    pull = shrink / (weight + 4 * shrink)
    data = image * (weight / (weight + 4 * shrink))
    canvas = _with_border(image)
    inner = canvas[:, 1:-1, 1:-1]
    above, below, left, right = canvas[:, :-2, 1:-1], canvas[:, 2:, 1:-1], canvas[:, 1:-1, :-2], canvas[:, 1:-1, 2:]
    forward_x, forward_y = torch.zeros_like(canvas), torch.zeros_like(canvas)  # b − d, zero on the border
    b_x, b_y = torch.zeros_like(image), torch.zeros_like(image)
    colors = _checkerboard(image)
    for _ in range(_N_SWEEPS):
        before = inner.clone()
        divergence = forward_x[:, 1:-1, 1:-1] - forward_x[:, 1:-1, :-2]
        divergence.add_(forward_y[:, 1:-1, 1:-1]).sub_(forward_y[:, :-2, 1:-1])
        fixed = divergence.mul_(pull).add_(data)
        for color in colors:
            target = (above + below).add_(left).add_(right).mul_(pull).add_(fixed)
            inner.add_(target.sub_(inner).mul_(color))
        b_x.add_(right).sub_(inner)
        b_y.add_(below).sub_(inner)
        size = (b_x * b_x).addcmul_(b_y, b_y).sqrt_().mul_(shrink)
        kept = size / (size + 1)
        d_x, d_y = kept * b_x, kept * b_y
        b_x.sub_(d_x)
        b_y.sub_(d_y)
        torch.sub(b_x, d_x, out=forward_x[:, 1:-1, 1:-1])
        torch.sub(b_y, d_y, out=forward_y[:, 1:-1, 1:-1])
        if before.sub_(inner).square_().mean(dim=(1, 2)).max() < _TOLERANCE**2:
            break
    return inner


def _with_border(image: Tensor) -> Tensor:
    """Pad by one pixel: reflected above and left, repeated below and right, as scikit-image does."""
    pad = torch.nn.functional.pad
    return pad(pad(image[None], (1, 0, 1, 0), mode="reflect"), (0, 1, 0, 1), mode="replicate")[0].contiguous()


def _checkerboard(image: Tensor) -> tuple[Tensor, Tensor]:
    height, width = image.shape[-2:]
    rows = torch.arange(height, device=image.device)[:, None]
    black = ((rows + torch.arange(width, device=image.device)) % 2).to(image.dtype)
    return 1 - black, black
