#!/usr/bin/env python
"""Compare latents of SAEs that other libraries wrote with those of `models.load_sae`: python benchmarks/sae_formats.py

For each architecture that `load_sae` reads of SAELens (pip install sae-lens), of Overcomplete (pip install overcomplete
"matplotlib<3.9") and of ViT-Prisma 2 (github.com/Prisma-Multimodal/ViT-Prisma; PyPI has 0.1 only): an SAE with random
weights is written by its own library, read by `load_sae`, and both encode the same activations. Prints the largest
difference of a latent, relative to the largest latent, and the share of latents above zero; fails if a difference is
above 1e-5. A library that is not installed is left out.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from captum_mfv import models

_CHANNELS, _LATENTS, _KEPT, _ROWS = 48, 256, 8, 1000


@dataclass(frozen=True)
class Case:
    """A written SAE: its file or folder, the arguments of `load_sae` that it needs, and its own encoder."""

    name: str
    path: Path
    arguments: dict[str, Any]
    encode: Callable[[Tensor], Tensor]


def randomize(sae: nn.Module) -> None:
    """Draw every weight, so that biases and thresholds, which libraries start at zero, take part."""
    for name, weight in sae.named_parameters():
        weight.data.normal_(std=0.3)
        if name.endswith(("threshold", "thresholds")):  # positive; Overcomplete's are logarithms
            weight.data = weight.data.abs() if name == "threshold" else weight.data - 1


def saelens(folder: Path) -> Iterator[Case]:
    """Write SAEs by `SAE.save_model` of SAELens, and one trained with batch top-k by `save_inference_model`."""
    from sae_lens.saes import batchtopk_sae, gated_sae, jumprelu_sae, standard_sae, topk_sae
    from sae_lens.saes.sae import SAE

    kinds = {
        "standard": (standard_sae.StandardSAE, standard_sae.StandardSAEConfig, {}),
        "topk": (topk_sae.TopKSAE, topk_sae.TopKSAEConfig, {"k": _KEPT}),
        "jumprelu": (jumprelu_sae.JumpReLUSAE, jumprelu_sae.JumpReLUSAEConfig, {}),
        "gated": (gated_sae.GatedSAE, gated_sae.GatedSAEConfig, {}),
    }
    common = [{}, {"apply_b_dec_to_input": False}, {"normalize_activations": "layer_norm"}]
    common += [{"normalize_activations": "constant_norm_rescale"}]
    for kind, (make, configure, own) in kinds.items():
        for more in [*common, *([{"rescale_acts_by_decoder_norm": True}] if kind == "topk" else [])]:
            sae = make(configure(_CHANNELS, _LATENTS, **own, **more))
            randomize(sae)
            path = folder / f"saelens_{kind}_{len(list(folder.iterdir()))}"
            sae.save_model(path)
            settings = "".join(f", {name} {value}" for name, value in more.items())
            yield Case(f"SAELens {version('sae-lens')}, {kind}{settings}", path, {}, sae.encode)
    config = batchtopk_sae.BatchTopKTrainingSAEConfig(d_in=_CHANNELS, d_sae=_LATENTS, k=_KEPT)
    trained, path = batchtopk_sae.BatchTopKTrainingSAE(config), folder / "saelens_batchtopk"
    randomize(trained)
    trained.topk_threshold.fill_(0.5)  # the running mean that training measures
    trained.save_inference_model(path)
    yield Case(f"SAELens {version('sae-lens')}, batchtopk, for inference", path, {}, SAE.load_from_disk(path).encode)


def overcomplete(folder: Path) -> Iterator[Case]:
    """Write state dicts of Overcomplete's SAEs."""
    from overcomplete import sae as saes

    kinds = {
        "SAE": ({}, {"activation": "relu"}),
        "TopKSAE": ({"top_k": _KEPT}, {"activation": "topk", "k": _KEPT}),
        "BatchTopKSAE": ({"top_k": _KEPT * _ROWS}, {"activation": "jumprelu"}),
        "JumpSAE": ({}, {}),
    }
    for kind, (own, arguments) in kinds.items():
        for module in ("linear", "mlp_bn_1", None):
            sae = getattr(saes, kind)(_CHANNELS, _LATENTS, encoder_module=module, **own)
            sae = sae if module else sae.untied(bias=True)
            randomize(sae)
            sae(torch.randn(_ROWS, _CHANNELS))  # statistics of batch norm, BatchTopKSAE's threshold
            sae.eval()
            more = {"threshold": float(sae.running_threshold)} if kind == "BatchTopKSAE" else {}
            path = folder / f"{kind}_{module}.safetensors"
            save_file({name: value.contiguous() for name, value in sae.state_dict().items()}, path)
            name = f"Overcomplete {version('overcomplete')}, {kind}, encoder {module or 'untied'}"
            yield Case(name, path, {**arguments, **more}, lambda x, sae=sae: sae.encode(x)[1])


def vit_prisma(folder: Path) -> Iterator[Case]:
    """Write SAEs by `save_model` and `save_config` of ViT-Prisma."""
    from vit_prisma.sae.config import VisionModelSAERunnerConfig
    from vit_prisma.sae.sae import GatedSparseAutoencoder, StandardSparseAutoencoder

    relu, top_k = {"activation_fn_str": "relu"}, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": _KEPT}}
    common = {"d_in": _CHANNELS, "expansion_factor": _LATENTS // _CHANNELS, "_device": "cpu"}
    for kind, make, own in (
        ("standard", StandardSparseAutoencoder, relu),
        ("standard", StandardSparseAutoencoder, top_k),
        ("gated", GatedSparseAutoencoder, relu),
    ):
        for normalize in ("none", "layer_norm", "constant_norm_rescale"):
            config = VisionModelSAERunnerConfig(architecture=kind, normalize_activations=normalize, **common, **own)
            sae = make(config)
            randomize(sae)
            path = folder / f"prisma_{kind}_{len(list(folder.iterdir()))}"
            path.mkdir()
            config.save_config(str(path / "config.json"))
            with redirect_stdout(sys.stderr):  # it prints the path
                sae.save_model(str(path / "weights.pt"))
            settings = f"{kind}, {own['activation_fn_str']}, normalize_activations {normalize}"
            name = f"ViT-Prisma {version('vit-prisma')}, {settings}"
            yield Case(name, path, {}, lambda x, sae=sae: sae.encode(x)[1])


def main() -> None:
    """Print a row for each SAE."""
    torch.manual_seed(0)
    rows = 2 * torch.randn(_ROWS, _CHANNELS)
    worst = 0.0
    print("| SAE | largest difference of a latent | latents above zero |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for library, write in (("sae-lens", saelens), ("overcomplete", overcomplete), ("vit-prisma", vit_prisma)):
            try:
                version(library)
            except PackageNotFoundError:
                print(f"| {library} is not installed | | |")
                continue
            for case in write(Path(folder)):
                wanted, found = case.encode(rows), models.load_sae(case.path, **case.arguments)(rows)
                difference = float((wanted - found).abs().max() / wanted.max())
                worst = max(worst, difference)
                print(f"| {case.name} | {difference:.1e} | {(wanted > 0).float().mean():.3f} |")
    if worst > 1e-5:
        raise SystemExit(f"the largest difference is {worst:.1e}, above 1e-5")


if __name__ == "__main__":
    main()
