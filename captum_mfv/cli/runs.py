"""``captum-mfv run`` and ``demo``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from captum_mfv.cli.console import told
from captum_mfv.cli.options import FOLDER, RunCommand, loudness
from captum_mfv.display.progress import waiting
from captum_mfv.display.text import visible

__all__ = ["demo", "run"]


@click.command(cls=RunCommand)
def run(out: str, quiet: bool, verbose: bool, update: bool, **options: Any) -> None:
    """Find the facets of a unit in a folder of images and synthesise one image per facet.

    The folder gets a page, report.html, and all that it shows. A run that was stopped, however it was, goes on with
    the same command; a finished one isn't done again.

    \b
    A class unit, and images of the class:
      captum-mfv run --model squeezenet1_0 --unit classifier.1:945 \\
          --images peppers/ --facets 10 --out out/pepper

    \b
    A hidden unit, and any images:
      captum-mfv run --model squeezenet1_0 --unit features.12:410 \\
          --images imagenet/ --top-k 200 --facets 4 --out out/hidden

    \b
    A model of yours, in a file with a function that returns it:
      captum-mfv run --model net.py:make --weights net.safetensors --unit fc:3 \\
          --images cats/ --facets auto --out out/cats

    \b
    The same facets, drawn by another recipe:
      captum-mfv run --config out/pepper/run.toml --recipe maco --out out/pepper --update

    \b
    A run again, larger:
      captum-mfv run --config out/pepper/run.toml --size 512 --out out/large
    """
    _run(options, out, quiet, verbose, update)


@click.command()
@click.option("--out", default="out/demo", type=FOLDER, metavar="FOLDER", help="The run's folder.")
@loudness
def demo(out: str, quiet: bool, verbose: bool) -> None:
    """The five known facets of "even" in a small network trained on the spot; no download.

    Trains a network to tell even digits from odd ones, finds the facets of its unit "even", which
    should be 0, 2, 4, 6 and 8, and synthesises one image for each.
    """
    from captum_mfv.datasets import write_even_digits
    from captum_mfv.storage.files import write_whole

    digits = f"{out.rstrip('/')}-digits"
    write_whole(Path(labels := f"{digits}.json"), json.dumps(write_even_digits(digits)).encode())
    job = {"unit": "logits:0", "images": digits, "labels": labels, "facets": 5, "code": "relu4:flatten"}
    _run({"model": "captum_mfv.datasets:even_or_odd", **job}, out, quiet, verbose)


def _run(job: Mapping[str, Any], out: str, quiet: bool, verbose: bool, update: bool = False) -> None:
    """Do a job, or go on with it, and say what came of it."""
    progress = not quiet
    with told(quiet, verbose):
        with waiting("starting", progress):
            from captum_mfv import jobs  # here, so that --help is quick
        folder = jobs.run(jobs.RunSettings(**job), out, update=update, progress=progress)
    if not quiet:
        _sum_up(folder)


def _sum_up(folder: Any) -> None:
    """A finished run in a few lines."""
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
        f"facets that bootstrap samples find again hold {unit['coverage']:.0%} of its activation"
    )
    click.echo(f"real images nearest to their own facet's center: {facets.agreement:.0%}")
    if "adjusted_rand_index" in metrics:
        click.echo(f"facets against the known groups: adjusted Rand index {metrics['adjusted_rand_index']:.3f}")
    click.echo(os.fsencode(f"page: {folder.path / 'report.html'}"))
