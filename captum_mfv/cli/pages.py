"""The commands ``captum-mfv report``, ``compare``, ``view`` and ``publish``."""

from __future__ import annotations

import os
import re
import time
import webbrowser
from pathlib import Path
from typing import Any

import click

__all__ = ["compare", "publish", "report", "view"]

_UNITS = {"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}


def _read(folder: str) -> Any:
    """Return the run or the atlas in a folder."""
    from captum_mfv.runs.atlas import AtlasFolder
    from captum_mfv.runs.folder import RunFolder
    from captum_mfv.runs.records import is_atlas

    return AtlasFolder.read(folder) if is_atlas(Path(folder)) else RunFolder.read(folder)


@click.command()
@click.argument("folder")
def report(folder: str) -> None:
    """Rebuild the page of a run's or an atlas's FOLDER."""
    from captum_mfv.report import atlas, build
    from captum_mfv.runs.atlas import AtlasFolder
    from captum_mfv.storage.files import hold

    found = _read(folder)  # raises before a lock is written into a folder that holds neither
    with hold(folder):
        click.echo(os.fsencode(atlas.build(found) if isinstance(found, AtlasFolder) else build(found)))


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


@click.command()
@click.argument("folder")
@click.option("--port", default=0, type=click.IntRange(0, 65535), metavar="PORT", help="0: any port that is free.")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
def view(folder: str, port: int, no_browser: bool) -> None:
    """Serve the page in FOLDER to this machine's browser, until Ctrl-C.

    FOLDER holds a run, an atlas, a comparison (compare.html) or a publication. No other machine can connect.

    \b
    captum-mfv view out/atlas
    """
    from captum_mfv.cli.server import find_site, serve

    with serve(find_site(folder), port) as address:
        click.echo(f"{address} (Ctrl-C ends)")
        try:
            if not no_browser:
                webbrowser.open(address)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            click.echo("ended", err=True)


def _size(context: click.Context, option: click.Parameter, text: str) -> float:
    """Return the bytes of a text such as 50MB."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?) ?([kKMG]?B|)", text)
    if found is None:
        raise click.BadParameter(f"must be a size such as 50MB, not {text!r}")
    return float(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("folder")
@click.argument("out")
@click.option("--no-photos", is_flag=True, help="Required: publish synthesized images only.")
@click.option("--title", metavar="TEXT", help="The page's title.  [default: the units' names]")
@click.option("--source", metavar="URL", help="Address of the project or paper, which the page links.")
@click.option("--license", metavar="TEXT", help="License of the images, which the page names.")
@click.option(
    "--size",
    type=click.IntRange(min=16),
    metavar="PIXELS",
    help="Largest side of an atlas's images.  [default: as they are]",
)
@click.option("--max-size", "most", default="50MB", callback=_size, metavar="SIZE", help="Largest size of all files.")
def publish(folder: str, out: str, no_photos: bool, **options: Any) -> None:
    """Copy the page of a run's or an atlas's FOLDER to the folder OUT, for a web host.

    The copy has no photographs: no real images, their thumbnails and overlays, no start images, codes, names or paths.
    Synthesized images of facets with few images can resemble these; look at the copy before you publish it.
    A former publication in OUT is replaced.

    \b
    captum-mfv publish out/atlas site --no-photos --size 160 --license "CC BY 4.0"
    """
    from captum_mfv.report.publication import publish as write

    if not no_photos:
        raise click.UsageError("publish needs --no-photos; to publish real images too, copy the folder itself")
    sizes = write(_read(folder), out, **options)
    total = sum(sizes.values()) / 1e6
    click.echo(os.fsencode(f"{Path(out) / 'index.html'}: {total:.1f} MB in {len(sizes)} files"))
