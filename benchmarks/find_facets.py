#!/usr/bin/env python
"""Compare with known facets: python benchmarks/find_facets.py MODEL WEIGHTS LAYER:INDEX IMAGES LABELS.json [--seeds 5]

LABELS.json maps each image's path in the folder to its known group. Prints, for each code and clustering method, the
adjusted Rand index and the normalized mutual information over seeds, and the seconds per seed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.cluster import HDBSCAN, AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from captum_mfv import FacetFinder, ImageFolder, Unit, models
from captum_mfv.activations.codes import Collection, collect
from captum_mfv.attr import pure_code
from captum_mfv.facets import cluster


def finders(k: int, seed: int) -> dict[str, FacetFinder]:
    """Return finders by name; all but the last two use the known number of facets, k."""
    return {
        "PCA, t-SNE, k-means (the paper's)": FacetFinder(k, random_state=seed),
        "PCA, k-means": FacetFinder(k, embedding=None, random_state=seed),
        "PCA, t-SNE, Ward": FacetFinder(k, clusterer=AgglomerativeClustering(), random_state=seed),
        "PCA, Ward": FacetFinder(k, embedding=None, clusterer=AgglomerativeClustering(), random_state=seed),
        "PCA, t-SNE, HDBSCAN": FacetFinder(k, clusterer=HDBSCAN(min_cluster_size=5, copy=True), random_state=seed),
        "auto": FacetFinder("auto", random_state=seed),
    }


def table(name: str, collection: Collection, known: list[int], seeds: int) -> None:
    """Print one row for each finder."""
    k = len(set(known))
    for finder in finders(k, 0):
        began = time.perf_counter()
        found = [cluster(collection, finders(k, seed)[finder]).labels for seed in range(seeds)]
        spent = (time.perf_counter() - began) / seeds
        rand = [adjusted_rand_score(known, labels) for labels in found]
        mutual = [normalized_mutual_info_score(known, labels) for labels in found]
        numbers = sorted({int(labels.max()) + 1 for labels in found})
        print(
            f"{name:12} {finder:34} {np.mean(rand):5.3f} ± {np.std(rand):.3f}  {np.mean(mutual):5.3f}"
            f"  {'/'.join(map(str, numbers)):>8} facets  {spent:5.1f} s",
            flush=True,
        )


def main() -> None:
    """Collect codes once and print a row for each code and finder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "weights", "unit", "images", "labels"):
        parser.add_argument(name)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    model, spec = models.load(args.model, args.weights)
    images = ImageFolder(args.images, spec)
    groups = json.loads(Path(args.labels).read_text())
    known = [groups[images.name(i)] for i in range(len(images))]
    unit = Unit.parse(args.unit)
    pure = collect(model, unit, images, code_fn=pure_code(model, unit, input_spec=spec), input_spec=spec)
    print(f"{'code':12} {'clusters':34} ARI            NMI")
    table("activations", replace(pure, fn_codes=None), known, args.seeds)
    table("PURE", pure, known, args.seeds)


if __name__ == "__main__":
    main()
