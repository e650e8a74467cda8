"""Facets as Captum's concepts: TCAV with concepts that were found, not chosen by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from captum.concept import Classifier, Concept
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.errors import FacetError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, InputSpec, image_at
from captum_mfv.storage.identity import content_fingerprint, fingerprint

__all__ = ["CentroidClassifier", "ConceptScore", "facet_concepts", "random_concepts", "tcav_table"]


def facet_concepts(
    facets: FacetSet, images: Images, *, n_images: int | None = 50, input_spec: InputSpec | None = None
) -> list[Concept]:
    """A concept per facet, its examples the facet's images, nearest to the center first.

    Captum keeps activations and CAVs under a concept's name and id; here the id follows from the facet, the
    images and the normalisation, so that two facet sets may share a folder, and the same one finds its own
    again.

    Args:
        facets: the facets.
        images: the dataset they were found in.
        n_images: how many examples at most, or None for all.
        input_spec: what turns images in [0, 1] into the model's input.
    """
    unit = re.sub(r"[^\w.]+", "_", str(facets.unit))
    return [
        _concept(f"facet{facet.index}_of_{unit}", images, facet.members[:n_images], input_spec, facets.fingerprint)
        for facet in facets
    ]


def random_concepts(
    images: Images, n_concepts: int = 10, n_images: int = 50, *, seed: int = 0, input_spec: InputSpec | None = None
) -> list[Concept]:
    """Random sets of images as concepts: what a concept that means something must differ from.

    Args:
        images: a dataset of images of all kinds.
        n_concepts: how many; with two there is one comparison of random with random, so take several.
        n_images: examples of each, drawn without replacement within a set.
        seed: of the draw.
        input_spec: what turns images in [0, 1] into the model's input.

    Raises:
        FacetError: if the dataset has fewer than n_images images.
    """
    if len(images) < n_images:
        raise FacetError(f"random concepts of {n_images} images can't be drawn from {len(images)}")
    rng = np.random.default_rng(seed)
    draws = [np.sort(rng.choice(len(images), n_images, replace=False)) for _ in range(n_concepts)]
    return [_concept(f"random{n}", images, draw, input_spec, "random") for n, draw in enumerate(draws)]


def _concept(name: str, images: Images, indices: Any, input_spec: InputSpec | None, key: str) -> Concept:
    examples = _Examples(images, [int(index) for index in indices], input_spec or InputSpec())
    found = fingerprint(
        source=key,
        n_images=len(images),
        indices=examples.indices,
        input_spec=examples.input_spec,
        first=content_fingerprint(examples[0]),
    )
    number = int(found[:14], 16)  # Captum uses it as a label: an int64
    loader = DataLoader(examples, batch_size=len(examples), generator=torch.Generator())  # in one batch: whole or not
    return Concept(number, name, loader)


@dataclass(frozen=True, eq=False)
class _Examples(Dataset[Tensor]):
    """Some of a dataset's images as the model's input."""

    images: Images
    indices: list[int]
    input_spec: InputSpec

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return self.input_spec(image_at(self.images, self.indices[index])[None])[0]


class CentroidClassifier(Classifier):  # type: ignore[misc]
    """CAVs in closed form: each concept's mean activation minus the mean of the concepts' means.

    With two concepts, half the difference of their means, one way and the other. No iteration and no
    chance: the same activations give the same vectors, and the pattern rather than the filter (Martin and
    Weller 2019; Pahde et al. 2022, arXiv 2202.03482).
    """

    def __init__(self) -> None:
        self._classes: list[int] = []
        self._weights = torch.zeros(0)

    def train_and_eval(
        self, dataloader: Iterable[Any], test_split_ratio: float = 0.33, **kwargs: Any
    ) -> dict[str, Any]:
        """Find the vectors, and how well the nearest mean tells the concepts.

        Args:
            dataloader: batches of activations, (N, D), and of concepts' ids, (N,).
            test_split_ratio: share of each concept's examples that are left out of the means for ``accs``.
            **kwargs: ignored; Captum passes those of other classifiers.

        Returns:
            ``accs``: share of the examples left out that are nearest to their own concept's mean.
        """
        rows, labels = zip(*((x.detach().cpu(), y.cpu()) for x, y in dataloader), strict=True)
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
        """The concepts' ids in the order of the weights."""
        return self._classes


