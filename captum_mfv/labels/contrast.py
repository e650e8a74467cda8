"""Labels of facets: words that tell a facet's images from those of the other facets, tested on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captum_mfv.errors import LabelError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import Images, stack
from captum_mfv.labels.namers import Namer, word_scores
from captum_mfv.labels.words import check_words
from captum_mfv.metrics.intervals import Estimate, aurocs, estimate_auroc
from captum_mfv.storage.schema import check_seed

__all__ = ["Label", "label_facets", "labels_from_scores"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_N_CANDIDATES = 5  # words of a facet that are tested on held-out images
_N_TOP, _PRESENT = 10, 0.25  # a word is present if it is one of so many highest words on such a share of images
_N_EVIDENCE = 4


@dataclass(frozen=True)
class Label:
    """The label of a facet, with the evidence for it.

    Args:
        index: index of the facet.
        text: the label; None if the interval of every tested word reaches .5, or the facet could not be tested.
        best: the tested word with the largest AUROC on held-out images, the label if there is one; None if no word was
            tested.
        score: AUROC of ``best`` on held-out images: the share of pairs, one image of the facet and one of the others,
            in which the facet's has more of the word; .5 is chance. Its interval is corrected for the number of words
            tested, and n is the number of the facet's held-out images.
        runners_up: the other tested words and their AUROC, the largest first.
        evidence: dataset indices of the facet's held-out images with the largest scores of ``best``.
        n_words: size of the vocabulary from which the tested words were chosen.
        agrees: whether the facet's synthesized image has more of the label than the midpoint between the median of the
            facet's images and that of the others; None without a label or a synthesized image.
    """

    index: int
    text: str | None
    best: str | None
    score: Estimate | None
    runners_up: tuple[tuple[str, float], ...]
    evidence: tuple[int, ...]
    n_words: int
    agrees: bool | None

    @property
    def title(self) -> str:
        """The facet's number and the label, as a title of a figure; ``$`` is escaped for matplotlib."""
        return f"{self.index} {self.text or ''}".strip().replace("$", r"\$")


def label_facets(
    facets: FacetSet,
    images: Images,
    namer: Namer,
    *,
    others: Images | None = None,
    renderings: Sequence[Tensor] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Label]:
    """Return a label for each facet: a word that tells its images from those of the unit's other facets.

    Each facet's images are divided at random into two halves. On one half, the five words with the largest AUROC are
    chosen; on the other, they are tested. The label is the word with the largest AUROC of those whose interval lies
    above .5; without such a word, the facet has no label. Of a namer whose words can be compared, only words are chosen
    that are among the ten highest on at least a quarter of the facet's images.

    Args:
        facets: the facets.
        images: the dataset in which the facets were found.
        namer: scores images against words.
        others: for one facet, such as `FacetSet.as_one_facet`: images of other units, with which the facet's images are
            compared. Without them, a single facet has no label.
        renderings: synthesized images, (C, H, W) in [0, 1], one for each facet.
        alpha: probability of a label for a facet whose images do not differ from the others' in any word, at most.
        seed: seed of the division into halves.
        batch_size: images per batch.
        progress: show a progress bar.

    Raises:
        LabelError: if the dataset isn't of the facets' size, or errors of `word_scores` and `labels_from_scores`.
        TypeError: if the namer is not a function with words.
        ImageError: if no image can be read, or one is not in [0, 1].
    """
    if len(images) != len(facets.labels):
        raise LabelError(f"images must be the facets' dataset of {len(facets.labels)} images, not {len(images)}")
    if renderings is not None and len(renderings) != len(facets):
        raise LabelError(f"renderings must be one image for each of {len(facets)} facets, not {len(renderings)}")
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    members = np.flatnonzero(facets.labels >= 0)
    own = word_scores(namer, images, members, **options)
    scores = np.full((len(images), own.shape[1]), np.nan, np.float32)
    scores[members] = own
    return labels_from_scores(
        facets,
        scores,
        namer.words,
        others=None if others is None else word_scores(namer, others, **options),
        renderings=None if renderings is None else word_scores(namer, stack(renderings, range(len(facets))), **options),
        comparable=getattr(namer, "comparable", False),
        alpha=alpha,
        seed=seed,
    )


