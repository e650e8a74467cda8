"""One unit from a folder of images to a run's folder: every stage once, in order, resumed where it was interrupted."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from captum_mfv.jobs.inputs import load_inputs
from captum_mfv.jobs.stages import run_stages, stage_keys, stage_outputs
from captum_mfv.jobs.steps import Work
from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.manifest import check_place
from captum_mfv.runs.settings import RunSettings
from captum_mfv.runs.writer import RunWriter
from captum_mfv.storage.files import hold

__all__ = ["run"]

_log = logging.getLogger(__name__)


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
        folder = RunWriter.open(out, settings, stage_keys(settings), stage_outputs(), update=update)
        if folder.finished:
            _log.info("%s is finished; nothing to do", folder.path)
        else:
            run_stages(Work(folder, inputs, progress))
    return folder
