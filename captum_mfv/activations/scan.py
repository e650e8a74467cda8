"""One pass of a dataset through a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.activations.capture import capture, guard
from captum_mfv.display.progress import Progress
from captum_mfv.errors import ImageError
from captum_mfv.images import Images, InputSpec, batches
from captum_mfv.storage.identity import dataset_fingerprint, weights_fingerprint

__all__ = ["Outputs", "Scan"]


Outputs: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Scan:
    """One pass of a dataset through a model.

    Args:
        model: the model; left as it was.
        images: the dataset.
        spec: preprocessing of the model's input.
        layers: names of the layers that are read.
        read: a function from the layers' outputs and the images of a batch to tensors of as many rows, by name.
        batch_size: images per batch.
        key: name and version of a dataset or code function that has no fingerprint.
        progress: show a progress bar.

    Raises:
        ImageError: if the dataset is empty.
    """

    model: nn.Module
    images: Images
    spec: InputSpec
    layers: Sequence[str]
    read: Callable[[Outputs, Tensor], Outputs]
    batch_size: int
    key: str | None
    progress: bool

    def __post_init__(self) -> None:
        if not len(self.images):
            raise ImageError(getattr(self.images, "why_empty", "the dataset holds no images"))

    def run(self, take: Callable[[list[int], Outputs], None], start: int = 0) -> None:
        """Pass the images from one on through the model; call ``take`` with indices and rows of each batch.

        Images that can't be read are left out, with a warning.
        """
        if start == len(self.images):
            return
        feed = self.spec.feed(self.model)
        forward_batches = AdaptiveBatches(cpu_batch_size(self.model, self.spec, self.batch_size))
        n_images = len(self.images)
        with (
            guard(self.model),
            Progress(total=n_images, initial=start, desc="activations", unit="image", disable=not self.progress) as bar,
        ):
            for indices, batch in batches(self.images, self.batch_size, start):
                parts = forward_batches(len(batch), partial(self._rows, feed, batch))
                take(indices, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
                bar.update(indices[-1] + 1 - bar.n)

    def try_out(self) -> Outputs:
        """Return the row of a gray image."""
        with guard(self.model):
            return self._rows(self.spec.feed(self.model), self.spec.gray(), slice(None))

    def _rows(self, feed: Callable[[Tensor], Tensor], batch: Tensor, part: slice) -> Outputs:
        with torch.no_grad(), capture(self.model, self.layers) as run:
            outputs = run(feed(batch[part]))
        return self.read(outputs, batch[part])  # without hooks: the function may run the model itself

    def identity(self, **parts: Any) -> dict[str, Any]:
        """Return all that stored rows depend on, but for rounding: batch size and device don't count."""
        return {
            **parts,
            "input_spec": self.spec,
            "images": dataset_fingerprint(self.images, self.key),
            "weights": weights_fingerprint(self.model),
        }