def labels_from_scores(
    facets: FacetSet,
    scores: NDArray[Any],
    words: Sequence[str],
    *,
    others: NDArray[Any] | None = None,
    renderings: NDArray[Any] | None = None,
    comparable: bool = False,
    alpha: float = 0.05,
    seed: int = 0,
) -> list[Label]:
    """Return the labels of `label_facets` from a namer's scores, such as those of `word_scores`.

    Args:
        facets: the facets.
        scores: (n_images, n_words) scores of the dataset; rows of NaN are left out.
        words: the words.
        others: (n, n_words) scores of images of other units, for one facet.
        renderings: (n_facets, n_words) scores of synthesized images; NaN for facets without one.
        comparable: whether scores of different words can be compared, the namer's ``comparable``.
        alpha, seed: as for `label_facets`.

    Raises:
        LabelError: if scores have another shape, some of a row are NaN, alpha isn't in (0, 1), or there are others for
            several facets.
        TypeError, ValueError: if the seed is not an integer from 0 to 2**32 - 1.
    """
    words = check_words(words)
    if not 0 < alpha < 1:
        raise LabelError(f"alpha must be above 0 and below 1, not {alpha}")
    if others is not None and len(facets) > 1:
        raise LabelError(f"others are for one facet; {len(facets)} facets are compared with each other")
    rows = _checked(scores, len(facets.labels), words, "scores")
    drawn = None if renderings is None else _checked(renderings, len(facets), words, "renderings")
    groups, rng = facets.labels.copy(), np.random.default_rng(check_seed(seed))
    if others is not None:
        rows = np.concatenate([rows, _checked(others, len(others), words, "others")])
        groups = np.append(groups, np.ones(len(others), np.int64))  # a second group, beside facet 0
    kept = np.flatnonzero((groups >= 0) & ~np.isnan(rows).any(1))
    held_out, n_groups = _held_out(groups[kept], rng), len(facets) + (others is not None)
    split = _Split(rows[kept], groups[kept], kept, held_out, n_groups, comparable)
    return [split.label(k, words, None if drawn is None else drawn[k], alpha) for k in range(len(facets))]


@dataclass(frozen=True, eq=False)
class _Split:
    """Scores of images, (n, n_words), their groups and dataset indices, and which of them are held out.

    ``comparable``: whether scores of different words can be compared.
    """

    scores: Floats
    groups: Rows
    indices: Rows
    held_out: NDArray[np.bool_]
    n_groups: int
    comparable: bool

    def label(self, k: int, words: Sequence[str], drawn: Floats | None, alpha: float) -> Label:
        """Return the label of group k; ``drawn`` are the scores of its synthesized image."""
        own = self.groups == k
        candidates = self._candidates(k, own) if self._is_testable(own) else []
        tested = [self._test(own, column, 1 - alpha / len(candidates)) for column in candidates]
        if not tested:
            return Label(k, None, None, None, (), (), len(words), None)
        order = sorted(range(len(tested)), key=lambda i: -tested[i].value)
        column, score = candidates[order[0]], tested[order[0]]
        text = words[column] if score.low > 0.5 else None
        rows = np.flatnonzero(own & self.held_out)
        middle = (np.median(self.scores[own, column]) + np.median(self.scores[~own, column])) / 2
        strongest = rows[np.argsort(-self.scores[rows, column], kind="stable")[:_N_EVIDENCE]]
        return Label(
            index=k,
            text=text,
            best=words[column],
            score=score,
            runners_up=tuple((words[candidates[i]], tested[i].value) for i in order[1:]),
            evidence=tuple(int(index) for index in self.indices[strongest]),
            n_words=len(words),
            agrees=None if text is None or drawn is None or np.isnan(drawn[column]) else bool(drawn[column] > middle),
        )

    def _is_testable(self, own: NDArray[np.bool_]) -> bool:
        """Return whether each half has images of the group and of others."""
        return all((part & half).any() for part in (own, ~own) for half in (self.held_out, ~self.held_out))

    def _candidates(self, k: int, own: NDArray[np.bool_]) -> list[int]:
        """Return the words with the largest AUROC on the first half; of equal ones, those of the larger difference."""
        scores, own = self.scores[~self.held_out], own[~self.held_out]
        found = aurocs(scores, self.groups[~self.held_out], self.n_groups)[k]
        difference = scores[own].mean(0) - scores[~own].mean(0)
        spread = scores.std(0)
        difference = np.divide(difference, spread, out=np.zeros_like(spread), where=spread > 0)
        if self.comparable:
            places = (-scores[own]).argsort(1, kind="stable").argsort(1)
            found = np.where((places < _N_TOP).mean(0) >= _PRESENT, found, 0)
        best = np.lexsort((-difference, -found))[:_N_CANDIDATES]
        return [int(column) for column in best if found[column] > 0.5]

    def _test(self, own: NDArray[np.bool_], column: int, level: float) -> Estimate:
        values = self.scores[:, column]
        return estimate_auroc(values[own & self.held_out], values[~own & self.held_out], level=level)


def _held_out(groups: Rows, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which rows are held out: a random half of each group, the larger one of an odd number."""
    held_out = np.ones(len(groups), bool)
    for k in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == k))
        held_out[rows[: len(rows) // 2]] = False
    return held_out


def _checked(scores: NDArray[Any], n_rows: int, words: Sequence[str], what: str) -> Floats:
    """Return scores in float64, if they are of n_rows images and the words."""
    found = np.asarray(scores)
    if found.shape != (n_rows, len(words)) or found.dtype.kind not in "fiu":
        raise LabelError(
            f"{what} must be numbers, a row for each of {n_rows} images and a column for each of {len(words)} words, "
            f"not {found.dtype} of shape {found.shape}"
        )
    values, missing = found.astype(np.float64), np.isnan(found)
    if (missing.any(1) & ~missing.all(1)).any():
        word = words[int((missing & ~missing.all(1)[:, None]).any(0).argmax())]
        raise LabelError(f"{what}: the score of {word!r} is NaN; only whole rows may be, of images that can't be read")
    return values
