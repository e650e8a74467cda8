"""A folder of image files as a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import Tensor

from captum_mfv.errors import ImageError
from captum_mfv.images.files import read_image
from captum_mfv.images.preprocessing import InputSpec
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.untrusted import is_folder

__all__ = ["ImageFolder"]


class ImageFolder:
    """Dataset of every file under a folder and its subfolders, in the order of their paths.

    Items are (C, size, size) float32 in [0, 1]: upright (EXIF), transparency on white, the short side resized with
    antialiasing and the center cropped. Hidden files and links to folders are left out; links to files are followed.

    Images of other than 1 or 3 channels are read from `numpy.save`'s ``.npy`` files, (C, H, W) or (H, W, C), and from
    TIFF files (``pip install "captum-mfv[tiff]"``). Files of 8, 16 or 32 bits keep their precision.

    Args:
        root: the folder.
        input_spec: size, crop fraction, interpolation, value range and number of channels (1: gray, 3: RGB) of the
            items.

    Raises:
        ImageError: if the folder does not exist or holds no files; on access, if a file can't be read as an image, or
            has over 89 million pixels before or after resizing. `batches` leaves such files out and names them.
    """

    def __init__(self, root: str | os.PathLike[str], input_spec: InputSpec | None = None) -> None:
        self.root = Path(root)
        self.input_spec = input_spec or InputSpec()
        if not is_folder(self.root):
            raise ImageError(f"{os.fspath(root)!r} isn't a folder of images")
        self.paths: tuple[Path, ...] = tuple(sorted(_files(self.root)))
        if not self.paths:
            raise ImageError(f"the folder {os.fspath(root)!r} holds no images")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.paths[index], self.input_spec)

    def name(self, index: int) -> str:
        """Return the path of an image relative to the folder, with forward slashes."""
        return self.paths[index].relative_to(self.root).as_posix()

    @cached_property
    def files_fingerprint(self) -> str:
        """Fingerprint of the files' names and sizes; no file is opened."""
        lines = (f"{self.name(index)}\0{_size(path)}\0" for index, path in enumerate(self.paths))
        return fingerprint(files="".join(lines))  # one string: a list of a million files takes half a minute

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the items: of the files' names and sizes, and of the preprocessing."""
        return fingerprint(files=self.files_fingerprint, input_spec=self.input_spec)


def _size(path: Path) -> int:
    """Return a file's size in bytes; -1 for a broken link."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))
