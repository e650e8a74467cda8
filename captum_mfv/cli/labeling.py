"""The command ``captum-mfv label``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from captum_mfv.cli.options import complete_model
from captum_mfv.storage.untrusted import visible

__all__ = ["label"]


def _complete(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete ``--with`` by `colors` and names of models."""
    own = [CompletionItem("colors")] if "colors".startswith(typed) else []
    return [*own, *complete_model(context, option, typed)]


@click.command()
@click.argument("folder")
@click.option(
    "--with",
    "namer",
    required=True,
    metavar="NAME",
    shell_complete=_complete,
    help="What scores images against words: a classifier, named as for `run --model`, by its classes; a model of "
    "images and texts, open_clip:… or hf:…; or `colors`, by colors and composition, without a network.",
)
@click.option("--weights", metavar="FILE", help="The model's weights file.  [default: the model's own]")
@click.option(
    "--words",
    metavar="FILE",
    help="A word a line: for a model of images and texts, what it looks for; for a classifier, the name of each class, "
    "in order.  [default: common words; the classifier's own names]",
)
@click.option(
    "--others", metavar="FOLDER", help="For a run with one facet: images of other things, to contrast its images with."
)
@click.option(
    "--images",
    metavar="FOLDER",
    help="For an atlas: its images, if they were moved; or the file.py:function that returned them, which is run.",
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps ….  [default: a GPU if there is one]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of the halves of the images.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def label(
    folder: str,
    namer: str,
    weights: str | None,
    words: str | None,
    others: str | None,
    images: str | None,
    device: str | None,
    seed: int,
    quiet: bool,
) -> None:
    """Label the facets of a finished run's or atlas's FOLDER with words that tell them apart.

    A facet's words are chosen on half of its images and tested on the other half, against the images of the unit's
    other facets; a facet in which no word passes the test has no label. Writes labels.json, and rebuilds the page.
    Former labels are replaced. Rerun the same command to resume on an atlas.

    \b
    captum-mfv label out/pepper --with resnet50
    captum-mfv label out/pepper --with colors
    captum-mfv label out/atlas --with open_clip:ViT-B-32/laion2b_s34b_b79k --words words.txt
    """
    from captum_mfv import jobs
    from captum_mfv.images import ImageFolder
    from captum_mfv.jobs.atlas.plan import open_dataset
    from captum_mfv.jobs.inputs import find_device
    from captum_mfv.jobs.labeling import check_labeling
    from captum_mfv.labels import load_namer, read_words
    from captum_mfv.runs.atlas import AtlasFolder
    from captum_mfv.runs.folder import RunFolder
    from captum_mfv.runs.labels import RunLabels
    from captum_mfv.runs.records import is_atlas
    from captum_mfv.storage.files import hold

    found = AtlasFolder.read(folder) if is_atlas(Path(folder)) else RunFolder.read(folder)
    check_labeling(found, others, images)
    vocabulary = None if words is None else read_words(words)
    contrast = None if others is None else ImageFolder(others, found.input_spec)
    dataset = None if images is None else open_dataset(images)
    chosen = load_namer(namer, weights, vocabulary, device=find_device(device), progress=not quiet)
    with hold(folder):
        labels = jobs.label(
            found, chosen, namer_name=namer, others=contrast, images=dataset, seed=seed, progress=not quiet
        )
    if isinstance(labels, RunLabels):
        lines, page = _run_table(labels.facets), "report.html"
    else:
        lines, page = _atlas_lines(labels.units), "index.html"
    click.echo("\n".join(lines))
    click.echo(os.fsencode(f"page: {found.path / page}"))


def _run_table(labels: Any) -> list[str]:
    """Return a line for each facet: label, AUROC, interval, whether the synthesized image agrees, other words."""
    rows = [("facet", "label", "AUROC", "image", "other words")]
    for one in labels:
        score, agrees = one.score, {True: "agrees", False: "doesn't", None: ""}[one.agrees]
        figure = "" if score is None else f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"
        text = one.text or ("not tested" if one.best is None else f"none (best: {one.best})")
        more = ", ".join(f"{word} {value:.2f}" for word, value in one.runners_up)
        rows.append((str(one.index), visible(text), figure, agrees, visible(more)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return [line.rstrip() for line in lines]


def _atlas_lines(units: Any) -> list[str]:
    """Return how many units and facets have a label."""
    facets = [one for its in units.values() for one in its.facets]
    labeled = sum(its.unit.text is not None for its in units.values())
    agrees = [one.agrees for one in facets if one.agrees is not None]
    return [
        f"units with a label: {labeled} of {len(units)}",
        f"facets with a label: {sum(one.text is not None for one in facets)} of {len(facets)}",
        f"synthesized images that agree with their facet's label: {sum(agrees)} of {len(agrees)}",
    ]
