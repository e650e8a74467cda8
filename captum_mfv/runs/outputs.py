"""Outputs of stages that are to be redone: finding their files, and the parts of a file that two stages write.

An output is a relative path, with ``*`` in the file's name; a folder, whose name has no dot; or a section of
``metrics.json``: ``metrics.json#run`` is what `jobs.run` measures, ``metrics.json#judge`` what `jobs.evaluate` adds.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from captum_mfv.runs.files import own
from captum_mfv.storage.untrusted import inside, read_json, within

__all__ = ["find_outputs", "read_sections"]

_JUDGE = "judge"


def find_outputs(folder: Path, outputs: Iterable[str]) -> list[Path]:
    """Return the existing files and folders of some outputs; sections of a file are checked and left out.

    Raises:
        RunError: if a link leads out of the folder. An output folder that is a link is returned itself.
    """
    found: list[Path] = []
    for output in outputs:
        name, _, section = output.partition("#")
        parent, _, pattern = name.rpartition("/")
        place = own(folder, parent or ".", within)
        paths = sorted(place.glob(pattern)) if "." in pattern else [place / pattern]
        if "." in pattern:
            paths = [own(folder, path.relative_to(folder).as_posix()) for path in paths]
        found += [] if section else paths
    return found


def read_sections(folder: Path) -> dict[str, dict[str, Any]]:
    """Read ``metrics.json`` as sections ``run`` and ``judge``, unchecked; empty ones if it can't be read."""
    try:
        found = read_json(inside(folder, "metrics.json"))
    except (OSError, ValueError):
        found = None
    found = found if isinstance(found, dict) else {}
    run = {name: value for name, value in found.items() if name != _JUDGE}
    return {"run": run, _JUDGE: {_JUDGE: found[_JUDGE]} if found.get(_JUDGE) is not None else {}}
