"""A finished run before a network that took no part: figures into its metrics, a section onto its page."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from torch import nn

from captum_mfv import report
from captum_mfv.collect import collect
from captum_mfv.errors import RunError
from captum_mfv.facets import nearest
from captum_mfv.images import ImageFolder, InputSpec
from captum_mfv.metrics import Judge, Judgement, Verdict, verdict
from captum_mfv.result import RunFolder

__all__ = ["evaluate"]


def evaluate(
    folder: RunFolder,
    judge: Judge,
    *,
    judge_name: str,
    held_out: ImageFolder | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
) -> Verdict:
    """Judge a run's images, write the figures to ``metrics.json`` under ``judge``, and make the page anew.

    Args:
        folder: a finished run.
        judge: the network that took no part.
        judge_name: what to call it on the page.
        held_out: other images that activate the unit; needs the model.
        model: the run's model, which tells the facets of images held out.
        seed: of bootstrap samples and shuffles.

    Raises:
        RunError: if the run isn't finished, or images are held out without the model, or of a run on crops.
        ImageError: if the run's images are gone.
    """
    if not folder.finished:
        raise RunError(f"{folder.path} isn't finished; the command that began it goes on with it")
    if held_out is not None and model is None:
        raise RunError("images held out need the run's model, to tell their facets")
    facets, members = folder.read_facets(), folder.member_images()
    if held_out is not None and any("crop" in member for member in members.members):
        raise RunError("a run on crops of peaks has no images held out: theirs would need crops too")
    found = verdict(
        judge(folder.read_images(facets)),
        judge(folder.read_images(facets, "_start")),
        judge(members),
        members.labels,
        held_out=None if held_out is None or model is None else _judged(folder, judge, model, held_out),
        seed=seed,
    )
    folder.write_metrics({**folder.read_metrics(), "judge": {"name": judge_name, **asdict(found)}})
    report.build(folder)
    return found


def _judged(
    folder: RunFolder, judge: Judge, model: nn.Module, images: ImageFolder
) -> tuple[Judgement, NDArray[np.int64]]:
    """What the judge sees in images held out, and the facet of each in the run's own codes."""
    facets, spec = folder.read_facets(), InputSpec(**folder.settings["input_spec"])
    seen = collect(model, facets.unit, images, code=facets.code, input_spec=spec)
    labels = np.full(len(images), -1, np.int64)
    labels[seen.indices] = nearest(seen.codes[seen.indices], facets.centers)
    return judge(images)[seen.indices], labels[seen.indices]
