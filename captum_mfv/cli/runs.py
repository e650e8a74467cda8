"""``captum-mfv run`` and ``demo``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from captum_mfv.cli.console import console
from captum_mfv.cli.options import FOLDER, RunCommand, loudness
from captum_mfv.display.progress import waiting
from captum_mfv.display.text import visible

__all__ = ["demo", "run"]


@click.command(cls=RunCommand)
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
@click.option("--out", default="out/demo", type=FOLDER, metavar="FOLDER", help="The run's folder.")
@loudness
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
    click.echo(
        f"{len(facets)} facets of {visible(facets.unit)}, of {', '.join(str(len(facet)) for facet in facets)} images"
    )
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
