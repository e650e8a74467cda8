"""One unit from a folder of images to a run's folder: the table of stages, the keys that say which must be redone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_mfv.jobs import steps
from captum_mfv.jobs.inputs import load_inputs
from captum_mfv.runs.folder import BASELINE, RunFolder, array_path
from captum_mfv.runs.images import TOP_IMAGES
from captum_mfv.runs.labels import LABELS
from captum_mfv.runs.records import check_place
from captum_mfv.runs.settings import RunSettings
from captum_mfv.runs.writer import RunWriter
from captum_mfv.storage.files import hold
from captum_mfv.storage.identity import fingerprint

__all__ = ["STAGES", "Stage", "run", "stage_keys"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    function: Callable[[steps.Work], None] | None  # None: `jobs.evaluate` or `jobs.label` does the work
    reads: Sequence[str] | None  # settings; None: all
    after: Sequence[str]  # stages whose output the stage reads
    writes: Sequence[str]  # as `runs.folder` describes outputs; removed before the stage is redone


_MODEL = ("model", "weights_hash", "input_spec", "device")
_UNIT = ("unit", "reduce", "channels", "n_prefix", "direction_hash", "sae_hash", "images_hash")
_IMAGE = ("size", "dtype", "seed")

STAGES = (
    Stage(
        "top images",
        steps.search_top_images,
        reads=(*_MODEL, *_UNIT, "top_k"),
        after=(),
        writes=(TOP_IMAGES, ".unfinished/top"),
    ),
    Stage(
        "facets",
        steps.search_facets,
        reads=(*_MODEL, *_UNIT, "code", "facets", "seed"),
        after=("top images",),
        writes=("facets.json", "tensors.safetensors", ".unfinished/codes"),
    ),
    Stage(
        "images",
        steps.render_images,
        reads=(*_MODEL, *_IMAGE, "recipe_data"),
        after=("facets",),
        writes=("images/facet_*.png", "images/facet_*.npy", ".unfinished/images.safetensors"),
    ),
    Stage(
        "baseline",
        steps.render_baseline,
        reads=(*_MODEL, *_IMAGE, "n_steps"),
        after=("facets",),
        writes=(BASELINE, array_path(BASELINE), ".unfinished/plain.safetensors"),
    ),
    Stage(
        "attributions",
        steps.attribute,
        reads=(*_MODEL, "attribution"),
        after=("facets", "images"),
        writes=("attributions",),
    ),
    Stage(
        "metrics",
        steps.measure,
        reads=(*_MODEL, "labels_hash", "seed"),
        after=("facets", "images", "baseline"),
        writes=("metrics.json#run",),
    ),
    Stage(
        "evaluation",
        None,
        reads=(),
        after=("facets", "images"),
        writes=("metrics.json#judge", "controls"),
    ),
    Stage("labels", None, reads=(), after=("facets", "images"), writes=(LABELS,)),
    Stage(
        "report",
        steps.build_report,
        reads=None,
        after=("facets", "images", "baseline", "attributions", "metrics", "evaluation", "labels"),
        writes=("report.html", "run.toml", "recipe.json"),
    ),
)


def stage_keys(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return each stage's key: the fingerprint of the settings that it reads and of the keys of earlier stages."""
    keys: dict[str, str] = {}
    for stage in STAGES:
        reads = settings if stage.reads is None else {name: settings[name] for name in stage.reads}
        after = {name: keys[name] for name in stage.after}
        keys[stage.name] = fingerprint(stage=stage.name, settings=reads, after=after)
    return keys


def run(job: RunSettings, out: str | os.PathLike[str], *, update: bool = False, progress: bool = False) -> RunFolder:
    """Run or resume a run with these settings, and write its result to a folder.

    All input is checked before anything is written. Stages that the folder already has are skipped, and an
    interrupted stage resumes from its last saved state, with the same result; a finished run is returned as it is.
    Progress is logged to the logger ``captum_mfv``.

    Args:
        job: the settings.
        out: the run's folder; one process at a time works on it.
        update: accept a folder that holds a run with other settings or input, and redo the stages that depend on
            what changed.
        progress: show progress bars.

    Raises:
        MFVError: if the input can't be used, naming what and why.
    """
    check_place(Path(out))
    inputs = load_inputs(job, progress)
    settings = inputs.settings(os.fspath(out))
    with hold(out):
        outputs = {stage.name: stage.writes for stage in STAGES}
        folder = RunWriter.open(out, settings, stage_keys(settings), outputs, update=update)
        if folder.finished:
            _log.info("%s is finished; nothing to do", folder.path)
        else:
            _run_stages(steps.Work(folder, inputs, progress))
    return folder


def _run_stages(work: steps.Work) -> None:
    """Do the stages that aren't done, in order."""
    for stage in STAGES:
        skipped = stage.name == "top images" and work.inputs.job.top_k is None
        if stage.function is None or skipped or work.folder.done(stage.name):
            continue
        with work.folder.stage(stage.name):
            stage.function(work)
    work.folder.finish()
