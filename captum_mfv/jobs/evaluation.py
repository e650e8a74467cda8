"""A finished run before a network that took no part: figures into its metrics, a section onto its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv import report
from captum_mfv.activations.codes import collect
from captum_mfv.errors import ImageError, RunError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.facets.head import nearest
from captum_mfv.images import ImageFolder
from captum_mfv.metrics import Control, Judge, Judged, Verdict, draw_control, verdict
from captum_mfv.metrics.controls import get_control
from captum_mfv.models import autocast_dtype
from captum_mfv.optvis.recipes import Recipe
from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.member_images import MemberImages

__all__ = ["evaluate"]

_AGAIN = "another seed"


def evaluate(
    folder: RunFolder,
    judge: Judge,
    *,
    judge_name: str,
    controls: Sequence[str] = (),
    held_out: ImageFolder | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Verdict:
    """Judge a run's images, write the figures to ``metrics.json`` under ``judge``, and make the page anew.

    Args:
        folder: a finished run.
        judge: the network that took no part.
        judge_name: what to call it on the page.
        controls: names of `metrics.CONTROLS` to draw and judge too, by the run's recipe; each takes as long as
            the run's images did, and is kept in the run's folder. Drawing them needs the model.
        held_out: other images that activate the unit; needs the model.
        model: the run's model, which draws controls and tells the facets of images held out; the one that the
            run's manifest names is never loaded.
        seed: of bootstrap samples and shuffles.
        progress: show progress bars.

    Raises:
        RunError: if the run isn't finished, or controls or images held out lack the model, or images are held
            out of a run on crops.
        FacetError: if there is no control of a name.
        ImageError: if the run's images are gone, or others are where they were.
    """
    if not folder.finished:
        raise RunError(f"{folder.path} isn't finished; the command that began it goes on with it")
    parts, members = report.read_parts(folder), folder.member_images()
    if members.refused is not None:
        raise ImageError(members.refused)
    run = _Run(folder, parts.facets, members, model, progress)
    chosen = {name: get_control(name) for name in controls}  # all names are tried before the first is drawn
    told = None if held_out is None else run.tell(held_out)
    drawn = {name: run.draw(name, control) for name, control in chosen.items()}
    real = Judged(judge(run.members), run.members.labels)
    made = judge(folder.read_images(run.facets))
    judged = {"start": (judge(folder.read_images(run.facets, "_start")), real.labels)}
    judged |= {name: (judge(images), labels) for name, (images, labels) in drawn.items()}
    found = verdict(
        made,
        real,
        controls=judged,
        again=judged[_AGAIN][0] if _AGAIN in judged else None,
        held_out=None if held_out is None or told is None else Judged(judge(held_out), told),
        seed=seed,
    )
    folder.write_metrics({**parts.metrics, "judge": {"name": judge_name, **asdict(found)}})
    report.build(folder)
    return found


@dataclass(frozen=True, eq=False)
class _Run:
    """A finished run, its facets over its dataset, its images, and its model if it is at hand."""

    folder: RunFolder
    facets: FacetSet
    members: MemberImages
    model: nn.Module | None
    progress: bool

    def draw(self, name: str, control: Control) -> tuple[list[Tensor], NDArray[np.int64]]:
        """A control's images, drawn if the folder hasn't got them, and the labels of the members that judge them."""
        settings, facets = self.folder.settings, self.member_facets()
        _, labels = control.facets(facets, settings["seed"])
        if not self.folder.has_control(name, len(facets)):
            renderings = draw_control(
                name,
                self._model(f"control {name!r} must be drawn"),
                facets,
                self.members,
                Recipe.from_dict(settings.get("recipe_data", {})),
                size=settings.get("size"),
                input_spec=self.members.item_spec,
                seed=settings["seed"],
                dtype=autocast_dtype(settings.get("dtype")),
                progress=self.progress,
            )
            if not all(rendering.complete for rendering in renderings):
                raise KeyboardInterrupt
            self.folder.write_control(name, [rendering.image for rendering in renderings])
        return self.folder.read_control(name, len(facets)), labels

    def member_facets(self) -> FacetSet:
        """The run's facets over its members, in their order."""
        order = np.concatenate([facet.members for facet in self.facets])
        return replace(self.facets, **{name: array[order] for name, array in self.facets.arrays().items()})

    def tell(self, images: ImageFolder) -> NDArray[np.int64]:
        """The facet of images held out, in the run's own codes; -1 where one can't be read."""
        if any("crop" in member for member in self.members.members):
            raise RunError("a run on crops of peaks has no images held out: theirs would need crops too")
        model, facets = self._model("facets of images held out must be told"), self.facets
        seen = collect(model, facets.unit, images, code=facets.code, input_spec=self.members.input_spec)
        labels = np.full(len(images), -1, np.int64)
        labels[seen.indices] = nearest(seen.codes[seen.indices], facets.centers)
        return labels

    def _model(self, why: str) -> nn.Module:
        if self.model is None:
            raise RunError(f"{why} by the run's model; name it")
        return self.model
