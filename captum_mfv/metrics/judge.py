"""A network that took no part, and what it sees in images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.codes import collect
from captum_mfv.activations.layers import trace
from captum_mfv.errors import FacetError
from captum_mfv.images import Images, InputSpec
from captum_mfv.units import Code, Unit

__all__ = ["Judge", "Judgement"]

Codes = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a judge sees in images.

    Args:
        codes: (n, D) codes; NaN where an image can't be read.
        probabilities: (n,) of the class, or None if the judge has none.
        called: (n,) whether the class is its first choice, or None.
    """

    codes: Codes
    probabilities: Codes | None = None
    called: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Judgement:
        parts = (None if part is None else part[rows] for part in (self.probabilities, self.called))
        return Judgement(self.codes[rows], *parts)


@dataclass(frozen=True, eq=False)
class Judge:
    """A network that took no part in making images.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: its logit of the class that the images are of; None: it only gives codes.
        code: which of its numbers describe an image; None: the last layer with positions before the unit,
            pooled, or without a unit the last one of all.
        input_spec: what turns images in [0, 1] into its input.
    """

    model: nn.Module
    unit: Unit | None = None
    code: Code | None = None
    input_spec: InputSpec | None = None

    def __call__(self, images: Images | Sequence[Tensor]) -> Judgement:
        """What it sees in images in [0, 1]."""
        spec = self.input_spec or InputSpec()
        unit = self.unit or self._any_unit(spec)
        seen = collect(
            self.model, unit, images, code=self.code, code_fn=self._classes if self.unit else None, input_spec=spec
        )
        if seen.fn_codes is None or self.unit is None:
            return Judgement(seen.codes)
        index = self.unit.index
        if not isinstance(index, int):
            raise FacetError("the judge's unit must be a class, not a direction")
        return Judgement(seen.codes, seen.fn_codes[:, index], seen.fn_codes.argmax(1) == index)

    def _classes(self, images: Tensor) -> Tensor:
        """Probabilities, (N, classes), of the unit's layer."""
        assert self.unit is not None
        spec, name = self.input_spec or InputSpec(), layer_name(self.model, self.unit.layer)
        with guard(self.model), torch.no_grad(), capture(self.model, [name]) as run:
            outputs = run(spec.feed(self.model)(images))[name]
        return self.unit.read_channels(outputs).softmax(1)

    def _any_unit(self, spec: InputSpec) -> Unit:
        """A unit of the last layer, before which codes are taken."""
        calls = trace(self.model, spec.feed(self.model)(spec.grey()))
        return Unit(next(call.name for call in reversed(calls) if call.runs == 1), 0)
