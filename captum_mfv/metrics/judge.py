"""Independent network that evaluates images, and its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.codes import CodeFn, Collection, collect
from captum_mfv.activations.layers import trace
from captum_mfv.errors import FacetError
from captum_mfv.images import Images, InputSpec
from captum_mfv.units import Code, Unit

__all__ = ["Judge", "JudgeOutput"]

Codes = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class JudgeOutput:
    """Output of a judge for a set of images.

    Args:
        codes: (n, D) codes; NaN for unreadable images.
        probabilities: (n,) probability of the judge's class, in [0, 1]; None if the judge has no unit.
        top1: (n,) whether that class is the most likely one; None if the judge has no unit.
    """

    codes: Codes
    probabilities: Codes | None = None
    top1: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> JudgeOutput:
        parts = (None if part is None else part[rows] for part in (self.probabilities, self.top1))
        return JudgeOutput(self.codes[rows], *parts)


@dataclass(frozen=True, eq=False)
class Judge:
    """An independent network: one that was not used to find facets or to render images.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: the logit of the class of the images, or its text, such as ``"fc:945"``; None: only codes are returned.
        code: the code that describes an image, or its text, such as ``"layer4:mean"``; None: the last layer with
            positions before the unit, averaged over positions, or without a unit the last such layer of the model.
        input_spec: preprocessing of images in [0, 1].

    Raises:
        FacetError: if the unit is a direction; it must be a class.
    """

    model: nn.Module
    unit: Unit | str | None = None
    code: Code | str | None = None
    input_spec: InputSpec | None = None

    def __post_init__(self) -> None:
        if isinstance(self._unit, Unit) and not isinstance(self._unit.index, int):
            raise FacetError("the unit of a judge must be a class, not a direction")

    @property
    def _unit(self) -> Unit | None:
        return None if self.unit is None else Unit.of(self.unit)

    def __call__(self, images: Images | Sequence[Tensor]) -> JudgeOutput:
        """Return codes, and with a unit class probabilities, of images in [0, 1]."""
        spec, unit = self.input_spec or InputSpec(), self._unit
        if unit is None:
            return JudgeOutput(self._collect(self._last_unit(spec), images, None).codes)
        found = self._collect(unit, images, partial(self._probabilities, unit))
        assert found.fn_codes is not None and isinstance(unit.index, int)
        return JudgeOutput(found.codes, found.fn_codes[:, unit.index], found.fn_codes.argmax(1) == unit.index)

    def _collect(self, unit: Unit, images: Images | Sequence[Tensor], code_fn: CodeFn | None) -> Collection:
        return collect(self.model, unit, images, code=self.code, code_fn=code_fn, input_spec=self.input_spec)

    def _probabilities(self, unit: Unit, images: Tensor) -> Tensor:
        """Return probabilities of all classes, (N, n_classes), in float32."""
        spec, name = self.input_spec or InputSpec(), layer_name(self.model, unit.layer)
        with guard(self.model), torch.no_grad(), capture(self.model, [name]) as run:
            outputs = run(spec.feed(self.model)(images))[name]
        return unit.read_channels(outputs).float().softmax(1)

    def _last_unit(self, spec: InputSpec) -> Unit:
        """Return a unit of the last layer that runs once; codes are taken before it."""
        calls = trace(self.model, spec.feed(self.model)(spec.gray()))
        return Unit(next(call.name for call in reversed(calls) if call.runs == 1), 0)
