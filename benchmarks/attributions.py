#!/usr/bin/env python
"""Compare attributions of facets: python benchmarks/attributions.py IMAGES --model NAME --weights FILE --unit LAYER:N

Prints three tables. Mosaic: images of two facets are shown side by side; the table has the share of each facet map's
positive attributions that are on the facet's side, for each method and output, and for attributions of the unit, which
do not depend on the facet. Cost: seconds of integrated gradients for all facets together and for one facet. TCAV:
scores of the class for its facets and for the facets of another unit, --other, found in the unit's top images of the
folder --random, which has images of all kinds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import captum.attr as ca
import numpy as np
import torch
from torch import Tensor, nn

from captum_mfv import FacetSet, ImageFolder, InputSpec, Unit, find_facets, models, top_images
from captum_mfv.attr import FacetAttribution, FacetModel, LayerFacetAttribution, unit_forward
from captum_mfv.concept import facet_concepts, random_concepts, tcav_table
from captum_mfv.images import Images

Explain = Callable[[Tensor, int], Tensor]
OUTPUTS = {
    "logits": ("logits", False),
    "logits, contrast": ("logits", True),
    "gated": ("gated", False),
    "gated, contrast": ("gated", True),
}
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Saliency, signed": (ca.Saliency, {"abs": False}),
    "InputXGradient": (ca.InputXGradient, {}),
    "IntegratedGradients": (ca.IntegratedGradients, {"n_steps": 10, "internal_batch_size": 5}),
    "GuidedBackprop": (ca.GuidedBackprop, {}),
    "DeepLift": (ca.DeepLift, {}),
    "FeatureAblation": (ca.FeatureAblation, {"feature_mask": None}),
}


def patches(x: Tensor, side: int = 45) -> Tensor:
    """Return a mask of square patches, (1, 1, H, W)."""
    height, width = x.shape[-2:]
    down, right = torch.arange(height)[:, None] // side, torch.arange(width) // side
    return (down * (width // side + 1) + right)[None, None]


def explainers(model: FacetModel, contrast: bool) -> Iterator[tuple[str, Explain]]:
    """Yield the methods that support the output, by name."""
    for name, (method, options) in METHODS.items():
        if name == "DeepLift" and model.output == "gated":
            continue
        made = FacetAttribution(method, model, contrast=contrast)
        yield name, lambda x, k, made=made, options=options: made.attribute(x, target=k, **filled(options, x))
    layer = model.model.get_submodule(model.code.layer)
    for name in ("LayerGradCam", "LayerGradientXActivation"):
        deep = LayerFacetAttribution(getattr(ca, name), model, layer, contrast=contrast)
        yield name, lambda x, k, deep=deep: deep.attribute(x, target=k)


def unit_explainers(model: nn.Module, unit: Unit) -> Iterator[tuple[str, Explain]]:
    """Yield the methods that explain the unit without facets, by name."""
    forward = unit_forward(model, unit)
    for name, (method, options) in METHODS.items():
        if name not in ("DeepLift", "GuidedBackprop"):  # these need a module
            made = method(forward)
            yield name, lambda x, k, made=made, options=options: made.attribute(x, **filled(options, x))


def filled(options: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """Return the options with a mask of the input's size."""
    return {name: patches(x) if name == "feature_mask" else value for name, value in options.items()}


def mosaics(facets: FacetSet, images: Images, spec: InputSpec, n_pairs: int) -> list[tuple[int, int, Tensor]]:
    """Return pairs of facets, with the images nearest to their centers side by side as one input of the model."""
    pairs = list(combinations(range(len(facets)), 2))
    chosen = np.random.default_rng(0).permutation(len(pairs))[:n_pairs]
    nearest = [spec(images[int(facet.members[0])][None]) for facet in facets]
    return [(a, b, torch.cat([nearest[a], nearest[b]], -1)) for a, b in (pairs[i] for i in chosen)]


def share(explain: Explain, scenes: list[tuple[int, int, Tensor]]) -> float:
    """Return the mean share of positive attributions on the facet's side."""
    shares = []
    for left, right, scene in scenes:
        for facet, side in ((left, 0), (right, 1)):
            mass = explain(scene.clone().requires_grad_(), facet).detach().sum(1).clamp_min(0)
            halves = torch.stack([half.sum() for half in mass.tensor_split(2, -1)])
            if halves.sum() > 0:
                shares.append(float(halves[side] / halves.sum()))
    return float(np.mean(shares))


