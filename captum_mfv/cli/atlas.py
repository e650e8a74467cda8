"""The commands ``captum-mfv atlas`` and ``captum-mfv status``."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from captum_mfv.cli.console import console
from captum_mfv.cli.options import DeclaredCommand
from captum_mfv.display.progress import waiting

__all__ = ["SOME_FAILED", "atlas", "status"]

SOME_FAILED = 3
"""Exit status of an atlas, or of a shard, with units that failed, and of a benchmark with cells that failed."""


@click.command(cls=DeclaredCommand)
def atlas(out: str, quiet: bool, verbose: bool, dry_run: bool, **options: Any) -> None:
    """Find the facets of many units and synthesize one image per facet.

    Scans the folder of images once for all units, and writes a page, tables, images and facets to the folder --out.
    Rerun the same command to resume an interrupted atlas; units that are done are left as they are.

    \b
    Half of a layer, on two processes:
      captum-mfv atlas --model squeezenet1_0 --units features.12:0-255 \\
          --images imagenet/ --jobs 2 --out out/atlas

    \b
    How long will it take?
      captum-mfv atlas --model resnet50 --units "layer4.2:*" \\
          --images imagenet/ --jobs 8 --out out/atlas --dry-run

    \b
    One of sixteen jobs of a job array, and the join of all:
      captum-mfv atlas --config atlas.toml --out out/atlas --shard 3/16
      captum-mfv atlas --config atlas.toml --out out/atlas --merge

    \b
    Class units, each with a folder of images:
      captum-mfv atlas --model squeezenet1_0 --units classifier.1:7,33,945 \\
          --class-folders photos/ --classes classes.json --out out/classes
    """
    settings = {name: options.pop(name) for name in list(options) if name in _names()}
    with console(quiet, verbose):
        with waiting("starting", not quiet):
            from captum_mfv.jobs import atlas as jobs  # here, so that --help is quick
        job = jobs.AtlasSettings(**settings)
        if dry_run:
            click.echo(jobs.estimate(job, out, progress=not quiet, **options).text())
            return
        folder = jobs.run(job, out, progress=not quiet, **options)
    if not quiet and options["shard"] is None:
        _print_summary(folder)
    if folder.failed:
        sys.exit(SOME_FAILED)


def _names() -> set[str]:
    from dataclasses import fields

    from captum_mfv.runs.settings import AtlasSettings

    return {field.name for field in fields(AtlasSettings)}


def _print_summary(folder: Any) -> None:
    """Print a finished atlas's main figures."""
    states = [row["status"] for row in folder.units]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    click.echo(f"{len(states)} units: {counts}; {len(folder.facets)} facets")
    ranked = folder.ranked()
    several = sum(row["p_adjusted"] < 0.05 for row in ranked)
    click.echo(f"units with several facets at a false discovery rate of .05: {several}")
    for row in ranked[:5]:
        click.echo(
            f"  {row['unit']}: multifacetedness {row['multifacetedness']:.2f}, p = {row['p_value']:.2g}, "
            f"{row['n_facets']} {'facet' if row['n_facets'] == 1 else 'facets'} by auto"
        )
    click.echo(os.fsencode(f"tables: {folder.path / 'units.json'}, {folder.path / 'facets.json'}"))
    click.echo(os.fsencode(f"page: {folder.path / 'index.html'}"))


@click.command()
@click.argument("folder")
def status(folder: str) -> None:
    """Print how far the atlas in FOLDER is."""
    from captum_mfv.runs.atlas import AtlasFolder

    click.echo(AtlasFolder.read(folder).progress())
