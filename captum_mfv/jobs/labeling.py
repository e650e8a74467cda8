"""Labels of a finished run's or atlas's facets: ``labels.json`` in its folder, and the labels on its page."""

from __future__ import annotations

import numpy as np

from captum_mfv import report
from captum_mfv.errors import ImageError, LabelError, RunError
from captum_mfv.images import Images
from captum_mfv.jobs.atlas.labeling import label_atlas
from captum_mfv.labels import Namer, labels_from_scores, word_scores
from captum_mfv.runs.atlas import AtlasFolder
from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.labels import AtlasLabels, RunLabels
from captum_mfv.runs.writer import RunWriter

__all__ = ["check_labeling", "label"]


def label(
    folder: RunFolder | AtlasFolder,
    namer: Namer,
    *,
    namer_name: str,
    others: Images | None = None,
    images: Images | None = None,
    seed: int = 0,
    progress: bool = False,
) -> RunLabels | AtlasLabels:
    """Label the facets of a run or of an atlas, write ``labels.json``, and rebuild the page.

    A facet's images are contrasted with those of the unit's other facets. In an atlas, a unit, and a unit's only facet,
    are contrasted with images of the layer's other units. The former labels of the folder are replaced.

    Args:
        folder: a finished run or atlas.
        namer: scores images against words.
        namer_name: the namer's name on the page.
        others: for a run with one facet: images with which the facet's images are contrasted.
        images: for an atlas: the dataset that it was made of, if the folder was moved or a function returned it.
        seed: seed of the halves, and of the sample of other units' images.
        progress: show progress bars.

    Raises:
        RunError: if the run or atlas isn't finished, or its files can't be read.
        ImageError: if its images are missing or were replaced.
        LabelError: if an argument is for folders of another kind, or errors of `labels_from_scores`.
    """
    check_labeling(folder, others, images)
    if isinstance(folder, AtlasFolder):
        return label_atlas(folder, namer, namer_name=namer_name, images=images, seed=seed, progress=progress)
    return _label_run(folder, namer, namer_name, others, seed, progress)


def check_labeling(folder: RunFolder | AtlasFolder, others: object, images: object) -> None:
    """Check what can be checked before a network or images are loaded; ``others`` and ``images`` are None if not given.

    Raises:
        RunError: if the run or atlas isn't finished, or its files can't be read.
        LabelError: if an argument is for folders of another kind.
    """
    if not folder.finished:
        raise RunError(f"{folder.path} isn't finished; rerun the command that started it to resume it")
    if isinstance(folder, AtlasFolder):
        if others is not None:
            raise LabelError("others are for a run; an atlas contrasts a unit with the layer's other units")
        return
    if images is not None:
        raise LabelError("images are for an atlas; a run's images are in the folder that its manifest names")
    if others is None:
        return
    rows = folder.read_members()
    if len(rows) > 1:
        raise LabelError(f"others are for a run with one facet; {len(rows)} facets are contrasted with each other")
    if "crop" in rows[0]["members"][0]:
        raise LabelError("a run on crops can't be contrasted with other images: they would have to be cropped too")


def _label_run(
    folder: RunFolder, namer: Namer, namer_name: str, others: Images | None, seed: int, progress: bool
) -> RunLabels:
    facets, members = report.read_parts(folder).facets, folder.member_images()
    if members.refused is not None:
        raise ImageError(members.refused)
    found = word_scores(namer, members, progress=progress)
    scores = np.full((len(facets.labels), found.shape[1]), np.nan, np.float32)
    scores[np.concatenate([facet.members for facet in facets])] = found
    labels = labels_from_scores(
        facets,
        scores,
        namer.words,
        others=None if others is None else word_scores(namer, others, progress=progress),
        renderings=word_scores(namer, folder.read_images(facets)),
        comparable=getattr(namer, "comparable", False),
        seed=seed,
    )
    made = RunLabels(namer=namer_name, n_words=len(namer.words), seed=seed, facets=tuple(labels))
    RunWriter(folder.path, folder.manifest).write_labels(made)
    report.build(folder)
    return made
