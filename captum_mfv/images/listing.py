"""The files of a dataset, listed once: names and sizes, and the times that show whether they changed."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from typing_extensions import Self

from captum_mfv.errors import ImageError
from captum_mfv.storage.files import write_whole
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import read_json

__all__ = ["Listing"]


@dataclass(frozen=True)
class Listing:
    """The files under a folder, or in its tar archives, in the order of their paths.

    Args:
        names: paths relative to the folder, with forward slashes; of a file in an archive, ``archive.tar/path``.
        sizes: bytes; -1 for a broken link.
        offsets: where a file's bytes begin in its archive; empty if there are no archives.
        times: when each subfolder or archive was changed, in nanoseconds, by its path.
    """

    names: list[str]
    sizes: list[int]
    offsets: list[int]
    times: Mapping[str, int]

    @classmethod
    def of_folder(cls, root: Path) -> Self:
        """List a folder and its subfolders; hidden files and links to folders are left out."""
        found, times = list[tuple[list[str], int]](), dict[str, int]()
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            inside = os.path.relpath(folder, root).replace(os.sep, "/")
            times[inside] = _time(folder)
            parts = [] if inside == "." else inside.split("/")
            found += [([*parts, name], _size(Path(folder, name))) for name in names if not name.startswith(".")]
        found.sort()
        return cls(["/".join(parts) for parts, _ in found], [size for _, size in found], [], times)

    @classmethod
    def of_archives(cls, root: Path) -> Self:
        """List the files in a tar archive, or in all of a folder; ImageError if one can't be read."""
        names, sizes, offsets, times = list[str](), list[int](), list[int](), dict[str, int]()
        for path in [root] if root.is_file() else sorted(root.glob("*.tar")):
            times[path.name] = _time(path)
            try:
                for name, size, offset in _members(path):
                    names.append(f"{path.name}/{name}")
                    sizes.append(size)
                    offsets.append(offset)
            except (tarfile.TarError, OSError, ValueError) as error:
                raise ImageError(f"{path} can't be read as a tar archive: {error}") from error
        return cls(names, sizes, offsets, times)

    @classmethod
    def read(cls, path: Path, root: Path) -> Self | None:
        """Read a listing that was written before; None if there is none, or the files under ``root`` have changed."""
        try:
            found: Self = validate(cls, read_json(path))
        except (OSError, ValueError):
            return None
        if len(found.sizes) != len(found.names) or len(found.offsets) not in (0, len(found.names)):
            return None
        if any(name.startswith("/") or ".." in name.split("/") for name in found.names):
            return None
        folder = root.parent if root.is_file() else root
        try:
            unchanged = all(_time(folder / name) == time for name, time in found.times.items())
        except OSError:
            return None
        return found if unchanged and found.times else None

    def write(self, path: Path) -> None:
        """Write the listing to a file."""
        write_whole(path, json.dumps(asdict(self)).encode())

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of names and sizes."""
        lines = (f"{name}\0{size}\0" for name, size in zip(self.names, self.sizes, strict=True))
        return fingerprint(files="".join(lines))  # one string: a list of a million files takes half a minute


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and offset of the regular files in an archive."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if member.isreg() and not member.name.rpartition("/")[2].startswith("."):
                yield member.name, member.size, member.offset_data
            archive.members = []  # type: ignore[attr-defined]  # which otherwise grow with the archive


def _time(path: str | Path) -> int:
    return Path(path).stat().st_mtime_ns


def _size(path: Path) -> int:
    """Return a file's size in bytes; -1 for a broken link."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
