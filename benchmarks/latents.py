#!/usr/bin/env python
"""Compare facets of neurons and of SAE latents: python benchmarks/latents.py MODEL WEIGHTS LAYER OUT IMAGES [IMAGES]

Trains a top-k SAE of eight times the layer's channels (Overcomplete: pip install overcomplete "matplotlib<3.9") on
activations at random positions. Compares neurons at random with the latents of the nearest activation frequencies, and
with latents at random. All are read at their peak, on as many images each, cropped to the receptive field. Prints
multifacetedness, its p-value, the number of facets by `auto`, coverage and stability, a negative control, and the rank
correlation with frequency; draws a sheet of each kind. OUT holds the layer's output on every image (in float32), the
SAE and a row for each unit: a stopped run resumes. WEIGHTS may be "-" for a model that has its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hidden_units import row
from joblib import Parallel, delayed
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import bootstrap, false_discovery_control, mannwhitneyu, spearmanr, wilcoxon
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from captum_mfv import Code, FacetFinder, ImageFolder, InputSpec, TopImages, Unit, models
from captum_mfv.activations import capture
from captum_mfv.activations.codes import Collection, collect
from captum_mfv.activations.receptive_fields import Field, receptive_field
from captum_mfv.facets.excess import excess
from captum_mfv.facets.finder import cluster
from captum_mfv.images import Images
from captum_mfv.metrics import estimate, multifacetedness
from captum_mfv.models.sae import SparseEncoder
from captum_mfv.storage.identity import content_fingerprint
from captum_mfv.units import channels_second

_KINDS = ("neuron", "matched", "random")
_HELD_OUT = 10_000  # positions on which R² is measured
_BATCH = 32


@dataclass(frozen=True)
class Maps:
    """The layer's output on every image that can be read, (n_images, C, rows x columns)."""

    indices: NDArray[np.int64]  # in the dataset
    values: Tensor
    columns: int

    @classmethod
    def read(cls, model: nn.Module, layer: str, images: Images, spec: InputSpec, folder: Path, key: str) -> Maps:
        """Collect the maps, or read those that a run has collected."""
        with torch.no_grad(), capture(model, [layer]) as run:
            shape = channels_second(run(spec.feed(model)(spec.gray()))[layer]).shape
        unit, code = Unit(layer, 0, "max"), Code(layer, "flatten")
        found = collect(model, unit, images, code=code, input_spec=spec, store=folder, key=key)
        return cls(found.indices, torch.from_numpy(found.codes).view(len(images), shape[1], -1), shape[3])

    def batches(self) -> Iterator[Tensor]:
        """Yield the activations of a few images, (n, positions, C)."""
        for some in np.array_split(self.indices, range(_BATCH, len(self.indices), _BATCH)):
            yield self.values[some].transpose(1, 2)

    def sample(self, positions: int) -> Tensor:
        """Return activations, (n, C), at random positions of every image, in random order."""
        generator, found = torch.Generator().manual_seed(0), []
        for batch in self.batches():
            picks = torch.rand(batch.shape[:2], generator=generator).argsort(1)[:, :positions]
            found.append(batch.gather(1, picks[:, :, None].expand(-1, -1, batch.shape[2])).flatten(0, 1))
        rows = torch.cat(found)
        return rows[torch.randperm(len(rows), generator=generator)]


def train(rows: Tensor, top_k: int, epochs: int) -> tuple[SparseEncoder, float]:
    """Train an SAE by Overcomplete; return its encoder and R² on activations held out."""
    from overcomplete.sae import TopKSAE, train_sae

    torch.manual_seed(0)
    mean = rows.mean(0)
    scale = (rows - mean).square().mean().sqrt()
    held, rows = ((part - mean) / scale for part in (rows[:_HELD_OUT], rows[_HELD_OUT:]))
    sae = TopKSAE(rows.shape[1], nb_concepts=8 * rows.shape[1], top_k=top_k)
    sae = sae.untied(bias=True)  # the encoder starts as the dictionary's transpose, which leaves no latent dead

    class Batches:
        def __iter__(self) -> Iterator[Tensor]:
            return (rows[some] for some in torch.randperm(len(rows)).split(1024))

    def loss(x: Tensor, x_hat: Tensor, *_: Tensor) -> Tensor:
        return (x - x_hat).square().mean()

    train_sae(sae, Batches(), loss, torch.optim.Adam(sae.parameters(), lr=1e-3), nb_epochs=epochs, monitoring=0)
    with torch.no_grad():
        r2 = 1 - (held - sae(held)[2]).square().sum() / (held - held.mean(0)).square().sum()
    weight, bias = sae.encoder.weight.detach().T / scale, sae.encoder.bias.detach()  # of activations as they are
    return SparseEncoder({"W_enc": weight, "b_enc": bias - mean @ weight}, "topk", k=top_k), float(r2)


