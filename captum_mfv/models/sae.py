"""Encoders of sparse autoencoders, read from files of Overcomplete, SAELens, ViT-Prisma, or of plain tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn

from captum_mfv.errors import ModelError
from captum_mfv.models.weights import check_finite, read_weights
from captum_mfv.storage.schema import Record, validate
from captum_mfv.storage.untrusted import is_file, is_folder, read_json

__all__ = ["SparseEncoder", "load_sae"]

_FOLDERS = {"cfg.json": "sae_weights.safetensors", "config.json": "weights.pt"}  # SAELens, ViT-Prisma
_CONFIG = "vit_prisma.sae.config.VisionModelSAERunnerConfig"  # ViT-Prisma saves this object too; config.json is read
_SUPPORTED: Mapping[str, tuple[Any, ...]] = {  # values of their settings that change latents; None is the first
    "architecture": ("standard", "topk", "jumprelu", "gated"),
    "activation_fn": ("relu", "topk"),
    "activation_fn_str": ("relu", "topk"),
    "normalize_activations": ("none", "layer_norm", "constant_norm_rescale", False),
    "reshape_activations": ("none",),
    "is_transcoder": (False,),
}
_NORM = "encoder.final_block.1."  # of Overcomplete
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class _Settings(Record):
    """Settings on which latents depend beside the weights; in a file's metadata, numbers and flags are text."""

    activation: Literal["relu", "topk", "jumprelu", "gated"]
    k: Annotated[int, Field(ge=1)] | None = None
    threshold: float | None = None
    subtract_b_dec: bool
    normalize: Literal["none", "layer_norm", "constant_norm_rescale"] = "none"


