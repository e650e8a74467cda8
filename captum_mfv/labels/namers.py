"""Namers: functions that score images against words, from a classifier or from a model of images and texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import Subset

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.activations.capture import guard
from captum_mfv.activations.containers import find_tensor
from captum_mfv.display.progress import Progress
from captum_mfv.errors import ImageError, LabelError
from captum_mfv.images import Images, InputSpec, batches
from captum_mfv.labels.words import check_words
from captum_mfv.models.image_text import ImageTextModel
from captum_mfv.storage.identity import fingerprint

__all__ = ["ClassifierNamer", "ImageTextNamer", "Namer", "word_scores"]

_IMAGENET = 1000
_AT_ONCE = 256


class Namer(Protocol):
    """Function from images in [0, 1], (N, C, H, W), to scores, (N, n_words); larger: more of that word.

    Images are compared, word by word. If scores of different words can be compared too, as probabilities of classes
    can, an attribute ``comparable`` that is True lets `label_facets` choose only words that are among the highest.
    """

    @property
    def words(self) -> Sequence[str]:
        """The words, one for each column of the scores."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the scores of a batch of images."""
        ...


class ClassifierNamer:
    """Scores images by a classifier: the words are its classes, the scores their log probabilities.

    Args:
        model: a classifier, which returns logits, (N, n_classes), or a container whose first tensor they are; it is
            left unchanged.
        words: the name of each class, in order. By default the names that a transformers model declares, or for 1000
            classes those of ImageNet, as torchvision lists them.
        input_spec: preprocessing of images in [0, 1].

    Raises:
        LabelError: if there isn't one word for each class, the model doesn't return logits, or errors of `check_words`.

    Example:
        >>> import captum_mfv as mfv
        >>> model, spec = mfv.datasets.ten_digits()
        >>> namer = ClassifierNamer(model, "zero one two three four five six seven eight nine".split(), spec)
        >>> namer.words[namer(mfv.datasets.digits()[0][:1]).argmax()]
        'zero'
    """

    comparable = True

    def __init__(
        self, model: nn.Module, words: Sequence[str] | None = None, input_spec: InputSpec | None = None
    ) -> None:
        self.model = model
        self.input_spec = input_spec or InputSpec()
        n_classes = self._logits(self.input_spec.gray()).shape[1]
        self.words = _class_names(model, n_classes) if words is None else check_words(words)
        if len(self.words) != n_classes:
            raise LabelError(f"words must name each of the {n_classes} classes of the model, not {len(self.words)}")
        self._at_once = cpu_batch_size(model, self.input_spec, _AT_ONCE)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights, the words and the preprocessing."""
        return fingerprint(model=self.model, words=self.words, input_spec=self.input_spec)

    def __call__(self, images: Tensor) -> Tensor:
        """Return log probabilities, (N, n_classes), in float32."""
        return torch.cat([self._logits(part).float().log_softmax(1) for part in torch.split(images, self._at_once)])

    def _logits(self, images: Tensor) -> Tensor:
        with guard(self.model), torch.no_grad():
            _, logits = find_tensor("of the namer's model", self.model(self.input_spec.feed(self.model)(images)))
        if logits.ndim != 2 or len(logits) != len(images):
            raise LabelError(f"a classifier must return logits, (N, n_classes), not {tuple(logits.shape)}")
        return logits


class ImageTextNamer:
    """Scores images by a model of images and texts, such as CLIP: cosine similarities of images and words.

    Args:
        model: the model, as `models.load_image_text` returns it.
        words: the words, such as `common_words()`.
        template: the text of a word, which replaces ``{}``.

    Raises:
        LabelError: if the template has no ``{}``, or errors of `check_words`.
    """

    comparable = True

    def __init__(self, model: ImageTextModel, words: Sequence[str], template: str = "a photo of {}") -> None:
        if not isinstance(model, ImageTextModel):
            raise TypeError(f"model must be an ImageTextModel, as load_image_text returns, not {type(model).__name__}")
        if "{}" not in template:
            raise LabelError(f"template must contain {{}}, which a word replaces, not {template!r}")
        self.model, self.template = model, template
        self.words = check_words(words)
        texts = [template.replace("{}", word) for word in self.words]
        with guard(model.model), torch.no_grad():
            parts = [model.encode_texts(texts[i : i + _AT_ONCE]) for i in range(0, len(texts), _AT_ONCE)]
        self._texts = normalize(torch.cat(parts).float(), dim=1)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights, the words, the template and the preprocessing."""
        parts = {"words": self.words, "template": self.template, "input_spec": self.model.input_spec}
        return fingerprint(model=self.model.model, **parts)

    def __call__(self, images: Tensor) -> Tensor:
        """Return cosine similarities, (N, n_words), in float32."""
        with guard(self.model.model), torch.no_grad():
            found = self.model.encode_images(self.model.input_spec.feed(self.model.model)(images))
        return normalize(found.float(), dim=1) @ self._texts.to(found.device).T


