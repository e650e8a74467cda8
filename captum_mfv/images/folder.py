"""Image files as a dataset: in a folder, or in tar archives."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from torch import Tensor

from captum_mfv.errors import ImageError
from captum_mfv.images.files import read_image
from captum_mfv.images.listing import Listing
from captum_mfv.images.preprocessing import InputSpec
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.untrusted import is_file, is_folder

__all__ = ["ImageArchives", "ImageFolder", "open_images"]

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


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
        listing: the folder's files, where they are known.

    Raises:
        ImageError: if the folder does not exist or holds no files; on access, if a file can't be read as an image, or
            has over 89 million pixels before or after resizing. `batches` leaves such files out and names them.
    """

    def __init__(
        self, root: str | os.PathLike[str], input_spec: InputSpec | None = None, listing: Listing | None = None
    ) -> None:
        self.root = Path(root)
        self.input_spec = input_spec or InputSpec()
        if not is_folder(self.root):
            raise ImageError(f"{os.fspath(root)!r} isn't a folder of images")
        self.listing = listing or Listing.of_folder(self.root)
        if not self.listing.names:
            raise ImageError(f"the folder {os.fspath(root)!r} holds no images")

    def __len__(self) -> int:
        return len(self.listing.names)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.root / self.listing.names[index], self.input_spec)

    def name(self, index: int) -> str:
        """Return the path of an image relative to the folder, with forward slashes."""
        return self.listing.names[index]

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The paths of all files."""
        return tuple(self.root / name for name in self.listing.names)

    @property
    def files_fingerprint(self) -> str:
        """Fingerprint of the files' names and sizes; no file is opened."""
        return self.listing.fingerprint

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the items: of the files' names and sizes, and of the preprocessing."""
        return fingerprint(files=self.files_fingerprint, input_spec=self.input_spec)


class ImageArchives:
    """Dataset of the images in a tar archive, or in all ``.tar`` files of a folder, such as shards of WebDataset.

    Archives are not extracted: they are listed once, and images are read from where their bytes are. Files of other
    types in them (``.cls``, ``.json``) are left out. Items are those of `ImageFolder`.

    Args:
        root: a tar archive without compression, or a folder of them.
        input_spec, listing: as for `ImageFolder`.

    Raises:
        ImageError: if there is no archive, one can't be read, or none holds an image; on access, if a file can't be
            read as an image.
    """

    def __init__(
        self, root: str | os.PathLike[str], input_spec: InputSpec | None = None, listing: Listing | None = None
    ) -> None:
        self.root = Path(root)
        self.input_spec = input_spec or InputSpec()
        self.listing = listing or Listing.of_archives(self.root)
        self._indices = [i for i, name in enumerate(self.listing.names) if name.lower().endswith(_IMAGES)]
        if not self._indices:
            raise ImageError(f"{os.fspath(root)!r} holds no tar archive with images")

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Tensor:
        place = self._indices[index]
        archive = self.root if self.root.is_file() else self.root / self.name(index).partition("/")[0]
        try:
            with archive.open("rb") as file:
                file.seek(self.listing.offsets[place])
                content = file.read(self.listing.sizes[place])
        except OSError as error:
            raise ImageError(f"{archive}: {error}") from error
        return read_image(self.root / self.name(index), self.input_spec, content)

    def name(self, index: int) -> str:
        """Return the name of an image: ``archive.tar/path``."""
        return self.listing.names[self._indices[index]]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the items: of the files' names and sizes, and of the preprocessing."""
        return fingerprint(archives=self.listing.fingerprint, input_spec=self.input_spec)


def open_images(
    root: str | os.PathLike[str], listing: str | os.PathLike[str] | None = None
) -> ImageFolder | ImageArchives:
    """Return the images under a folder, in a tar archive, or in the tar archives of a folder.

    Args:
        root: the folder or the archive.
        listing: a file of ``Listing.write``, used unless files under ``root`` have changed since.

    Raises:
        ImageError: if there are no images.
    """
    path = Path(root)
    known = None if listing is None else Listing.read(Path(listing), path)
    in_archives = is_file(path) or (is_folder(path) and any(path.glob("*.tar")))
    return (ImageArchives if in_archives else ImageFolder)(path, listing=known)
