"""A copy of a run's or an atlas's page for a web host, without photographs and without names of files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path

from PIL import Image

from captum_mfv._version import __version__
from captum_mfv.errors import ImageError, RunError
from captum_mfv.images.files import open_image
from captum_mfv.report import atlas, page
from captum_mfv.report.provenance import Provenance, describe
from captum_mfv.runs.atlas import AtlasFolder, image_file
from captum_mfv.runs.folder import RunFolder
from captum_mfv.runs.settings import AtlasSettings, RunSettings
from captum_mfv.storage.files import write_folder
from captum_mfv.storage.untrusted import inside, read_json

__all__ = ["publish", "rebuild"]

_RECORD = "publication.json"  # provenance and list of a publication's files
_FORMAT = 1
_QUALITY = 80  # of WebP


def publish(
    folder: RunFolder | AtlasFolder,
    out: str | os.PathLike[str],
    *,
    title: str | None = None,
    source: str | None = None,
    license: str | None = None,
    size: int | None = None,
    most: float = 50e6,
) -> dict[str, int]:
    """Write the page and the synthesized images of a finished run or atlas to a folder for a web host.

    No photograph, thumbnail or overlay of one, no start image, code or position of a photograph, and no path or name of
    an image file is written. A former publication in the folder is replaced.

    Args:
        folder: the run or the atlas.
        out: the folder to write; new, empty, or a former publication.
        title: the page's title; None: the names of units or layers.
        source: address of the project or paper, which the page links.
        license: license of the images, which the page names.
        size: largest side of an atlas's images, in pixels; larger ones are scaled down.
        most: largest size of all files, in bytes.

    Returns:
        The size of each file, in bytes, by its path in the folder.

    Raises:
        RunError: if the run or atlas isn't finished or can't be read, the folder holds anything else, or the files are
            larger than ``most``. Nothing is written then.
    """
    place = Path(os.path.realpath(out))
    _check_place(place)
    if not folder.finished:
        raise RunError(f"{folder.path} isn't finished; rerun the command that makes it")
    if isinstance(folder, AtlasFolder):
        found = describe(folder.manifest["settings"], AtlasSettings, title, source, license)
        files = atlas.page_files(folder, found) | _images(folder, size)
    else:
        found = describe(folder.settings, RunSettings, title, source, license)
        files = {"index.html": page.fill_page(folder, found)}
    record = {"format": _FORMAT, "kind": "publication", **asdict(found), "version": __version__, "files": sorted(files)}
    files[_RECORD] = json.dumps(record, indent=1).encode()
    total = sum(map(len, files.values()))
    if total > most:
        remedy = "" if isinstance(folder, RunFolder) else ", and smaller images, with --size PIXELS, take less"
        raise RunError(f"{total / 1e6:.1f} MB is more than {most / 1e6:g} MB; --max-size allows more{remedy}")
    write_folder(place, files)
    return {name: len(content) for name, content in files.items()}


def rebuild(path: Path) -> bytes:
    """Return ``index.html`` of an atlas's publication, made again by this version from the publication's data.

    Raises:
        RunError: if the folder isn't an atlas's publication, or its files can't be read.
    """
    try:
        record = read_json(inside(path, _RECORD))
        found = Provenance(**{field.name: record[field.name] for field in fields(Provenance)})
        files = {name: inside(path, name).read_bytes() for name in record["files"] if name.startswith("data/")}
        return atlas.fill_page(files, str(found.settings.get("model", "a network")), found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{path} isn't the publication of an atlas: {error}") from error


def _files(path: Path) -> set[str] | None:
    """Return the files that a publication's record lists, with the record; None without a record."""
    try:
        record = read_json(inside(path, _RECORD))
        return {_RECORD, *record["files"]} if record["kind"] == "publication" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_place(path: Path) -> None:
    """Raise RunError unless a folder is new, empty, or holds a publication and nothing else."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another folder for the publication")
    there = {one.relative_to(path).as_posix() for one in path.rglob("*") if not one.is_dir() or one.is_symlink()}
    others = sorted(there - (_files(path) or set()))
    if others:
        raise RunError(f"{path} holds {others[0]}, which is of no publication; choose another folder")


def _images(folder: AtlasFolder, size: int | None) -> dict[str, bytes]:
    """Return the image of each facet, encoded again, which also removes everything in a file but its pixels."""
    found = {}
    for row in folder.facets:
        name = image_file(row["unit"], row["index"])
        try:
            image = open_image(inside(folder.path, name), ("WEBP",)).convert("RGB")
        except (ImageError, OSError, ValueError) as error:
            raise RunError(f"{folder.path / name} can't be read: {error}") from error
        if size is not None:
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
        buffer = BytesIO()
        image.save(buffer, "webp", quality=_QUALITY, method=6)
        found[name] = buffer.getvalue()
    return found