def trained(maps: Maps, positions: int, top_k: int, epochs: int, path: Path) -> SparseEncoder:
    """Train an SAE and write its encoder, or read the encoder of an earlier run."""
    if not path.exists():
        encoder, r2 = train(maps.sample(positions), top_k, epochs)
        weights = {name: value.detach() for name, value in encoder.named_parameters()}
        save_file(weights, path, {"activation": "topk", "k": str(top_k), "subtract_b_dec": "false"})
        print(f"R² {r2:.3f} on activations held out")
    return models.load_sae(path)


@dataclass(frozen=True)
class Peaks:
    """Where units are most active.

    Args:
        frequency: (n_units,) share of the positions at which the unit is above zero.
        values, places: (n_images, n_units), the unit's maximum on each image, and its position.
    """

    frequency: Tensor
    values: Tensor
    places: Tensor

    @classmethod
    @torch.no_grad()
    def read(cls, maps: Maps, encoder: nn.Module, path: Path) -> Peaks:
        """Read all channels, or all latents, on all images; or those that a run has written."""
        if not path.exists():
            counts, found = torch.zeros(()), []
            for batch in maps.batches():
                latents = encoder(batch)
                counts = counts + (latents > 0).flatten(0, 1).sum(0)
                found.append(latents.max(1))
            tensors = {"frequency": counts / (len(maps.indices) * maps.values.shape[2])}
            tensors |= {"values": torch.cat([one[0] for one in found]), "places": torch.cat([one[1] for one in found])}
            save_file(tensors, path)
        return cls(**load_file(path))

    def live(self, top_k: int) -> Tensor:
        """Return the units that are active on at least so many images, in random order."""
        units = ((self.values > 0).sum(0) >= top_k).nonzero().flatten()
        return units[torch.randperm(len(units), generator=torch.Generator().manual_seed(0))]


def matched(neurons: Tensor, latents: Peaks, live: Tensor) -> list[int]:
    """Return, for the frequency of each neuron, the unused live latent of the nearest one, on a logarithmic scale."""
    left, found = torch.full_like(latents.frequency, torch.inf), []
    left[live] = latents.frequency[live].log()
    for frequency in neurons:
        found.append(int((left - frequency.log()).abs().nan_to_num(torch.inf).argmin()))
        left[found[-1]] = torch.inf
    return found


def top(
    unit: Unit, peaks: Peaks, maps: Maps, field: Field | None, images: Images, spec: InputSpec, k: int
) -> TopImages:
    """Return the k images on which the unit is most active, cropped to the receptive field as `top_images` does.

    Images of equal activation are in random order: a ReLU6 is 6 on more than k images, which are sorted by subject.
    """
    values = peaks.values[:, int(unit.index)]  # type: ignore[arg-type]
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    rows = order[values[order].sort(descending=True, stable=True).indices[:k]]
    places = peaks.places[rows, int(unit.index)].tolist()  # type: ignore[arg-type]
    corners = [(0, 0) if field is None else field.corner(*divmod(place, maps.columns)) for place in places]
    size = spec.size if field is None else field.crop_size
    chosen = maps.indices[rows.numpy()], values[rows].numpy(), np.array(corners)
    return TopImages(unit, images, *chosen, spec, replace(spec, size=size), size)