class SparseEncoder(nn.Module):
    """Encoder of a sparse autoencoder, frozen: from activations x, (…, C), to latents, (…, F).

    With p = (x - b_dec) W_enc + b_enc, where x is normalized first if ``normalize`` says so, the latents are

    - ``relu``: max(p, 0);
    - ``topk``: max(p, 0) for the k largest p of a position, else 0;
    - ``jumprelu``: max(p, 0) where p > threshold, else 0;
    - ``gated``: max((p - b_enc) exp(r_mag) + b_mag, 0) where p > 0, else 0;
    - ``linear``: p.

    Args:
        weights: ``W_enc``, (C, F), and ``b_enc``, (F,); ``b_dec``, (C,), if it is subtracted; ``threshold``, (F,), for
            ``jumprelu``; ``r_mag`` and ``b_mag``, (F,), for ``gated``.
        activation: one of these.
        k: number of latents that ``topk`` keeps.
        normalize: ``none``; ``layer_norm``: subtract the mean of x, divide by its standard deviation + 1e-5; or
            ``constant_norm_rescale``: rescale x to the norm √C.

    Raises:
        ModelError: if a tensor is missing or has another shape, or ``k`` is not from 1 to F.

    Sources: Gao et al. 2024, arXiv 2406.04093 (top-k); Rajamanoharan et al. 2024, arXiv 2407.14435 (JumpReLU) and
    arXiv 2404.16014 (gated).
    """

    W_enc: Tensor
    b_enc: Tensor
    b_dec: Tensor | None
    threshold: Tensor
    r_mag: Tensor
    b_mag: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], activation: str, *, k: int | None = None, normalize: str = "none"
    ) -> None:
        super().__init__()
        self.activation, self.k, self.normalize = activation, k, normalize
        more = {"jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}.get(activation, ())
        if missing := [name for name in ("W_enc", "b_enc", *more) if name not in weights]:
            raise ModelError(f"the tensor {missing[0]} of activation {activation} is missing")
        if weights["W_enc"].ndim != 2 or not weights["W_enc"].is_floating_point():
            raise ModelError(
                f"W_enc must be floating-point numbers (C, F), not of shape {tuple(weights['W_enc'].shape)}"
            )
        n_latents = weights["W_enc"].shape[1]
        shapes = {"W_enc": (len(weights["W_enc"]), n_latents), "b_dec": (len(weights["W_enc"]),)}
        for name in ("W_enc", "b_enc", "b_dec", *more):
            value, shape = weights.get(name), shapes.get(name, (n_latents,))
            if value is not None and value.shape != shape:
                raise ModelError(f"{name} must be {shape}, as W_enc is (C, F), not {tuple(value.shape)}")
            value = None if value is None else value.detach().to(weights["W_enc"].dtype, copy=True).contiguous()
            self.register_parameter(name, None if value is None else nn.Parameter(value, requires_grad=False))
        if activation == "topk" and not 1 <= (k or 0) <= n_latents:
            raise ModelError(f"top-k must keep 1 to {n_latents} latents, not k = {k}")
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return latents, (…, F), of activations, (…, C)."""
        x = _normalized(x, self.normalize)
        p: Tensor = (x if self.b_dec is None else x - self.b_dec) @ self.W_enc + self.b_enc
        if self.activation == "topk":
            values, indices = p.relu().topk(self.k or 1, dim=-1)
            return torch.zeros_like(p).scatter(-1, indices, values)
        if self.activation == "jumprelu":
            return torch.where(p > self.threshold, p.relu(), 0)
        if self.activation == "gated":
            return ((p - self.b_enc) * self.r_mag.exp() + self.b_mag).relu() * (p > 0)
        return p if self.activation == "linear" else p.relu()

    def linear(self, latents: Sequence[int] | None = None) -> SparseEncoder:
        """Return an encoder of some latents' p, or of all, which has a gradient where a latent is 0."""
        columns = slice(None) if latents is None else list(latents)
        weights = {"W_enc": self.W_enc[:, columns], "b_enc": self.b_enc[columns]}
        weights |= {} if self.b_dec is None else {"b_dec": self.b_dec}
        return SparseEncoder(weights, "linear", normalize=self.normalize)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the settings, which belong to state dicts and fingerprints as the weights do."""
        return {"activation": self.activation, "k": self.k, "normalize": self.normalize}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Set the settings of a state dict."""
        vars(self).update(state)

    def extra_repr(self) -> str:
        """Return sizes and settings, for ``print``."""
        settings = ", ".join(f"{name}={value}" for name, value in self.get_extra_state().items())
        return f"{', '.join(map(str, self.W_enc.shape))}, {settings}, subtract_b_dec={self.b_dec is not None}"


def _normalized(x: Tensor, how: str) -> Tensor:
    if how == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
        return x / (x.std(-1, keepdim=True) + 1e-5)
    if how == "constant_norm_rescale":
        scaled: Tensor = nn.functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5
        return scaled
    return x


def load_sae(
    path: str | os.PathLike[str],
    *,
    activation: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    subtract_b_dec: bool | None = None,
) -> SparseEncoder:
    """Read the encoder of a sparse autoencoder, for ``Unit(layer, latent, encoder=load_sae(path))``.

    Args:
        path: a ``.safetensors`` file, a ``.pt`` or ``.pth`` file that holds only tensors, or a folder:

            - the folder of an SAE of SAELens (``cfg.json``, ``sae_weights.safetensors``) or of ViT-Prisma
              (``config.json``, ``weights.pt``);
            - the state dict of an SAE of Overcomplete whose encoder is linear, with batch norm or without;
            - the tensors ``W_enc``, (C, F), ``b_enc``, (F,), ``b_dec``, (C,), and for JumpReLU ``threshold``, (F,);
              the decoder, ``W_dec``, is not used.
        activation: ``relu``, ``topk``, ``jumprelu`` or ``gated``. Folders contain all settings. The metadata of a
            safetensors file may contain this argument and the next ones, under their names; else they must be given.
        k: number of latents that top-k keeps for each position.
        threshold: one threshold for all latents, for JumpReLU: Overcomplete's ``BatchTopKSAE.running_threshold``.
        subtract_b_dec: whether ``b_dec`` is subtracted from the input.

    Raises:
        ModelError: if the file can't be read, lacks a tensor or a setting, contradicts an argument, or has a setting
            that is not supported.

    Sources of the formats: SAELens 6 (``saes/``), ViT-Prisma 2 (``sae/sae.py``), Overcomplete 0.3 (``sae/``).
    """
    source, place = os.fspath(path), Path(path)
    arguments = {"activation": activation, "k": k, "threshold": threshold, "subtract_b_dec": subtract_b_dec}
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        weights, found = _read_folder(place) if is_folder(place) else _read_file(place)
        settings = validate(_Settings, {**found, **given})
        if settings != validate(_Settings, {**given, **found}):
            raise ModelError(f"the file has {', '.join(f'{name} {found[name]}' for name in given if name in found)}")
        if settings.threshold is not None and "b_enc" in weights:
            weights["threshold"] = torch.full_like(weights["b_enc"], settings.threshold)
        if settings.subtract_b_dec and "b_dec" not in weights:
            raise ModelError("the tensor b_dec, which is to be subtracted, is missing")
        if not settings.subtract_b_dec:
            weights.pop("b_dec", None)
        encoder = SparseEncoder(weights, settings.activation, k=settings.k, normalize=settings.normalize)
    except (ValueError, OSError, RuntimeError, IndexError) as error:  # the last two: tensors of wrong shapes
        raise ModelError(f"{source} can't be read as a sparse autoencoder: {error}") from error
    check_finite(encoder, source)
    return encoder


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the settings of a file of Overcomplete's or of plain tensors."""
    weights, found = read_weights(path), {}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            found = {name: text for name, text in (file.metadata() or {}).items() if name in _Settings.model_fields}
    if any(name.startswith(("encoder.", "dictionary.")) for name in weights):
        weights = _from_overcomplete(weights)
    if "threshold" in weights:
        found.setdefault("activation", "jumprelu")
    if "b_dec" not in weights:
        found.setdefault("subtract_b_dec", False)
    return weights, found


def _from_overcomplete(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a linear encoder, into which batch norm is folded."""
    linear = "encoder.final_block.0." if "encoder.final_block.0.weight" in state else "encoder."
    norm = {name.removeprefix(_NORM): value for name, value in state.items() if name.startswith(_NORM)}
    known = (f"{linear}weight", f"{linear}bias", *(_NORM + name for name in _BATCH_NORM))
    other = [name for name in state if name.startswith("encoder.") and name not in known]
    if other or f"{linear}weight" not in state or (norm and norm.keys() != set(_BATCH_NORM)):
        raise ModelError(
            f"of Overcomplete, linear encoders with or without batch norm are supported, not one with the tensors "
            f"{', '.join([*other, *(name for name in state if name not in other)][:3])}"
        )
    weight = state[f"{linear}weight"]
    bias = state.get(f"{linear}bias", weight.new_zeros(len(weight)))
    if norm:
        scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        weight, bias = weight * scale[:, None], (bias - norm["running_mean"]) * scale + norm["bias"]
    found = {"W_enc": weight.T, "b_enc": bias}
    if "thresholds" in state:  # latents at the threshold are kept: p >= exp(thresholds)
        found["threshold"] = torch.nextafter(state["thresholds"].exp(), torch.tensor(-torch.inf))
    return found


def _read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the settings of a folder of SAELens or of ViT-Prisma."""
    there = [pair for pair in _FOLDERS.items() if all(is_file(path / name) for name in pair)]
    if not there:
        raise ModelError(f"the folder must hold {' or '.join(map(' and '.join, _FOLDERS.items()))}")
    config, weights = read_json(path / there[0][0]), read_weights(path / there[0][1], skip=[_CONFIG])
    if not isinstance(config, dict):
        raise ModelError(f"{there[0][0]} holds no table")
    for name, supported in _SUPPORTED.items():
        if config.get(name) not in (None, *supported):
            raise ModelError(f"{name} {config[name]!r} is not supported; {', '.join(map(str, supported))} are")
    function = config.get("activation_fn_str") or config.get("activation_fn")
    options = config.get("activation_fn_kwargs")
    kind: str = config.get("architecture") or "standard"
    kind = "topk" if kind == "standard" and function == "topk" else kind
    if function == "topk" and kind != "topk":
        raise ModelError(f"activation_fn topk is not supported in a {kind} architecture")
    if kind == "gated":  # SAELens calls p's bias b_gate; ViT-Prisma has an unused b_enc too
        weights = {{"b_gate": "b_enc"}.get(key, key): value for key, value in weights.items() if key != "b_enc"}
    if config.get("rescale_acts_by_decoder_norm") and {"W_dec", "W_enc", "b_enc"} <= weights.keys():
        norms = weights["W_dec"].norm(dim=-1)
        weights |= {"W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms}
    return weights, {
        "activation": "relu" if kind == "standard" else kind,
        "k": config.get("k") or (options.get("k") if isinstance(options, dict) else None),
        "subtract_b_dec": config.get("apply_b_dec_to_input", True),
        "normalize": config.get("normalize_activations") or "none",
    }
