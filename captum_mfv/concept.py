"""Facets as Captum's concepts: TCAV with concepts that clustering found, instead of hand-picked ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from captum.concept import Classifier, Concept
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.layers import trace
from captum_mfv.attr.model import LayerOutput, cast_inputs, to_float
from captum_mfv.errors import FacetError, RunError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, InputSpec, image_at
from captum_mfv.storage.identity import content_fingerprint, dataset_fingerprint, fingerprint
from captum_mfv.storage.schema import check_integer
from captum_mfv.units import Unit

__all__ = ["CentroidClassifier", "ConceptScore", "concept_units", "facet_concepts", "random_concepts", "tcav_table"]


def facet_concepts(
    facets: FacetSet,
    images: Images,
    *,
    n_images: int | None = 50,
    input_spec: InputSpec | None = None,
    device: torch.device | str | None = None,
) -> list[Concept]:
    """Return a concept per facet, whose examples are the facet's images, nearest to the center first.

    Captum caches activations and CAVs by a concept's id, which is a fingerprint of the facet set, the examples and
    the preprocessing, so that several facet sets can share a cache folder. Of a dataset with a fingerprint, such as
    an `ImageFolder`, no image is read before the examples are used.

    Args:
        facets: the facets.
        images: the dataset in which the facets were found.
        n_images: largest number of examples, or None for all.
        input_spec: preprocessing from images in [0, 1] to the model's input.
        device: the model's device, for Captum's own TCAV; `tcav_table` and `concept_units` move the examples there.

    Raises:
        FacetError: if the dataset isn't of the facets' size, or ``n_images`` is below 1.
        ImageError: if an example isn't in [0, 1].
    """
    if len(images) != len(facets.labels):
        raise FacetError(f"images must be the facets' dataset of {len(facets.labels)} images, not {len(images)}")
    if n_images is not None and n_images < 1:
        raise FacetError(f"n_images must be at least 1, or None for all, not {n_images}")
    unit = re.sub(r"[^\w.]+", "_", str(facets.unit))
    return [
        _concept(
            f"facet{item.index}_of_{unit}", images, item.members[:n_images], input_spec, facets.fingerprint, device
        )
        for item in facets
    ]


def random_concepts(
    images: Images,
    n_concepts: int = 10,
    n_images: int = 50,
    *,
    seed: int = 0,
    input_spec: InputSpec | None = None,
    device: torch.device | str | None = None,
) -> list[Concept]:
    """Return random sets of images as concepts, with which `tcav_table` compares each concept.

    Args:
        images: a dataset of images of all kinds.
        n_concepts: number of concepts, at least 3 for `tcav_table`.
        n_images: number of examples of each, drawn without replacement.
        seed: seed of the draw, an integer of 0 or more.
        input_spec: as for `facet_concepts`.
        device: as for `facet_concepts`.

    Raises:
        TypeError: if a number isn't an integer.
        FacetError: if a number is too low, or the dataset has fewer than n_images images.
        ImageError: if an example isn't in [0, 1].
    """
    for name, value, lowest in (("n_concepts", n_concepts, 1), ("n_images", n_images, 1), ("seed", seed, 0)):
        check_integer(value, name, lowest, FacetError)
    if len(images) < n_images:
        raise FacetError(f"random concepts of {n_images} images can't be drawn from {len(images)}")
    rng = np.random.default_rng(seed)
    draws = [np.sort(rng.choice(len(images), n_images, replace=False)) for _ in range(n_concepts)]
    return [_concept(f"random{n}", images, draw, input_spec, "random", device) for n, draw in enumerate(draws)]


def _concept(
    name: str,
    images: Images,
    rows: NDArray[Any],
    input_spec: InputSpec | None,
    source: str,
    device: torch.device | str | None,
) -> Concept:
    indices, spec = rows.tolist(), input_spec or InputSpec()
    examples = _examples_fingerprint(images, indices)
    found = fingerprint(source=source, indices=indices, input_spec=spec, content=examples)
    read = partial(_inputs, images, spec, device)
    loader: DataLoader[int] = DataLoader(indices, len(indices), collate_fn=read, generator=torch.Generator())
    return Concept(int(found[:14], 16), name, loader)  # Captum uses the id as a label: an int64


def _examples_fingerprint(images: Images, indices: list[int]) -> str:
    """Return the dataset's fingerprint, which reads no image; for data in memory a fingerprint of the examples."""
    if not isinstance(images, (Tensor, list, tuple, TensorDataset)):
        with suppress(RunError):  # the dataset has no fingerprint
            return dataset_fingerprint(images)
    return content_fingerprint(*(image_at(images, index) for index in indices))


