"""The commands ``captum-mfv run``, ``demo`` and ``evaluate``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from captum_mfv.cli.console import console
from captum_mfv.cli.options import DeclaredCommand, complete_model
from captum_mfv.display.progress import waiting
from captum_mfv.storage.untrusted import visible

__all__ = ["demo", "evaluate", "run"]

_COLUMNS = ("retention", "centered", "predicts", "top1", "probability", "distance")


@click.command(cls=DeclaredCommand)
def run(out: str, quiet: bool, verbose: bool, update: bool, **options: Any) -> None:
    """Find the facets of a unit in a folder of images and synthesize one image per facet.

    Writes a page, report.html, and everything that the page shows to the folder --out. Rerun the same command to
    resume an interrupted run; a finished run is left as it is.

    \b
    A class unit and images of the class:
      captum-mfv run --model squeezenet1_0 --unit classifier.1:945 \\
          --images peppers/ --facets 10 --out out/pepper

    \b
    A hidden unit and any images:
      captum-mfv run --model squeezenet1_0 --unit features.12:410 \\
          --images imagenet/ --top-k 200 --facets 4 --out out/hidden

    \b
    Your own model, returned by a function in a file:
      captum-mfv run --model net.py:make --weights net.safetensors --unit fc:3 \\
          --images cats/ --facets auto --out out/cats

    \b
    The same facets, rendered with another recipe:
      captum-mfv run --config out/pepper/run.toml --recipe maco --out out/pepper --update

    \b
    The same run with larger images:
      captum-mfv run --config out/pepper/run.toml --size 512 --out out/large
    """
    _run(options, out, quiet, verbose, update)


@click.command()
@click.option("--out", default="out/demo", type=click.Path(file_okay=False), metavar="FOLDER", help="The run's folder.")
@click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print also what took how long, and all warnings.")
def demo(out: str, quiet: bool, verbose: bool) -> None:
    """Find the five known facets of "even" in a small network; downloads nothing.

    Trains a network to classify digits as even or odd, finds the facets of its unit "even", which
    should be 0, 2, 4, 6 and 8, and synthesizes one image of each.
    """
    from captum_mfv.datasets import write_even_digits
    from captum_mfv.storage.files import write_whole

    digits = f"{out.rstrip('/')}-digits"
    write_whole(Path(labels := f"{digits}.json"), json.dumps(write_even_digits(digits)).encode())
    job = {"unit": "logits:0", "images": digits, "labels": labels, "facets": 5, "code": "relu4:flatten"}
    _run({"model": "captum_mfv.datasets:even_or_odd", **job}, out, quiet, verbose)


def _run(job: Mapping[str, Any], out: str, quiet: bool, verbose: bool, update: bool = False) -> None:
    """Run or resume a run and print a summary."""
    progress = not quiet
    with console(quiet, verbose):
        with waiting("starting", progress):
            from captum_mfv import jobs  # here, so that --help is quick
        folder = jobs.run(jobs.RunSettings(**job), out, update=update, progress=progress)
    if not quiet:
        _print_summary(folder)


def _print_summary(folder: Any) -> None:
    """Print a finished run's main figures."""
    facets, metrics = folder.read_facets(), folder.read_metrics()
    sizes = ", ".join(str(len(facet)) for facet in facets)
    click.echo(f"{len(facets)} facets of {visible(facets.unit)}, of {sizes} images")
    click.echo(
        f"images nearest to their own facet, in the network's own codes: {metrics['retention']:.0%} "
        f"(chance {metrics['chance']:.0%})"
    )
    unit = metrics["multifacetedness"]
    click.echo(
        f"multifacetedness {unit['score']:.2f} (0: one facet; p = {unit['p_value']:.2g}); "
        f"share of the activation in facets that bootstrap samples reproduce: {unit['coverage']:.0%}"
    )
    click.echo(f"real images nearest to their own facet's center: {facets.agreement:.0%}")
    if "adjusted_rand_index" in metrics:
        click.echo(f"facets against the known groups: adjusted Rand index {metrics['adjusted_rand_index']:.3f}")
    click.echo(os.fsencode(f"page: {folder.path / 'report.html'}"))