def word_scores(
    namer: Namer,
    images: Images,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Return a namer's scores of images, (n, n_words); NaN for images that can't be read, with a warning.

    Args:
        namer: the namer.
        images: a dataset of images in [0, 1].
        indices: indices of the images that are scored; by default all.
        batch_size: images per batch; fewer if memory runs out.
        progress: show a progress bar.

    Raises:
        TypeError: if the namer is not a function with words.
        LabelError: if the namer returns another shape or NaN, or errors of `check_words`.
        ImageError: if no image can be read, or one is not in [0, 1].
    """
    words = check_words(_words(namer), "the namer's words")
    chosen = range(len(images)) if indices is None else [int(index) for index in indices]
    if not len(chosen):
        raise ImageError("there is no image to score")
    rows = np.full((len(chosen), len(words)), np.nan, np.float32)
    in_batches = AdaptiveBatches(batch_size)
    subset: Images = images if indices is None else Subset(images, chosen)  # type: ignore[arg-type]
    with Progress(total=len(chosen), desc="words", unit="image", disable=not progress) as bar:
        for places, batch in batches(subset, batch_size):
            rows[places] = np.concatenate(in_batches(len(batch), partial(_scores, namer, words, batch)))
            bar.update(places[-1] + 1 - bar.n)
    return rows


def _words(namer: Namer) -> Sequence[str]:
    if not callable(namer) or not hasattr(namer, "words"):
        raise TypeError(
            f"namer must be a function of images with a list of words, such as a ClassifierNamer, not {namer!r}"
        )
    return namer.words


def _scores(namer: Namer, words: Sequence[str], batch: Tensor, part: slice) -> NDArray[np.float32]:
    n_images, found = len(batch[part]), namer(batch[part])
    if not isinstance(found, Tensor) or found.shape != (n_images, len(words)):
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise LabelError(f"a namer must return scores of shape {(n_images, len(words))} here, not {kind}")
    scores: NDArray[np.float32] = found.detach().float().cpu().numpy()
    if np.isnan(scores).any():
        raise LabelError(f"the namer's score of {words[int(np.isnan(scores).any(0).argmax())]!r} is NaN")
    return scores


def _class_names(model: nn.Module, n_classes: int) -> tuple[str, ...]:
    """Return the names of a classifier's classes: those that a transformers model declares, or those of ImageNet."""
    declared = getattr(getattr(model, "config", None), "id2label", None) or {}
    named = [str(declared[index]) for index in range(n_classes)] if set(declared) == set(range(n_classes)) else []
    if named and named != [f"LABEL_{index}" for index in range(n_classes)]:
        times = Counter(named)  # ImageNet has two classes "crane"
        return check_words(f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(named))
    if n_classes != _IMAGENET:
        raise LabelError(
            f"words are needed for a model of {n_classes} classes; only ImageNet's 1000 have default names"
        )
    from torchvision.models import ResNet50_Weights  # here, since it takes a second to import

    return check_words(ResNet50_Weights.DEFAULT.meta["categories"])