def _inputs(images: Images, spec: InputSpec, device: torch.device | str | None, indices: list[int]) -> Tensor:
    return torch.cat([spec(image_at(images, index)[None]) for index in indices]).to(device)


def concept_units(
    model: nn.Module, layer: str, concepts: Sequence[Concept], random: Sequence[Concept], *, reduce: str = "mean"
) -> list[Unit]:
    """Return a unit per concept, to find facets of or to render: its direction in a layer's channels.

    The direction is the mean activation on the concept's examples minus that on the examples of all random concepts,
    of length 1: a pattern CAV (Pahde et al. 2022, arXiv 2202.03482), for activations that are reduced over positions.

    Args:
        model: the model; unchanged afterwards.
        layer: name of the layer.
        concepts: the concepts, such as `facet_concepts` or examples of your own.
        random: `random_concepts` to compare with.
        reduce: reduction over positions, as in `Unit`.

    Raises:
        UnitError: if the model has no such layer, or its output can't be reduced so.
        FacetError: if there is no random concept, or a concept has the same mean activation as the random ones.
    """
    if not random:
        raise FacetError("random must hold at least one concept to compare with")
    unit, units = Unit(layer_name(model, layer), 0, reduce), []
    with guard(model), torch.no_grad(), capture(model, [unit.layer_name]) as run:

        def mean(concept: Concept) -> Tensor:
            outputs = (run(*cast_inputs(model, x))[unit.layer_name] for x in concept.data_iter)
            return to_float(torch.cat([unit.read_channels(output) for output in outputs])).double().mean(0).cpu()

        usual = torch.stack([mean(concept) for concept in random]).mean(0)
        for concept in concepts:
            direction = mean(concept) - usual
            if not direction.any():
                raise FacetError(f"concept {concept.name} has the mean activation of the random concepts at {layer}")
            units.append(Unit(unit.layer_name, tuple((direction / direction.norm()).tolist()), reduce))
    return units


class CentroidClassifier(Classifier):  # type: ignore[misc]
    """CAVs in closed form: each concept's mean activation minus the mean of all concepts' means.

    The vectors are deterministic, and are patterns (directions of the signal) rather than filters (Martin and Weller
    2019; Pahde et al. 2022, arXiv 2202.03482).
    """

    def __init__(self) -> None:
        self._classes: list[int] = []
        self._weights = torch.zeros(0)

    def train_and_eval(
        self, dataloader: Iterable[Any], test_split_ratio: float = 0.33, **kwargs: Any
    ) -> dict[str, Any]:
        """Compute the vectors from batches of activations, (N, D), and of concepts' ids, (N,).

        Returns:
            ``accs``: the accuracy of a nearest-mean classifier on held-out examples, whose share is test_split_ratio.
        """
        rows, labels = zip(*((to_float(x.detach().cpu()), y.cpu()) for x, y in dataloader), strict=True)
        x, y = torch.cat(rows), torch.cat(labels)
        self._classes = sorted(set(y.tolist()))
        groups = [x[y == label] for label in self._classes]
        means = torch.stack([group.mean(0, dtype=torch.float64) for group in groups])
        self._weights = (means - means.mean(0)).float()
        return {"accs": _accuracy(groups, test_split_ratio)}

    def weights(self) -> Tensor:
        """The vectors, (n_concepts, D)."""
        return self._weights

    def classes(self) -> list[int]:
        """The concepts' ids, in the order of the weights."""
        return self._classes


def _accuracy(groups: list[Tensor], share: float) -> Tensor:
    """Return the accuracy on every n-th example with the means of the others; NaN if a group has too few."""
    step = max(2, round(1 / share)) if share > 0 else 0
    held = [group[::step] if step else group[:0] for group in groups]
    rest = [group[[i for i in range(len(group)) if i % step]] if step else group for group in groups]
    if not all(len(group) for group in [*held, *rest]):
        return torch.tensor(float("nan"))
    means = torch.stack([group.mean(0) for group in rest])
    right = [(torch.cdist(group, means).argmin(1) == k).double() for k, group in enumerate(held)]
    return torch.cat(right).mean()


@dataclass(frozen=True)
class ConceptScore:
    """A row of the TCAV table: a concept as a direction in a layer's activations.

    Args:
        concept: the concept's name.
        layer: the layer's name.
        score: fraction of the inputs whose target increases along the concept, in [0, 1]; mean over the random
            concepts that the concept was compared with.
        std: standard deviation of that fraction over the random concepts.
        random: the mean fraction for random concepts compared with other random concepts, about .5.
        p_value: two-sided p-value of the scores against those of random concepts (Mann-Whitney U test), times
            the number of rows of the table (Bonferroni), at most 1.
        accuracy: accuracy of the classifier of concept against random concept, in [0, 1]; chance is .5.
    """

    concept: str
    layer: str
    score: float
    std: float
    random: float
    p_value: float
    accuracy: float