def print_mosaics(model: nn.Module, facets: FacetSet, images: Images, spec: InputSpec, n_pairs: int) -> None:
    """Print the share of each method for each output."""
    scenes = mosaics(facets, images, spec, n_pairs)
    table = {
        name: {
            method: share(explain, scenes)
            for method, explain in explainers(FacetModel(model, facets, output), contrast)
        }
        for name, (output, contrast) in OUTPUTS.items()
    }
    table["unit"] = {method: share(explain, scenes) for method, explain in unit_explainers(model, facets.unit)}
    print("share of positive attributions on the facet's side of a mosaic of two images (chance .50)")
    print(f"{'':26}" + "".join(f"{name:>18}" for name in table))
    for method in table["logits"]:
        print(
            f"{method:26}"
            + "".join(f"{row[method]:18.2f}" if method in row else f"{'-':>18}" for row in table.values())
        )


def print_cost(model: nn.Module, facets: FacetSet, images: Images, spec: InputSpec) -> None:
    """Print seconds of integrated gradients for all facets and for one, and of Captum for one; minimum of two runs."""
    x = spec(images[0][None])
    explained = FacetModel(model, facets)
    ours, captums = FacetAttribution(ca.IntegratedGradients, explained), ca.IntegratedGradients(explained)
    calls = {
        "Captum, one facet": lambda: captums.attribute(x, target=0),
        "one facet": lambda: ours.attribute(x, target=0),
        f"all {len(facets)} facets together": lambda: ours.attribute(x),
    }
    times = {name: min(seconds(call) for _ in range(2)) for name, call in calls.items()}
    print("\nintegrated gradients of one image, 50 steps")
    for name, time_ in times.items():
        print(f"{name:26}{time_:8.2f} s{time_ / times['Captum, one facet']:8.2f} x")


def seconds(call: Callable[[], object]) -> float:
    """Return the duration of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def print_tcav(
    model: nn.Module,
    facets: FacetSet,
    images: Images,
    spec: InputSpec,
    folder: str,
    other: str,
    layer: str,
    n_images: int = 30,
) -> None:
    """Print TCAV scores of the class for its facets and for the facets of another unit."""
    everything = ImageFolder(folder, spec)
    top = top_images(model, Unit.parse(other), everything, 3 * n_images, input_spec=spec)
    others = find_facets(model, top.unit, top, n_facets=3, input_spec=spec)
    concepts = [
        *facet_concepts(facets, images, n_images=n_images, input_spec=spec),
        *facet_concepts(others, top, n_images=n_images, input_spec=spec),
    ]
    random = random_concepts(everything, 16, n_images, input_spec=spec)
    assert isinstance(facets.unit.index, int)
    inputs = spec(torch.stack([images[int(facet.members[1])] for facet in facets]))
    rows = tcav_table(model, inputs, facets.unit.index, concepts, random, layers=[layer])
    print(f"\nTCAV of {facets.unit} at {layer}, {len(random)} random concepts of {n_images} images")
    print(f"{'concept':32}{'score':>8}{'std':>7}{'random':>8}{'p':>9}{'accuracy':>10}")
    for row in rows:
        print(f"{row.concept:32}{row.score:8.2f}{row.std:7.2f}{row.random:8.2f}{row.p_value:9.2g}{row.accuracy:10.2f}")


def main() -> None:
    """Find the facets and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    for name in ("model", "weights", "unit"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--random", help="folder of images of all kinds")
    parser.add_argument("--other", help="another unit, as LAYER:N")
    parser.add_argument("--layer", help="layer for TCAV; by default the code's layer")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--only", choices=("mosaic", "cost", "tcav"))
    args = parser.parse_args()
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore", category=UserWarning, module="captum")
    model, spec = models.load(args.model, args.weights)
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # DeepLift and guided backpropagation hook them
    images = ImageFolder(args.images, spec)
    facets = find_facets(model, Unit.parse(args.unit), images, input_spec=spec)
    if args.only in (None, "cost"):
        print_cost(model, facets, images, spec)
    if args.random and args.only in (None, "tcav"):
        print_tcav(model, facets, images, spec, args.random, args.other, args.layer or facets.code.layer)
    if args.only in (None, "mosaic"):
        print_mosaics(model, facets, images, spec, args.pairs)


if __name__ == "__main__":
    main()
