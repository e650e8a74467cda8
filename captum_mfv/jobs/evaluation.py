"""Evaluation of a finished run by an independent network: figures in its metrics, and a section on its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_mfv import report
from captum_mfv.activations.codes import collect
from captum_mfv.errors import ImageError, RunError
from captum_mfv.facets.facet_set import FacetSet, nearest
from captum_mfv.images import ImageFolder
from captum_mfv.metrics import Evaluation, Judge, LabeledOutput, draw_control, evaluate_images
from captum_mfv.metrics.controls import get_control
from captum_mfv.models import autocast_dtype
from captum_mfv.optvis.recipes import Recipe
from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.images import MemberImages
from captum_mfv.runs.writer import RunWriter
from captum_mfv.storage.identity import fingerprint, weights_fingerprint

__all__ = ["check_evaluation", "evaluate"]

_AGAIN = "another seed"


def evaluate(
    folder: RunFolder,
    judge: Judge,
    *,
    judge_name: str,
    controls: Sequence[str] = (),
    held_out: ImageFolder | None = None,
    model: nn.Module | None = None,
    encoder: nn.Module | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a run's images, write the figures to ``metrics.json`` under ``judge``, and rebuild the page.

    Args:
        folder: a finished run.
        judge: the independent network.
        judge_name: the network's name on the page.
        controls: names of `metrics.CONTROLS` to render with the run's recipe and evaluate too; each takes as long as
            the run's images did, and is kept in the run's folder. Rendering needs the model.
        held_out: other images that activate the unit; needs the model.
        model: the run's model; the model that the run's manifest names is never loaded.
        encoder: the encoder of the run's unit if that is a latent; needed with the model.
        seed: seed of bootstrap samples and shuffles.
        progress: show progress bars.

    Raises:
        RunError: if the run isn't finished, the model is missing or has other weights, or images are held out of a
            run on crops.
        FacetError: if a control doesn't exist, or needs halves and a facet has one image; or if the encoder isn't the
            run's.
        ImageError: if the run's images are missing or were replaced.
    """
    check_evaluation(folder, controls)
    parts, members = report.read_parts(folder), folder.member_images()
    if members.refused is not None:
        raise ImageError(members.refused)
    if model is not None and weights_fingerprint(model) != folder.settings.get("weights_hash"):
        raise RunError(
            f"the model isn't that of {folder.path}: its weights or layers differ; give the model and weights that "
            f"the run was made with"
        )
    facets = parts.facets if encoder is None else folder.read_facets(encoder)
    run = _Run(RunWriter(folder.path, folder.manifest), facets, members, model, progress)
    facets, control_seed = run.member_facets(), folder.settings["seed"]
    compared = {name: get_control(name).facets(facets, control_seed)[1] for name in controls}  # raises before rendering
    assigned = None if held_out is None else run.assign_facets(held_out)
    rendered = {name: run.control_images(name, facets) for name in controls}
    real = LabeledOutput(judge(run.members), run.members.labels)
    made = judge(folder.read_images(run.facets))
    judged = {"start": (judge(folder.read_images(run.facets, "_start")), real.labels)}
    judged |= {name: (judge(images), compared[name]) for name, images in rendered.items()}
    found = evaluate_images(
        made,
        real,
        controls=judged,
        again=judged[_AGAIN][0] if _AGAIN in judged else None,
        held_out=None if held_out is None or assigned is None else LabeledOutput(judge(held_out), assigned),
        seed=seed,
    )
    run.folder.write_metrics("judge", {"judge": {"name": judge_name, **asdict(found)}})
    report.build(folder)
    return found


def check_evaluation(folder: RunFolder, controls: Sequence[str]) -> None:
    """Check what can be checked before any network is loaded.

    Raises:
        RunError: if the run isn't finished.
        FacetError: if there is no control of a name.
    """
    if not folder.finished:
        raise RunError(f"{folder.path} isn't finished; rerun the command that started it to resume it")
    for name in controls:
        get_control(name)


@dataclass(frozen=True, eq=False)
class _Run:
    """A finished run: its folder, facets and member images, and its model if one was given."""

    folder: RunWriter
    facets: FacetSet
    members: MemberImages
    model: nn.Module | None
    progress: bool

    def control_images(self, name: str, facets: FacetSet) -> list[Tensor]:
        """Return a control's images, one for each facet; render them unless the folder holds them."""
        settings, key = self.folder.settings, self._control_key(name)
        if not self.folder.has_control(name, key):
            renderings = draw_control(
                name,
                self._model(f"control {name!r} must be rendered"),
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
            self.folder.write_control(name, key, [rendering.image for rendering in renderings])
        return self.folder.read_control(name, len(facets))

    def member_facets(self) -> FacetSet:
        """Return the run's facets over its members, in their order."""
        order = np.concatenate([facet.members for facet in self.facets])
        return replace(self.facets, **{name: array[order] for name, array in self.facets.arrays().items()})

    def assign_facets(self, images: ImageFolder) -> NDArray[np.int64]:
        """Return the facet whose center is nearest to each held-out image; -1 for images that can't be read."""
        if any("crop" in member for member in self.members.members):
            raise RunError("a run on crops can't have held-out images: they would have to be cropped too")
        model, facets = self._model("facets of held-out images must be assigned"), self.facets
        found = collect(model, facets.unit, images, code=facets.code, input_spec=self.members.input_spec)
        labels = np.full(len(images), -1, np.int64)
        labels[found.indices] = nearest(found.codes[found.indices], facets.centers)
        return labels

    def _control_key(self, name: str) -> str:
        """Return the fingerprint of everything that a control's images depend on."""
        names = ("weights_hash", "images_hash", "input_spec", "recipe_data", "size", "dtype", "seed")
        settings = {one: self.folder.settings.get(one) for one in names}
        return fingerprint(control=name, facets=self.facets.fingerprint, settings=settings)

    def _model(self, why: str) -> nn.Module:
        if self.model is None:
            raise RunError(f"{why} by the run's model; name it")
        return self.model
