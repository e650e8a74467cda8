"""``captum-mfv report`` and ``compare``."""

from __future__ import annotations

import os

import click

__all__ = ["compare", "report"]


@click.command()
@click.argument("folder")
def report(folder: str) -> None:
    """Rebuild the page of a run's FOLDER."""
    from captum_mfv.report import build
    from captum_mfv.runs.folder import RunFolder
    from captum_mfv.storage.files import hold

    run = RunFolder.read(folder)  # raises before a lock is written into a folder that holds no run
    with hold(folder):
        click.echo(os.fsencode(build(run)))


@click.command()
@click.argument("folders", metavar="RUN RUN …", nargs=-1, required=True)
@click.option("--out", default="compare.html", metavar="FILE", help="The page to write.")
def compare(folders: tuple[str, ...], out: str) -> None:
    """Compare finished runs side by side on one page.

    The page shows the settings that differ, the facets, paired by the images that they share, and the metrics.

    \b
    captum-mfv compare out/pepper out/pepper-plain --out compare.html
    """
    from captum_mfv.report import compare as write
    from captum_mfv.runs.folder import RunFolder

    click.echo(os.fsencode(write([RunFolder.read(folder) for folder in folders], out)))