@click.command()
@click.argument("folder")
@click.option(
    "--judge",
    required=True,
    metavar="MODEL",
    shell_complete=complete_model,
    help="The independent network, named as for `run --model`.",
)
@click.option("--judge-weights", help="The independent network's weights file.  [default: the model's own]")
@click.option("--judge-unit", metavar="LAYER:INDEX", help="The class's logit there, for top-1 and probability.")
@click.option(
    "--judge-code", metavar="LAYER[:REDUCE]", help="The layer that describes images.  [default: last with maps]"
)
@click.option(
    "--judge-input",
    nargs=2,
    type=float,
    metavar="MEAN STD",
    help="Mean and std of all channels.  [default: the model's]",
)
@click.option("--held-out", metavar="FOLDER", help="Images of the class that the run didn't use; needs --model.")
@click.option(
    "--control",
    "controls",
    multiple=True,
    metavar="NAME",
    help="A control to render and evaluate too, or `all`; needs --model, and takes as long as the run's images did.",
)
@click.option(
    "--model",
    shell_complete=complete_model,
    help="The run's model (a file.py is run), for controls and held-out images.",
)
@click.option("--weights", help="The weights file of --model.")
@click.option("--sae", metavar="FILE|FOLDER", help="The sparse autoencoder of a run on a latent; with --model.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps ….  [default: a GPU if there is one]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of bootstrap samples.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def evaluate(
    folder: str,
    judge: str,
    judge_weights: str | None,
    judge_unit: str | None,
    judge_code: str | None,
    judge_input: tuple[float, float] | None,
    held_out: str | None,
    controls: tuple[str, ...],
    model: str | None,
    weights: str | None,
    sae: str | None,
    device: str | None,
    seed: int,
    quiet: bool,
) -> None:
    """Evaluate the images of a finished run's FOLDER by an independent network.

    Writes retention, predictions, naturalness and their controls, with 95 % intervals, to
    metrics.json, and rebuilds the page. `captum-mfv list controls` lists the controls.

    \b
    captum-mfv evaluate out/pepper --judge resnet50 --judge-unit fc:945
    captum-mfv evaluate out/pepper --judge resnet50 --judge-unit fc:945 \\
        --control "shuffled clusters" --control "half of the images" --model squeezenet1_0
    """
    from captum_mfv import jobs, models
    from captum_mfv.images import ImageFolder
    from captum_mfv.jobs.evaluation import check_evaluation
    from captum_mfv.jobs.inputs import find_device
    from captum_mfv.metrics import CONTROLS, Judge
    from captum_mfv.runs.folder import RunFolder
    from captum_mfv.storage.files import hold
    from captum_mfv.units import Code, Unit

    run = RunFolder.read(folder)
    controls = tuple(CONTROLS) if controls == ("all",) else controls
    check_evaluation(run, controls)
    place = find_device(device)
    unit, code = None if judge_unit is None else Unit.parse(judge_unit), Code.parse(judge_code)
    images = None if held_out is None else ImageFolder(held_out, run.input_spec)
    encoder = None if sae is None else models.load_sae(sae).to(place)
    network, spec = models.load(judge, judge_weights)
    if judge_input is not None:
        mean, std = ((number,) * spec.channels for number in judge_input)
        spec = replace(spec, mean=mean, std=std)
    with hold(folder):
        found = jobs.evaluate(
            run,
            Judge(network.to(place), unit, code, spec),
            judge_name=judge,
            controls=controls,
            held_out=images,
            model=None if model is None else models.load(model, weights)[0].to(place),
            encoder=encoder,
            seed=seed,
            progress=not quiet,
        )
    click.echo(_table(found))


def _table(found: Any) -> str:
    """Return an evaluation as text: the images' scores, then a table of controls and of the real images."""
    figures = {**vars(found.scores), "held-out images": found.held_out, "same facet, another seed": found.over_seeds}
    lines = [
        f"{name:26}{one.value:.2f} ({one.low:.2f} to {one.high:.2f}, n = {one.n})"
        for name, one in figures.items()
        if one is not None
    ]
    columns = [name for name in _COLUMNS if getattr(found.scores, name) is not None]
    real = {"predicts": found.real_predicts, "top1": found.real_top1, "probability": found.real_probability}
    rows = {name: vars(scores) for name, scores in {"these images": found.scores, **found.controls}.items()}
    lines += ["", " " * 21 + "".join(f"{name:>{len(name) + 2}}" for name in columns)]
    for name, row in {**rows, "all real images": real}.items():
        cells = ("" if (one := row.get(column)) is None else f"{one.value:.2f}" for column in columns)
        widths = (len(column) + 2 for column in columns)
        lines.append(f"{name:21}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join([*lines, f"{'chance':21}" + f"{found.chance:>{len('retention') + 2}.2f}"])
