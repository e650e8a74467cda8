"""The plan of an atlas: its units, their images, and the parts into which the work is cut."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from captum_mfv.activations.layers import count_units, resolve, resolve_units
from captum_mfv.errors import FacetError, ImageError, RunError, UnitError
from captum_mfv.images import ImageArchives, ImageFolder, Images, InputSpec, open_images
from captum_mfv.jobs.inputs import Network, load_network, parse_code
from captum_mfv.models.functions import call_function
from captum_mfv.models.sources import as_model_error
from captum_mfv.optvis.recipes import get_recipe
from captum_mfv.runs.atlas import unit_name
from captum_mfv.runs.settings import AtlasSettings
from captum_mfv.storage.identity import dataset_fingerprint, fingerprint, weights_fingerprint
from captum_mfv.storage.untrusted import is_file, read_json, read_text
from captum_mfv.units import Code, Unit

__all__ = [
    "BATCH",
    "Plan",
    "load_plan",
    "load_plan_once",
    "names_function",
    "open_dataset",
    "parse_units",
    "unit_key",
]

BATCH = 32  # images of a forward pass
_PART = 1024  # images of a part of a small dataset
_PARTS = 256  # parts of a large dataset, at most
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_MOST = 10**6  # units
_FREE = ("units", "batch", "device")  # settings that change a unit's result by rounding only


@dataclass(frozen=True, eq=False)
class Plan(Network):
    """Everything that the settings of an atlas name, loaded and checked.

    ``codes`` has the code of each layer by its name. ``images`` is the dataset that is scanned, or None: then
    ``folders`` has the images of each unit, in the order of ``units``.
    """

    job: AtlasSettings
    units: tuple[Unit, ...]
    codes: Mapping[str, Code]
    images: Images | None
    folders: tuple[ImageFolder, ...]

    @property
    def sizes(self) -> dict[str, int | None]:
        """Number of units, and of images that are scanned."""
        return {"n_units": len(self.units), "n_images": None if self.images is None else len(self.images)}

    @property
    def batch(self) -> int:
        """Number of units whose images are synthesized together."""
        on_cpu = next(self.model.parameters(), torch.empty(0)).device.type == "cpu"
        return self.job.batch or (8 if on_cpu else 64)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings and fingerprints that every unit's result depends on, and nothing else."""
        return {
            **{name: value for name, value in asdict(self.job).items() if name not in _FREE},
            "recipe_data": asdict(self.recipe),
            "input_spec": asdict(self.spec),
            "images_hash": None if self.images is None else dataset_fingerprint(self.images),
            "weights_hash": weights_fingerprint(self.model),
            "sae_hash": None if self.encoder is None else weights_fingerprint(self.encoder),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The settings and fingerprints, and those of the units and of the images of each class."""
        units = fingerprint(units=[unit_name(unit) for unit in self.units])
        found = {**self.settings, "units": self.job.units, "units_hash": units, "batch": self.batch}
        if self.images is None:
            found["images_hash"] = fingerprint(folders=[folder.fingerprint for folder in self.folders])
        return found

    @cached_property
    def keys(self) -> list[str]:
        """The fingerprint of everything that each unit's result depends on."""
        shared = fingerprint(**self.settings)
        folders = [folder.fingerprint for folder in self.folders] or [""] * len(self.units)
        return [unit_key(shared, *its) for its in zip(self.units, folders, strict=True)]

    @cached_property
    def parts(self) -> list[range]:
        """The parts of the dataset that are scanned one by one, whole batches each; they depend on its size alone."""
        n = 0 if self.images is None else len(self.images)
        size = max(_PART, -(-n // (_PARTS * BATCH)) * BATCH)
        return [range(first, min(first + size, n)) for first in range(0, n, size)]

    def groups(self, units: Sequence[int]) -> list[list[int]]:
        """Return units, by their positions, in groups of at most ``batch`` that read the same layer."""
        found: list[list[int]] = []
        for position in units:
            layer = self.units[position].layer_name
            if found and len(found[-1]) < self.batch and self.units[found[-1][0]].layer_name == layer:
                found[-1].append(position)
            else:
                found.append([position])
        return found

    def image_name(self, position: int, index: int) -> str:
        """Return the path of an image in the folder of images, or its index in another dataset."""
        if self.images is None:
            folder = self.folders[position]
            return f"{folder.root.name}/{folder.name(index)}"
        return self.images.name(index) if isinstance(self.images, (ImageFolder, ImageArchives)) else str(index)

    def save_listing(self, path: Path) -> None:
        """Write the list of the images' files, so that other processes need not list them."""
        if isinstance(self.images, (ImageFolder, ImageArchives)):
            self.images.listing.write(path)


def unit_key(settings: str, unit: Unit, images: str) -> str:
    """Return the fingerprint of everything that a unit's result depends on.

    Args:
        settings: fingerprint of `Plan.settings`.
        unit: the unit.
        images: fingerprint of the images of the unit's class; "" of a dataset that is scanned.
    """
    return fingerprint(settings=settings, unit=replace(unit, encoder=None), images=images)


@lru_cache(maxsize=1)
def load_plan_once(job: AtlasSettings, device: str | None, listing: Path) -> Plan:
    """Return what `load_plan` returns, which a worker process loads once."""
    return load_plan(replace(job, device=device), listing)


def load_plan(job: AtlasSettings, listing: Path, progress: bool = False) -> Plan:
    """Load what the settings of an atlas name; check everything else before loading the model.

    Args:
        job: the settings.
        listing: a file with the list of the images' files, used if it exists and is current.
        progress: show progress.

    Raises:
        MFVError: if something can't be used, naming what and why.
    """
    texts, code = list(parse_units(job.units)), parse_code(job)
    get_recipe(job.recipe)
    images, folders = None, dict[int, Path]()
    if job.images is not None:
        images = open_dataset(job.images, listing)
        if job.facets != "auto" and job.facets > len(images):
            raise FacetError(f"{job.facets} facets can't be found in {len(images)} images; ask for at most as many")
    else:
        folders = _class_folders(str(job.class_folders), str(job.classes))
    network = load_network(job, progress)
    reduce = job.reduce or ("mean" if images is None else "max")
    options: dict[str, Any] = {"reduce": reduce, "channels": job.channels, "n_prefix": job.n_prefix}
    named = [replace(unit, **options, encoder=network.encoder) for unit in _expanded(texts, network, options)]
    units = tuple(dict.fromkeys(resolve_units(network.model, named, network.spec)))
    codes = {unit.layer_name: unit for unit in reversed(units)}
    found = {name: resolve(network.model, unit, code, network.spec)[1] for name, unit in codes.items()}
    if isinstance(images, (ImageFolder, ImageArchives)):
        images.input_spec = network.spec
    of_units = _of_units(units, folders, network.spec)
    return Plan(**vars(network), job=job, units=units, codes=found, images=images, folders=of_units)


def parse_units(text: str) -> Iterator[Unit | str]:
    """Yield the units that a text names, such as ``features.12:0-3,7,features.9:2``; ``LAYER:*`` as it is.

    Args:
        text: units and ranges, separated by commas; or a file of such lines, where ``#`` begins a comment.

    Raises:
        UnitError: if a part isn't a unit, naming it.
    """
    lines = read_text(Path(text)).splitlines() if is_file(text) else [text]
    for line in lines:
        layer = ""
        for part in filter(None, (part.strip() for part in line.partition("#")[0].split(","))):
            before, colon, index = part.rpartition(":")
            layer = before if colon else layer
            if index == "*" and layer:
                yield f"{layer}:*"
            elif layer and (found := _RANGE.fullmatch(index)):
                first, last = int(found[1]), int(found[2] or found[1])
                if not first <= last < first + _MOST:
                    raise UnitError(f"units {part!r}: a range goes from a lower to a higher index, by at most {_MOST}")
                yield from (Unit(layer, number) for number in range(first, last + 1))
            else:
                unit = Unit.parse(part)
                layer = unit.layer_name
                yield unit


def _expanded(texts: Sequence[Unit | str], network: Network, options: Mapping[str, Any]) -> Iterator[Unit]:
    """Yield units, and all of a layer for ``LAYER:*``."""
    for text in texts:
        if isinstance(text, Unit):
            yield text
            continue
        layer = text.removesuffix(":*")
        first = Unit(layer, 0, encoder=network.encoder, **options)
        yield from (Unit(layer, index) for index in range(count_units(network.model, first, network.spec)))
    if not texts:
        raise UnitError("units must name at least one unit, such as features.12:0-127")


def names_function(name: str) -> bool:
    """Return whether the name of a dataset is ``file.py:function`` or ``package.module:function``, and no path."""
    source, colon, _ = name.rpartition(":")
    return bool(colon) and "." in source and not Path(name).exists()


def open_dataset(name: str, listing: Path | None = None) -> Images:
    """Return the images of a folder or of tar archives, or the dataset that ``file.py:function`` returns.

    Raises:
        ImageError: if there are no images, or the dataset has no fingerprint.
    """
    if not names_function(name):
        return open_images(name, listing)
    with as_model_error(name, False):
        images = call_function(name)
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise ImageError(f"{name} must return a map-style dataset, not {type(images).__name__}")
    if not len(images):
        raise ImageError(f"the dataset that {name} returns holds no images")
    try:
        dataset_fingerprint(images)
    except RunError as error:
        kind = type(images).__name__
        raise ImageError(
            f"{name} returns a dataset of type {kind} without a fingerprint; give {kind} an attribute fingerprint, a "
            f"string to be changed whenever the images change"
        ) from error
    return images  # type: ignore[no-any-return]


def _class_folders(root: str, path: str) -> dict[int, Path]:
    """Return the folder of each class unit's images, by its index."""
    try:
        table = {str(name): int(index) for name, index in read_json(Path(path)).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ImageError(f"{path} isn't a JSON table of folder and class index: {error}") from error
    found = {index: Path(root, name) for name, index in table.items()}
    if len(found) < len(table):
        twice = next(index for index in found if list(table.values()).count(index) > 1)
        raise ImageError(f"{path} has two folders for class {twice}; put their images into one")
    return found


def _of_units(units: Sequence[Unit], folders: Mapping[int, Path], spec: InputSpec) -> tuple[ImageFolder, ...]:
    """Return the images of each class unit."""
    if not folders:
        return ()
    lacking = [str(unit) for unit in units if not isinstance(unit.index, int) or unit.index not in folders]
    if lacking:
        raise ImageError(f"classes has no folder for {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}")
    return tuple(ImageFolder(os.fspath(folders[int(unit.index)]), spec) for unit in units)  # type: ignore[arg-type]