class Crops(Dataset[Tensor]):
    """The distinct crops of all units, ordered by image, so that each image is decoded once."""

    def __init__(self, tops: list[TopImages]) -> None:
        places = np.concatenate([np.column_stack([one.indices, one.corners]) for one in tops])
        self.places, self.rows = np.unique(places, axis=0, return_inverse=True)
        self.top, self.decoded = tops[0], (-1, torch.empty(0))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Tensor:
        (index, y, x), side = self.places[place].tolist(), self.top.crop_size
        if self.decoded[0] != index:
            self.decoded = index, self.top.image_spec.resize(self.top.images[index][None])[0]
        return self.decoded[1][:, y : y + side, x : x + side]


def read_codes(model: nn.Module, tops: list[TopImages], maps: Maps, folder: Path) -> NDArray[np.float32]:
    """Return codes, (n_units, k, C): the layer's output averaged over positions, of all units' crops in one pass."""
    if not tops[0].cropped:
        return np.stack([maps.values[one.indices].mean(2).numpy() for one in tops])
    crops, layer = Crops(tops), str(tops[0].unit.layer)
    options: dict[str, Any] = {"store": folder, "key": content_fingerprint(crops.places)}
    found = collect(model, Unit(layer, 0), crops, code=Code(layer), input_spec=tops[0].input_spec, **options)
    return found.codes[crops.rows.ravel()].reshape(len(tops), len(tops[0]), -1)


def measured(collection: Collection) -> dict[str, Any]:
    """Return the scores of one unit, and of its codes' principal components permuted, which have no joint structure."""
    began = time.process_time()
    auto, four = (cluster(collection, FacetFinder(n, embedding=None, random_state=0)) for n in ("auto", 4))
    scores, scores_four = multifacetedness(auto), multifacetedness(four)
    axes = PCA(50, random_state=0).fit_transform(collection.codes.astype(np.float64))
    control = excess(np.random.default_rng(0).permuted(axes, axis=0), 0)
    return {
        "score": scores.score,
        "p_value": scores.p_value,
        "n_facets": len(auto),
        "coverage": scores.coverage,
        "stability": float(np.mean(auto.stability)),  # type: ignore[arg-type]
        "coverage of 4": scores_four.coverage,
        "stability of 4": float(np.mean(four.stability)),  # type: ignore[arg-type]
        "control": control.score,
        "control_p": control.p_value,
        "seconds": time.process_time() - began,
    }


def report(rows: list[dict[str, Any]]) -> None:
    """Print means with 95 % intervals, differences from neurons, and rank correlations with frequency."""
    table = {
        kind: {name: np.array([one[name] for one in rows if one["kind"] == kind]) for name in rows[0]}
        for kind in _KINDS
    }
    for columns in table.values():
        columns["p < .05"] = columns["p_value"] < 0.05
        columns["false discovery rate < .05"] = false_discovery_control(columns["p_value"]) < 0.05
        columns["several facets by auto"] = columns["n_facets"] > 1
        columns["control: p < .05"] = columns["control_p"] < 0.05
        columns["control: p < .5"] = columns["control_p"] < 0.5
    print("\nmeans with 95 % intervals; p of matched latents by Wilcoxon, of random latents by Mann-Whitney")
    print("| figure | neurons | latents, matched | matched - neurons | p | latents, random | random - neurons | p |")
    print("|---" * 8 + "|")
    for name in [name for name in table["neuron"] if name not in ("kind", "pair", "unit", "n_facets", "seconds")]:
        own, paired, others = (table[kind][name] for kind in _KINDS)
        cells = [interval(own), *compared(own, paired, wilcoxon), *compared(own, others, mannwhitneyu)]
        print(f"| {name} | {' | '.join(cells)} |")
    for kind, columns in table.items():
        print(f"{kind}: multifacetedness, quartiles {np.quantile(columns['score'], [0, 0.25, 0.5, 0.75, 1]).round(3)}")
        both = columns["frequency"], columns["score"]
        sampling: dict[str, Any] = {"paired": True, "vectorized": False, "n_resamples": 2000, "rng": 0}
        ends = bootstrap(both, lambda *some: spearmanr(*some)[0], method="percentile", **sampling).confidence_interval
        found = spearmanr(*both)
        print(
            f"  rank correlation with frequency {found[0]:.2f} ({ends.low:.2f} to {ends.high:.2f}), p = {found[1]:.2g}"
        )


