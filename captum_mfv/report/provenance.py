"""Origin of a published page: title, source, license and the command that made it, without paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from captum_mfv.errors import RunError
from captum_mfv.runs.settings import AtlasSettings, RunSettings

__all__ = ["Provenance", "describe", "without_folders"]

_FILES = ("weights", "sae", "images", "class_folders", "classes", "labels", "recipe")
_DIRECTIONS = {"unit": re.compile(r":[^:]*[/\\]"), "units": re.compile(r":[^:,]*[/\\]")}  # LAYER:FOLDER/FILE.npy
_OF_LIBRARY = re.compile(r"(?:timm|hf|open_clip):(?![./~\\])")


@dataclass(frozen=True)
class Provenance:
    """Title, source, license and command at the top of a published page.

    Args:
        title: the page's title; None: the page's own.
        source: address of the project or paper.
        license: license of the images.
        command: the command that made the run or the atlas, with names of files instead of paths.
        settings: its settings by name, with names of files instead of paths.

    Raises:
        RunError: if the source isn't an address of the web.
    """

    title: str | None
    source: str | None
    license: str | None
    command: str
    settings: Mapping[str, str | int | float]

    def __post_init__(self) -> None:
        if self.source is not None and not _is_address(self.source):
            raise RunError(f"source must be an address that begins with https:// or http://, not {self.source!r}")


def describe(
    settings: Mapping[str, Any],
    kind: type[RunSettings] | type[AtlasSettings],
    title: str | None,
    source: str | None,
    license: str | None,
) -> Provenance:
    """Return where the page of a run or of an atlas comes from, from the settings in its manifest.

    Raises:
        RunError: if the source isn't an address of the web, or the manifest's settings can't be used.
    """
    given = {field.name: settings[field.name] for field in fields(kind) if settings.get(field.name) is not None}
    public = {name: without_folders(name, value) for name, value in given.items() if name != "device"}
    try:
        command = kind(**public).command("out")
    except TypeError as error:
        raise RunError(f"the manifest's settings can't be used: {error}") from error
    return Provenance(title, source, license, command, public)


def without_folders(name: str, value: Any) -> Any:
    """Return a setting with the names of files and folders instead of their paths."""
    if not isinstance(value, str):
        return value
    if name in _FILES or (name == "model" and not _OF_LIBRARY.match(value)) or value.startswith(("/", ".", "~")):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _DIRECTIONS[name].sub(":", value) if name in _DIRECTIONS else value


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable()
