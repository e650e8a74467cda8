"""A phase of a recipe under way: the images' parameters, what moves them, and all that it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_mfv.optvis.optimizers import TVAscent
from captum_mfv.optvis.param import ParamF, Transparency
from captum_mfv.optvis.recipes import Phase
from captum_mfv.optvis.transform import CenterCrop, compose, make_transform

__all__ = ["Descent"]


@dataclass(eq=False)
class Descent:
    """A phase under way; made by `begin`.

    Args:
        phase: the phase.
        params: the images' parameters, the images the first axis.
        image_f: from them to the images, (B, C, H, W).
        transform: what the network sees of the images, drawn anew each time.
        optimizer: what moves the parameters.
        transparency: where the images mattered so far.
        step: steps done.
        totals: (B,) the loss of each step.
    """

    phase: Phase
    params: list[Tensor]
    image_f: Callable[[], Tensor]
    transform: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    transparency: Transparency
    step: int = 0
    totals: list[Tensor] = field(default_factory=list)

    @classmethod
    def begin(cls, phase: Phase, param_f: ParamF, size: int, generators: Sequence[torch.Generator]) -> Descent:
        """A phase from where a parameterization starts."""
        transparency = Transparency(param_f)
        params, image_f = transparency()
        transforms = [make_transform(name, arguments, size, generators) for name, arguments in phase.transforms.items()]
        return cls(phase, params, image_f, compose(transforms), _optimizer(phase, params, transforms), transparency)

    def schedule(self) -> None:
        """Set the optimizer to where the schedule stands."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.lr.at(self.step, self.phase.steps)
            if self.phase.tv_weight is not None:
                group["tv_weight"] = self.phase.tv_weight.at(self.step, self.phase.steps)

    def state(self) -> dict[str, Tensor]:
        """All that it goes on from, but for the images' generators, as `restore` takes it; nothing is copied."""
        moments = {
            f"optimizer.{i}.{name}": value
            for i, param in enumerate(self.params)
            for name, value in self.optimizer.state[param].items()
        }
        params = {f"param.{i}": param.detach() for i, param in enumerate(self.params)}
        totals = {"totals": torch.stack(self.totals), "transparency": self.transparency.total}
        return {"step": torch.tensor(self.step), **params, **moments, **totals}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the state of the same phase.

        Raises:
            KeyError, RuntimeError, ValueError: if it is another's.
        """
        self.step = int(state["step"])
        self.totals = list(state["totals"])
        if len(self.totals) != self.step:
            raise ValueError(f"it has the loss of {len(self.totals)} steps, not of {self.step}")
        self.transparency.total = state["transparency"].to(self.params[0].device)
        for i, param in enumerate(self.params):
            param.data.copy_(state[f"param.{i}"])
            head = f"optimizer.{i}."
            moments = {name.removeprefix(head): value for name, value in state.items() if name.startswith(head)}
            if any(value.ndim and value.shape != param.shape for value in moments.values()):
                raise ValueError("its moments have another shape than its images")
            self.optimizer.state[param] = {
                name: value.to(param.device if value.ndim else None) for name, value in moments.items()
            }


def _optimizer(
    phase: Phase, params: list[Tensor], transforms: Sequence[Callable[[Tensor], Tensor]]
) -> torch.optim.Optimizer:
    if phase.optimizer == "adam":
        return torch.optim.Adam(params, lr=phase.lr.start)
    return TVAscent(params, crop=next((one for one in transforms if isinstance(one, CenterCrop)), None))
