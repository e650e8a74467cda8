#!/usr/bin/env python
"""Find and render known facets of a vision transformer: python benchmarks/vision_transformer.py [SHEET.png]

Trains a small transformer to classify digits. Its units: "even", the direction of the logits that sums those of 0, 2,
4, 6 and 8, whose facets are these digits, with codes from the class token and from the patches; and the MLP neurons
whose 200 strongest images are of two digits. Prints the agreement of facets and digits, and how many of the rendered
images an independent network classifies as the facet's digit.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.utils import save_image

from captum_mfv import Code, Unit, find_facets, top_images
from captum_mfv.datasets import DIGITS_SPEC, digits, ten_digits
from captum_mfv.images import Images, stack
from captum_mfv.optvis.render import render_facets

_MLP = "encoder.layers.encoder_layer_2.mlp.1"


def trained(images: Tensor, labels: Tensor, epochs: int = 20) -> nn.Module:
    """Return a transformer of three blocks with patches of 8 pixels, trained on all digits."""
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128, "num_classes": 10}
    model = VisionTransformer(image_size=32, patch_size=8, **sizes)
    model.conv_proj = nn.Conv2d(1, 64, 8, 8)
    optimizer, x = torch.optim.Adam(model.parameters(), lr=1e-3), DIGITS_SPEC(images)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(x)), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def row(model: nn.Module, unit: Unit, images: Images, truth: np.ndarray, n_facets: int, code: Code) -> list[Tensor]:
    """Print agreement and share of images that an independent network recognizes; return the rendered images."""
    facets = find_facets(model, unit, images, n_facets=n_facets, code=code, input_spec=DIGITS_SPEC)
    own = [Counter(truth[facet.members].tolist()).most_common(1)[0][0] for facet in facets]
    made = [one.image for one in render_facets(model, facets, images, input_spec=DIGITS_SPEC)]
    judge, spec = ten_digits()
    called = judge(spec(torch.stack(made))).argmax(1).tolist()
    right = sum(one == digit for one, digit in zip(called, own, strict=True))
    agreement = adjusted_rand_score(truth, facets.labels)
    print(f"| {unit} | {code.layer} | {code.reduce} | {own} | {agreement:.2f} | {right} of {len(own)} |", flush=True)
    return made


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheet", nargs="?", help="image of the rendered facets")
    sheet = parser.parse_args().sheet
    images, labels = digits()
    model = trained(images, labels)
    print(f"accuracy {(model(DIGITS_SPEC(images)).argmax(1) == labels).float().mean():.2f}")
    print("| unit | code's layer | reduce | facets | adjusted Rand index | recognized |\n|---|---|---|---|---|---|")
    even = labels % 2 == 0
    direction, made = Unit("heads.head", [1.0, 0.0] * 5), []
    for layer, reduce in (("encoder.ln", "cls"), ("encoder.layers.encoder_layer_2", "patches")):
        made += row(model, direction, images[even], labels[even].numpy(), 5, Code(layer, reduce))
    neurons = [Unit(_MLP, index, "max") for index in range(128)]
    for neuron, top in zip(neurons, top_images(model, neurons, images, 200, input_spec=DIGITS_SPEC), strict=True):
        truth = labels[top.indices].numpy()
        both = [digit for digit, count in Counter(truth.tolist()).most_common(2) if count >= 50]
        rows = np.flatnonzero(np.isin(truth, both))
        if len(both) == 2 and len(rows) >= 185:
            found = stack(top, rows.tolist())
            made += row(model, neuron, found, truth[rows], 2, Code("encoder.ln", "cls"))
    if sheet is not None:
        save_image(made, sheet, nrow=5)


if __name__ == "__main__":
    main()
