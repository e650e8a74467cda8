#!/usr/bin/env python
"""Compare facets of neurons and of SAE latents: python benchmarks/latents.py MODEL WEIGHTS LAYER OUT IMAGES [IMAGES]

Trains a top-k SAE of eight times the layer's channels (Overcomplete: pip install overcomplete "matplotlib<3.9") on
activations at random positions, draws neurons at random, and matches each with the latent of the nearest activation
frequency. Both are read at their peak; their top images are cropped to the receptive field. Prints multifacetedness,
its p-value, the number of facets by `auto`, coverage and stability of both, and draws a sheet of each. OUT holds the
SAE, a row for each unit (a stopped run resumes) and the sheets.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hidden_units import row
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import mannwhitneyu, wilcoxon
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from captum_mfv import ImageFolder, InputSpec, TopImages, Unit, find_facets, models, top_images
from captum_mfv.activations import capture, guard
from captum_mfv.images import Images, batches
from captum_mfv.metrics import estimate, multifacetedness
from captum_mfv.models.sae import SparseEncoder
from captum_mfv.units import channels_second

_FIGURES = ("score", "p_value", "n_facets", "coverage", "stability")


def sample(model: nn.Module, layer: str, images: Images, spec: InputSpec, n_each: int) -> Tensor:
    """Return activations, (n, C), at n_each random positions of every image."""
    generator, found = torch.Generator().manual_seed(0), []
    with guard(model), torch.no_grad(), capture(model, [layer]) as run:
        for _, batch in batches(images, 8):
            maps = channels_second(run(spec.feed(model)(batch))[layer]).flatten(2)
            picks = torch.rand(len(maps), maps.shape[2], generator=generator).argsort(1)[:, :n_each]
            found.append(maps.gather(2, picks[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2).flatten(0, 1))
    return torch.cat(found)


def train(activations: Tensor, top_k: int, epochs: int) -> SparseEncoder:
    """Train an SAE by Overcomplete and return its encoder."""
    from overcomplete.sae import TopKSAE, train_sae

    torch.manual_seed(0)
    scale = activations.norm(dim=1).mean() / activations.shape[1] ** 0.5
    sae = TopKSAE(activations.shape[1], nb_concepts=8 * activations.shape[1], top_k=top_k, device="cpu")
    rows = DataLoader(TensorDataset(activations / scale), batch_size=1024, shuffle=True)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    train_sae(sae, rows, lambda x, x_hat, *_: (x - x_hat).square().mean(), optimizer, nb_epochs=epochs)
    save_file({name: value.contiguous() for name, value in sae.state_dict().items()}, "sae.tmp.safetensors")
    encoder = models.load_sae("sae.tmp.safetensors", activation="topk", k=top_k, subtract_b_dec=False)
    Path("sae.tmp.safetensors").unlink()
    weights = {"W_enc": encoder.W_enc / scale, "b_enc": encoder.b_enc}
    return SparseEncoder(weights, "topk", k=top_k)


def frequencies(rows: Tensor, encoder: nn.Module | None = None) -> Tensor:
    """Return the share of positions at which each channel, or each latent, is above zero."""
    with torch.no_grad():
        parts = [(part if encoder is None else encoder(part)) > 0 for part in torch.split(rows, 2048)]
    return torch.stack([part.float().sum(0) for part in parts]).sum(0) / len(rows)


def matched(neurons: Tensor, latents: Tensor, n: int) -> list[tuple[int, int]]:
    """Return pairs of a random neuron and the unused latent of the nearest frequency, on a logarithmic scale."""
    live = neurons.gt(1e-3).nonzero().flatten()
    chosen = live[torch.randperm(len(live), generator=torch.Generator().manual_seed(0))[:n]].tolist()
    left, pairs = latents.clamp_min(1e-9).log(), []
    for neuron in chosen:
        latent = int((left - neurons[neuron].log()).abs().argmin())
        left[latent] = torch.inf
        pairs.append((neuron, latent))
    return pairs


def measured(model: nn.Module, top: TopImages) -> dict[str, Any]:
    """Return the figures of one unit."""
    facets = find_facets(model, top.unit, top, n_facets="auto", input_spec=top.input_spec)
    found, stability = multifacetedness(facets), np.array(facets.stability)
    return {
        "score": found.score,
        "p_value": found.p_value,
        "coverage": found.coverage,
        "n_facets": len(facets),
        "stability": float(stability.mean()),
    }


def report(rows: list[dict[str, Any]]) -> None:
    """Print means with 95 % intervals, and tests of neurons against latents."""
    kinds = {kind: [one for one in rows if one["kind"] == kind] for kind in ("neuron", "latent")}
    print(f"\n{len(kinds['neuron'])} neurons, {len(kinds['latent'])} latents; means with 95 % intervals")
    print("| figure | neurons | latents | p, Mann-Whitney | p, Wilcoxon of pairs |\n|---|---|---|---|---|")
    for name in ("frequency", *_FIGURES):
        columns = [np.array([one[name] for one in its], float) for its in kinds.values()]
        cells = [f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in map(estimate, columns)]
        both = [{one["pair"] for one in its} for its in kinds.values()]
        pairs = sorted(both[0] & both[1])
        paired = [np.array([one[name] for p in pairs for one in its if one["pair"] == p]) for its in kinds.values()]
        p_pairs = wilcoxon(*paired).pvalue if len(pairs) and (paired[0] != paired[1]).any() else 1.0
        print(f"| {name} | {cells[0]} | {cells[1]} | {mannwhitneyu(*columns).pvalue:.3g} | {p_pairs:.3g} |")
    for kind, its in kinds.items():
        significant = np.mean([one["p_value"] < 0.05 for one in its])
        several = np.mean([one["n_facets"] > 1 for one in its])
        print(f"{kind}s: p < .05 for {significant:.2f}, several facets for {several:.2f}")


def sheet(model: nn.Module, tops: list[TopImages], path: Path) -> None:
    """Draw the strongest crops of some units and four facets of each."""
    strips = []
    for top in tops:
        facets = find_facets(model, top.unit, top, n_facets=4, input_spec=top.input_spec)
        strips.append(row(top, facets))
    whole = Image.new("RGB", (max(one.width for one in strips), sum(one.height for one in strips)), "white")
    for place, strip in enumerate(strips):
        whole.paste(strip, (0, sum(one.height for one in strips[:place])))
    whole.save(path)


def main() -> None:
    """Train, match, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "weights", "layer"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=200)
    parser.add_argument("--kept", type=int, default=32, help="latents that the SAE keeps at each position")
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    model, spec = models.load(args.model, args.weights)
    images = ConcatDataset([ImageFolder(folder, spec) for folder in args.images])
    activations = sample(model, args.layer, images, spec, 24)
    print(f"{len(activations)} activations of {len(images)} images, {time.monotonic() - began:.0f} s", flush=True)
    encoder = train(activations, args.kept, args.epochs)
    held = activations[torch.randperm(len(activations), generator=torch.Generator().manual_seed(1))[:20000]]
    own, others = frequencies(held), frequencies(held, encoder)
    print(f"dead latents {(others == 0).float().mean():.2f}, {time.monotonic() - began:.0f} s", flush=True)
    pairs = matched(own, others, args.units)
    units = {("neuron", pair): Unit(args.layer, n, "max") for pair, (n, _) in enumerate(pairs)}
    units |= {
        ("latent", pair): Unit(args.layer, latent, "max", encoder=encoder) for pair, (_, latent) in enumerate(pairs)
    }
    tops = dict(zip(units, top_images(model, list(units.values()), images, args.top_k, input_spec=spec), strict=True))
    print(f"top images, {time.monotonic() - began:.0f} s", flush=True)
    path = args.out / "rows.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    known = {(one["kind"], one["pair"]) for one in rows}
    for (kind, pair), top in sorted(tops.items(), key=lambda item: item[0][1]):
        if (kind, pair) in known or len(top) < args.top_k // 2:
            continue
        frequency = float(own[top.unit.index] if kind == "neuron" else others[top.unit.index])
        rows.append(
            {"kind": kind, "pair": pair, "unit": top.unit.index, "frequency": frequency, **measured(model, top)}
        )
        path.write_text(json.dumps(rows))
    report(rows)
    for kind in ("neuron", "latent"):
        chosen = [top for (one, pair), top in tops.items() if one == kind and len(top) >= args.top_k // 2][:6]
        sheet(model, chosen, args.out / f"{kind}s.png")
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
