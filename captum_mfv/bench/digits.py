"""Networks and images of the suite ``digits``, which are computed without a download."""

from __future__ import annotations

from torch import Tensor, nn

from captum_mfv.datasets import digit_classifier, digits
from captum_mfv.images import InputSpec

__all__ = ["first", "images", "second"]

_N_CLASSES, _EPOCHS = 5, 6  # class 2 has the digits 2 and 7


def first() -> tuple[nn.Module, InputSpec]:
    """Train the first network, in two seconds."""
    return digit_classifier(_N_CLASSES, seed=0, epochs=_EPOCHS)


def second() -> tuple[nn.Module, InputSpec]:
    """Train the second network, from other weights."""
    return digit_classifier(_N_CLASSES, seed=1, epochs=_EPOCHS)


def images() -> Tensor:
    """Return all digits."""
    return digits()[0]
