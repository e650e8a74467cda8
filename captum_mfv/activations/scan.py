"""One pass of a dataset through a model, a row of numbers for each image."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.batching import AdaptiveBatches, cpu_batch_size
from captum_mfv.activations.capture import capture, guard
from captum_mfv.activations.store import Store
from captum_mfv.display.progress import Progress
from captum_mfv.errors import ImageError
from captum_mfv.images import Images, InputSpec, batches
from captum_mfv.storage.identity import dataset_fingerprint, weights_fingerprint

__all__ = ["Scan"]


Outputs: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Scan:
    """One pass of a dataset through a model.

    Args:
        model: the model.
        images: the dataset.
        spec: what turns images into the model's input.
        batch_size: images per batch.
        store: folder for the rows; None keeps them in memory.
        key: name and version of a dataset or code function that has no fingerprint.
        progress: show a progress bar.
    """

    model: nn.Module
    images: Images
    spec: InputSpec
    batch_size: int
    store: str | os.PathLike[str] | None
    key: str | None
    progress: bool

    def rows(
        self, layers: Sequence[str], read: Callable[[Outputs, Tensor], Outputs], parts: Mapping[str, Any]
    ) -> Store:
        """What is read of layers' outputs for every image, a row each; and, as ``read``, 1 where it could be."""
        if not len(self.images):
            raise ImageError(getattr(self.images, "why_empty", "the dataset holds no images"))
        rows = Store(len(self.images), self._identity(parts), self.store)
        feed, portions = (
            self.spec.feed(self.model),
            AdaptiveBatches(cpu_batch_size(self.model, self.spec, self.batch_size)),
        )
        with (
            guard(self.model),
            Progress(
                total=len(self.images), initial=rows.n_done, desc="activations", unit="image", disable=not self.progress
            ) as bar,
        ):

            def look(batch: Tensor, part: slice) -> Outputs:
                with torch.no_grad(), capture(self.model, layers) as run:
                    outputs = run(feed(batch[part]))
                return read(outputs, batch[part])  # uncaptured: a view may run the model itself

            if rows.n_done:
                rows.check(_rows([look(self.spec.grey(), slice(None))]))
            for indices, batch in batches(self.images, self.batch_size, self._begin(rows.n_done)):
                rows.write(indices, _rows(portions(len(batch), partial(look, batch))))
                bar.update(rows.n_done - bar.n)
        if "read" not in rows:
            raise ImageError("no image can be read")
        rows.finish()
        return rows

    def _begin(self, n_done: int) -> int:
        """The first image of the resumed pass: the start of a batch, as floating-point sums depend on the batch."""
        return n_done if n_done == len(self.images) else n_done - n_done % self.batch_size

    def _identity(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that stored rows depend on, but for rounding: batch size and device don't count."""
        if self.store is None:  # hashing weights and datasets takes a while
            return {}
        return {
            **parts,
            "input_spec": self.spec,
            "images": dataset_fingerprint(self.images, self.key),
            "weights": weights_fingerprint(self.model),
        }


def _rows(parts: Sequence[Outputs]) -> dict[str, NDArray[Any]]:
    """What is noted of each image of a batch that went through in parts."""
    values = {name: _array(torch.cat([part[name] for part in parts])) for name in parts[0]}
    return {"read": np.ones(len(next(iter(values.values()))), np.int8), **values}


def _array(values: Tensor) -> NDArray[Any]:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