def tcav_table(
    model: nn.Module,
    inputs: Tensor,
    target: Any,
    concepts: Sequence[Concept],
    random: Sequence[Concept],
    *,
    layers: Sequence[str],
    classifier: Classifier | None = None,
) -> list[ConceptScore]:
    """Compute TCAV scores of concepts against random concepts, with their significance.

    The scores are those of Captum's `TCAV`, computed in memory instead of on disk. Pass all concepts in one call,
    such as those of the class's own facets and of another unit's: p-values are corrected for all rows together.

    Args:
        model: the model, or an `attr.FacetModel`; unchanged afterwards.
        inputs: (N, C, H, W) images of the class, preprocessed for the model.
        target: the explained output, as in Captum.
        concepts: the concepts, such as `facet_concepts`.
        random: at least 3 `random_concepts`.
        layers: dotted names of layers.
        classifier: computes the CAVs; by default a `CentroidClassifier`.

    Returns:
        A row for each layer and concept.

    Raises:
        UnitError: if the model has no such layer.
        FacetError: if there are fewer than 3 random concepts, or two concepts have the same id.

    Source: Kim et al. 2018, "Interpretability beyond feature attribution", arXiv 1711.11279.
    """
    names = [layer_name(model, layer) for layer in layers]
    if len(random) < 3:
        raise FacetError(f"random must hold at least 3 concepts, not {len(random)}")
    if len({concept.id for concept in [*concepts, *random]}) < len(concepts) + len(random):
        raise FacetError("two concepts have the same id; each concept needs a different id")
    classifier, used = classifier or CentroidClassifier(), [*concepts, *random]
    rows: list[ConceptScore] = []
    with guard(model), torch.random.fork_rng(devices=[]):  # Captum's own classifier draws from the global generator
        for name in names:
            rows += _layer_rows(name, *_measure(model, name, inputs, target, used), concepts, random, classifier)
    return [replace(row, p_value=min(1.0, row.p_value * len(rows))) for row in rows]


def _measure(
    model: nn.Module, layer: str, inputs: Tensor, target: Any, concepts: Sequence[Concept]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the target's gradients at a layer, (N, D), and the activations of each concept, (n, D), in float32."""
    (inputs,) = cast_inputs(model, inputs)
    sensitivity = LayerGradientXActivation(model, LayerOutput(model, layer), multiply_by_inputs=False)
    gradients = sensitivity.attribute(inputs.detach().requires_grad_(), target=target)
    axis = next(call.batch for call in trace(model, inputs[:1], until=[layer]) if call.name == layer)
    gradients = gradients.detach().movedim(axis or 0, 0)  # Captum keeps the axes of a token-first layer
    with torch.no_grad(), capture(model, [layer]) as run:
        activations = {
            concept.id: torch.cat([_flat(run(x.to(inputs))[layer]) for x in concept.data_iter]) for concept in concepts
        }
    return _flat(gradients), activations


def _flat(output: Tensor) -> Tensor:
    return to_float(output).cpu().flatten(1)


def _layer_rows(
    layer: str,
    gradients: Tensor,
    activations: Mapping[int, Tensor],
    concepts: Sequence[Concept],
    random: Sequence[Concept],
    classifier: Classifier,
) -> list[ConceptScore]:
    def score(a: Concept, b: Concept) -> tuple[float, float]:
        """Return the share of inputs whose target increases along a compared with b, and the CAV's accuracy."""
        examples = [(activations[c.id], torch.full((len(activations[c.id]),), c.id)) for c in (a, b)]
        accuracy = (classifier.train_and_eval(examples) or {}).get("accs", float("nan"))
        direction = classifier.weights()[list(classifier.classes()).index(a.id)]
        return float((gradients @ direction.to(gradients) > 0).float().mean()), float(accuracy)

    chance = [score(a, b)[0] for a, b in combinations(random, 2)]
    rows = []
    for concept in concepts:
        shares, accuracies = zip(*(score(concept, other) for other in random), strict=True)
        mean, std = float(np.mean(shares)), float(np.std(shares, ddof=1))
        p_value, accuracy = _p_value(shares, chance), float(np.mean(accuracies))
        rows.append(ConceptScore(concept.name, layer, mean, std, float(np.mean(chance)), p_value, accuracy))
    return rows


def _p_value(shares: Sequence[float], chance: Sequence[float]) -> float:
    """Return the p-value of a rank test, since scores accumulate at 0 and 1; 1 if all scores are equal."""
    if len({round(share, 6) for share in [*shares, *chance]}) == 1:
        return 1.0
    return float(mannwhitneyu(np.round(shares, 6), np.round(chance, 6)).pvalue)