def compared(own: NDArray[Any], other: NDArray[Any], test: Callable[..., Any]) -> list[str]:
    """Return the mean of latents, the difference of means to neurons, and the test's p-value, as text."""
    difference = other.astype(float) - own
    p_value = test(other.astype(float), own.astype(float)).pvalue if difference.any() else 1.0
    return [interval(other), interval(difference), f"{p_value:.2g}"]


def interval(values: NDArray[Any]) -> str:
    """Return a mean with its interval as text."""
    one = estimate(values)
    return f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"


def sheet(tops: list[TopImages], collections: list[Collection], path: Path) -> None:
    """Draw the strongest crops of some units and four facets of each."""
    found = [cluster(collection, FacetFinder(4, random_state=0)) for collection in collections]
    strips = [row(*both) for both in zip(tops, found, strict=True)]
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
    parser.add_argument("--top-k", type=int, default=128)
    parser.add_argument("--kept", type=int, default=32, help="latents that the SAE keeps at each position")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--positions", type=int, default=24, help="of each image, on which the SAE is trained")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def note(what: str) -> None:
        print(f"{what}: {time.monotonic() - began:.0f} s, of the CPU {time.process_time():.0f} s", flush=True)

    model, spec = models.load(args.model, None if args.weights == "-" else args.weights)
    images = ConcatDataset([ImageFolder(folder, spec) for folder in args.images])
    maps = Maps.read(model, args.layer, images, spec, args.out / "maps", " ".join(args.images))
    note(f"{args.layer} on {len(maps.indices)} images")
    encoder = trained(maps, args.positions, args.kept, args.epochs, args.out / "sae.safetensors")
    note("SAE")
    neurons = Peaks.read(maps, nn.Identity(), args.out / "neurons.safetensors")
    latents = Peaks.read(maps, encoder, args.out / "latents.safetensors")
    chosen, live = neurons.live(args.top_k)[: args.units], latents.live(args.top_k)
    dead = [(found <= least).float().mean() for found, least in ((latents.frequency, 0), (latents.frequency, 1e-4))]
    note("peaks")
    print(
        f"latents: {dead[0]:.2f} dead, {dead[1]:.2f} active at most at 1 of 10,000 positions, "
        f"{len(live)} of {len(latents.frequency)} active on {args.top_k} images"
    )
    indices = {"neuron": chosen.tolist(), "random": live[: args.units].tolist()}
    indices["matched"] = matched(neurons.frequency[chosen], latents, live)
    units = [
        (kind, pair, Unit(args.layer, index, "max", encoder=None if kind == "neuron" else encoder))
        for pair in range(args.units)
        for kind in _KINDS
        for index in indices[kind][pair : pair + 1]
    ]
    peaks = {"neuron": neurons, "matched": latents, "random": latents}
    field = receptive_field(model, args.layer, spec)
    tops = [top(unit, peaks[kind], maps, field, images, spec, args.top_k) for kind, _, unit in units]
    codes = read_codes(model, tops, maps, args.out / "crops")
    note("codes")
    collections = [
        Collection(one.unit, Code(args.layer), np.arange(args.top_k), one.activations, its, None)
        for one, its in zip(tops, codes, strict=True)
    ]
    path = args.out / "rows.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    left = slice(len(rows), None)  # rows are in the order of the units
    scores = Parallel(args.jobs, return_as="generator")(delayed(measured)(one) for one in collections[left])
    for (kind, pair, unit), found in zip(units[left], scores, strict=True):
        frequency = float(peaks[kind].frequency[int(unit.index)])  # type: ignore[arg-type]
        rows.append({"kind": kind, "pair": pair, "unit": unit.index, "frequency": frequency, **found})
        path.write_text(json.dumps(rows))
    note(f"scores, {sum(one['seconds'] for one in rows):.0f} s of the CPU in other processes")
    report(rows)
    for kind in _KINDS:
        six = [place for place, unit in enumerate(units) if unit[0] == kind][:6]
        sheet([tops[i] for i in six], [collections[i] for i in six], args.out / f"{kind}.png")
    note("all")


if __name__ == "__main__":
    main()