def _accuracy(groups: list[Tensor], share: float) -> Tensor:
    """Over every n-th example of each group, by means of the rest; NaN where a group has too few."""
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
    """A row of the TCAV table.

    Args:
        concept: the concept's name.
        layer: the layer whose activations it is a direction of.
        score: share of the inputs whose target grows along the concept, in [0, 1]; mean over the random
            concepts that it was told from.
        std: of that share over them.
        random: the same share of random concepts told from random ones; about .5.
        p_value: two-sided, of the score being a random concept's (Mann-Whitney U test), times the
            number of rows of the table (Bonferroni), at most 1.
        accuracy: how well the concept is told from random ones, in [0, 1]; chance is .5.
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
    """Which concepts a target grows along: TCAV of each concept against random ones, with its significance.

    The same scores as Captum's `TCAV`, which keeps activations and vectors on disk, of all pairs at once and in
    memory. Give it a class's own facets and another unit's together: their rows are tested together.

    Args:
        model: the model, or a `attr.FacetModel`; left as it was.
        inputs: (N, C, H, W) images of the class as the model's input.
        target: the output, as Captum has targets.
        concepts: the concepts, such as `facet_concepts`.
        random: at least three `random_concepts`.
        layers: dotted names of layers.
        classifier: what finds the CAVs; by default a `CentroidClassifier`.

    Returns:
        A row for each layer and concept.

    Raises:
        UnitError: if the model has no such layer.
        FacetError: if there are too few random concepts, or two concepts have one id.

    Source: Kim et al. 2018, "Interpretability beyond feature attribution", arXiv 1711.11279.
    """
    names = [layer_name(model, layer) for layer in layers]
    if len(random) < 3:
        raise FacetError(f"significance needs at least 3 random concepts, not {len(random)}")
    if len({concept.id for concept in [*concepts, *random]}) < len(concepts) + len(random):
        raise FacetError("two concepts have the same id; give each its own")
    with guard(model), torch.random.fork_rng(devices=[]):  # Captum's own classifier draws from the global generator
        rows = [
            row
            for name in names
            for row in _layer_rows(
                _Layer.look(model, name, inputs, target, [*concepts, *random]), concepts, random, classifier
            )
        ]
    return [replace(row, p_value=min(1.0, row.p_value * len(rows))) for row in rows]


@dataclass(frozen=True, eq=False)
class _Layer:
    """Of a layer, the target's gradients on the inputs, (N, D), and each concept's activations, (n, D)."""

    name: str
    gradients: Tensor
    activations: dict[int, Tensor]

    @classmethod
    def look(cls, model: nn.Module, name: str, inputs: Tensor, target: Any, concepts: Sequence[Concept]) -> _Layer:
        """Run the model on the inputs and on every concept's examples."""
        sensitivity = LayerGradientXActivation(model, model.get_submodule(name), multiply_by_inputs=False)
        gradients = sensitivity.attribute(inputs.detach().requires_grad_(), target=target).detach().cpu().flatten(1)
        with torch.no_grad(), capture(model, [name]) as run:
            activations = {
                concept.id: torch.cat([run(x.to(inputs))[name].cpu().flatten(1) for x in concept.data_iter])
                for concept in concepts
            }
        return cls(name, gradients, activations)

    def score(self, a: Concept, b: Concept, classifier: Classifier) -> tuple[float, float]:
        """The share of inputs whose target grows along a, told from b, and how well the two are told apart."""
        examples = [(self.activations[c.id], torch.full((len(self.activations[c.id]),), c.id)) for c in (a, b)]
        accuracy = (classifier.train_and_eval(examples) or {}).get("accs", float("nan"))
        direction = classifier.weights()[list(classifier.classes()).index(a.id)]
        return float((self.gradients @ direction.to(self.gradients) > 0).float().mean()), float(accuracy)


def _layer_rows(
    layer: _Layer, concepts: Sequence[Concept], random: Sequence[Concept], classifier: Classifier | None
) -> Iterator[ConceptScore]:
    classifier = classifier or CentroidClassifier()
    chance = [layer.score(a, b, classifier)[0] for i, a in enumerate(random) for b in random[i + 1 :]]
    for concept in concepts:
        shares, accuracies = zip(*(layer.score(concept, other, classifier) for other in random), strict=True)
        yield ConceptScore(
            concept=concept.name,
            layer=layer.name,
            score=float(np.mean(shares)),
            std=float(np.std(shares, ddof=1)),
            random=float(np.mean(chance)),
            p_value=_p_value(shares, chance),
            accuracy=float(np.mean(accuracies)),
        )


def _p_value(shares: Sequence[float], chance: Sequence[float]) -> float:
    """Of the rank test, since shares pile up at 0 and 1; of numbers that are all the same it is 1."""
    if len({round(share, 6) for share in [*shares, *chance]}) == 1:
        return 1.0
    return float(mannwhitneyu(np.round(shares, 6), np.round(chance, 6)).pvalue)
