"""The stages of a run as one table, and the keys that say which of them must be redone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captum_mfv.jobs import steps
from captum_mfv.runs.files import BASELINE
from captum_mfv.runs.top_images import TOP_IMAGES
from captum_mfv.storage.identity import fingerprint

__all__ = ["STAGES", "Stage", "run_stages", "stage_keys", "stage_outputs"]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        name: name in the manifest.
        function: what does the work; returns entries for the manifest. None: done by `jobs.evaluate`.
        reads: names of the settings that the stage reads; None: all.
        after: names of the stages whose output the stage reads.
        writes: the stage's files, as `runs.outputs` describes them; they are removed before the stage is redone.
    """

    name: str
    function: Callable[[steps.Work], steps.Facts] | None
    reads: Sequence[str] | None
    after: Sequence[str]
    writes: Sequence[str]


_MODEL = ("model", "weights_hash", "input_spec", "device")
_UNIT = ("unit", "reduce", "channels", "images_hash")
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
        writes=("images/facet_*.png", ".unfinished/images.safetensors"),
    ),
    Stage(
        "baseline",
        steps.render_baseline,
        reads=(*_MODEL, *_IMAGE, "steps"),
        after=("facets",),
        writes=(BASELINE, ".unfinished/plain.safetensors"),
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
    Stage(
        "report",
        steps.build_report,
        reads=None,
        after=("facets", "images", "baseline", "attributions", "metrics", "evaluation"),
        writes=("report.html", "run.toml", "recipe.json"),
    ),
)


def stage_keys(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return each stage's key: the fingerprint of the settings that it reads and of the keys of the stages before it.

    Args:
        settings: the run's settings, JSON values by name.
    """
    keys: dict[str, str] = {}
    for stage in STAGES:
        reads = settings if stage.reads is None else {name: settings[name] for name in stage.reads}
        after = {name: keys[name] for name in stage.after}
        keys[stage.name] = fingerprint(stage=stage.name, settings=reads, after=after)
    return keys


def stage_outputs() -> dict[str, Sequence[str]]:
    """Return the files of each stage by the stage's name."""
    return {stage.name: stage.writes for stage in STAGES}


def run_stages(work: steps.Work) -> None:
    """Do the stages that aren't done, in order."""
    for stage in STAGES:
        skipped = stage.name == "top images" and work.inputs.job.top_k is None
        if stage.function is None or skipped or work.folder.done(stage.name):
            continue
        with work.folder.stage(stage.name) as facts:
            facts.update(stage.function(work))
    work.folder.finish()
