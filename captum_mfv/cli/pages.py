"""``captum-mfv report`` and ``compare``."""

from __future__ import annotations

import os

import click

__all__ = ["compare", "report"]


@click.command()
@click.argument("folder")
def report(folder: str) -> None:
    """Make the page of a run's FOLDER anew."""
    from captum_mfv.report import build
    from captum_mfv.runs.folder import RunFolder
    from captum_mfv.storage.lock import hold

    run = RunFolder.read(folder)  # before a folder that is none is touched
    with hold(folder):
        click.echo(os.fsencode(build(run)))


@click.command()
@click.argument("folders", metavar="RUN RUN …", nargs=-1, required=True)
@click.option("--out", default="compare.html", metavar="FILE", help="The page to write.")
def compare(folders: tuple[str, ...], out: str) -> None:
    """Show finished runs side by side on one page.

    What differs in their settings, their facets, paired where they share images, and their figures.

    \b
    captum-mfv compare out/pepper out/pepper-plain --out compare.html
    """
    from captum_mfv.report import compare as write
    from captum_mfv.runs.folder import RunFolder

    click.echo(os.fsencode(write([RunFolder.read(folder) for folder in folders], out)))
