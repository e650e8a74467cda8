"""The folder of an atlas, as its readers see it: names of its files, tables of units and facets, one unit's facets."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from captum_mfv.errors import FacetError, RunError, UnitError
from captum_mfv.facets.facet_set import LARGEST_CODE, FacetSet
from captum_mfv.images import InputSpec
from captum_mfv.images.files import from_pil, open_image
from captum_mfv.runs.labels import AtlasLabels, read_labels
from captum_mfv.runs.records import AtlasFacetRow, AtlasUnitRow, Spec, read_atlas_manifest
from captum_mfv.storage.identity import fingerprint
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import inside, read_array, read_json
from captum_mfv.units import Unit

__all__ = [
    "MEMBERS",
    "SHEET",
    "AtlasFolder",
    "AtlasUnit",
    "array_file",
    "image_file",
    "members_file",
    "record_file",
    "tensors_file",
    "unit_name",
]

MEMBERS = 30
"""Members of a facet in ``facets.json``, the nearest to its center."""

SHEET = 9
"""Members of a facet in its sheet of images."""

_MOST = 2**28  # numbers of an image
_LONGEST = 80  # characters of a layer's name in that of its folder; paths of Windows have at most 260
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices on Windows


def unit_name(unit: Unit) -> str:
    """Return ``LAYER:INDEX``, the unit's name in an atlas; of a direction, ``LAYER:direction-`` and its fingerprint."""
    if isinstance(unit.index, int):
        return f"{unit.layer_name}:{unit.index}"
    return f"{unit.layer_name}:direction-{fingerprint(weights=unit.index)[:8]}"


def _place(unit: str, folder: str) -> str:
    layer, _, index = unit.rpartition(":")
    return f"{folder}/{_layer_folder(layer)}/{index}"


def _layer_folder(layer: str) -> str:
    """Return the layer's name, if every file system takes it and keeps it apart from all others; else, one like it.

    Windows reserves names, and many systems don't distinguish upper and lower case.
    """
    name = re.sub(r"[^0-9A-Za-z._-]", "_", layer)[:_LONGEST].rstrip(".")
    if not name or name.startswith(".") or _RESERVED.fullmatch(name):
        name = f"_{name}"
    return name if name == layer.lower() else f"{name}-{fingerprint(layer=layer)[:8]}"


def image_file(unit: str, facet: int) -> str:
    """Return the path of the image of a facet of the unit of a name."""
    return f"{_place(unit, 'images')}_{facet}.webp"


def members_file(unit: str, facet: int) -> str:
    """Return the path of the sheet of a facet's nearest members."""
    return f"{_place(unit, 'images')}_{facet}_members.webp"


def array_file(unit: str, facet: int) -> str:
    """Return the path of all channels of a facet's image, of models with other than 1 or 3 channels."""
    return f"{_place(unit, 'images')}_{facet}.npy"


def tensors_file(unit: str) -> str:
    """Return the path of a unit's facet set."""
    return f"{_place(unit, 'units')}.safetensors"


def record_file(unit: str) -> str:
    """Return the path of a unit's rows, which is written last."""
    return f"{_place(unit, 'units')}.json"


@dataclass(frozen=True, eq=False)
class AtlasUnit:
    """One unit of an atlas.

    Args:
        row: the unit's row of ``units.json``.
        rows: its rows of ``facets.json``.
        facets: its facet set.
        images: (C, H, W) in [0, 1], the synthesized image of each facet.
    """

    row: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    facets: FacetSet
    images: tuple[Tensor, ...]


@dataclass(eq=False)
class AtlasFolder:
    """The facets of many units on disk, as ``captum-mfv atlas`` writes them.

    The folder holds ``manifest.json`` (format, status, settings, versions, timings), ``units.json`` and
    ``facets.json`` (a row for each unit and each facet), ``codes.safetensors`` (centers of all facets and their
    coordinates on the map, by layer), ``images/LAYER/UNIT_FACET.webp`` and ``UNIT_FACET_members.webp``, and
    ``units/LAYER/UNIT.json`` and ``UNIT.safetensors``, the same rows and the facet set of each unit, from which the
    tables are made; and ``labels.json`` once the units have labels.

    Example:
        atlas = captum_mfv.AtlasFolder.read("out/atlas")
        atlas.ranked()[:12]                             # the most multifaceted units
        atlas.unit("features.12:37").facets
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> AtlasFolder:
        """Read an atlas.

        Raises:
            RunError: if the folder holds no atlas, or one of another format.
        """
        return cls(Path(path), read_atlas_manifest(Path(path)))

    @property
    def finished(self) -> bool:
        """Whether every unit is done, dead or failed, and the tables are written."""
        return bool(self.manifest["status"] == "finished")

    @property
    def input_spec(self) -> InputSpec:
        """Preprocessing of the model's input; RunError if the manifest lacks it."""
        try:
            found: InputSpec = validate(Spec, self.manifest["settings"]["input_spec"], "input_spec")
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.path}: the manifest can't be used: {error}") from error

    @cached_property
    def units(self) -> list[dict[str, Any]]:
        """The rows of ``units.json``; RunError if it can't be read."""
        rows = self._read("units.json", AtlasUnitRow)
        lacking = [row["unit"] for row in rows if row["status"] == "done" and "p_adjusted" not in row]
        if lacking:
            raise RunError(f"{self.path}: units.json can't be read: {lacking[0]} lacks p_adjusted")
        return rows

    @cached_property
    def facets(self) -> list[dict[str, Any]]:
        """The rows of ``facets.json``; RunError if it can't be read."""
        return self._read("facets.json", AtlasFacetRow)

    @cached_property
    def labels(self) -> AtlasLabels | None:
        """The labels of units and facets with their scores, ``labels.json``; None if ``captum-mfv label`` wasn't run.

        The texts are also in the tables, in the column ``label``.

        Raises:
            RunError: if the file can't be read, or isn't of the units in the tables.
        """
        found = read_labels(self.path, AtlasLabels)
        if found is not None and (other := found.other_unit(self.units, self.facets)):
            raise RunError(f"{self.path}: labels.json isn't of {other} in the tables; label again")
        return found

    def progress(self) -> str:
        """Return how many units are done, and how long the others will take at the rate so far."""
        n_units = self.manifest["n_units"]
        times = sorted(path.lstat().st_mtime for path in (self.path / "units").glob("*/*.json") if path.is_file())
        text = f"{self.manifest['status']}: {len(times)} of {n_units} units"
        left = n_units - len(times)
        if left > 0 and len(times) > 1 and times[-1] > times[0]:
            rate = (len(times) - 1) / (times[-1] - times[0])
            since = max(0.0, time.time() - times[-1])
            text += f", {60 * rate:.3g} a minute, {left / rate / 3600:.1f} hours left, the last {since:.0f} s ago"
        return text

    def ranked(self) -> list[dict[str, Any]]:
        """Return the units that are done, the most multifaceted first: by p-value, then by multifacetedness."""
        done = [row for row in self.units if row["status"] == "done"]
        return sorted(done, key=lambda row: (row["p_value"], -row["multifacetedness"]))

    def to_pandas(self, table: str = "units") -> Any:
        """Return a table as a data frame: ``units``, ``facets`` or ``labels``; ImportError if pandas isn't installed.

        ``labels`` has a row for each unit (``index`` is None) and each facet: the label, the word that was tested, its
        AUROC with the interval, and whether the synthesized image agrees.
        """
        if table not in ("units", "facets", "labels"):
            raise RunError(f"table must be units, facets or labels, not {table!r}")
        found = getattr(self, table)
        if table == "labels":
            found = [] if found is None else found.rows()
        return importlib.import_module("pandas").DataFrame(found)

    def unit(self, name: str | Unit, encoder: nn.Module | None = None) -> AtlasUnit:
        """Read one unit: its rows, facets and images.

        Args:
            name: the unit, or its name, ``LAYER:INDEX``.
            encoder: the encoder of a latent, as for `FacetSet.load`.

        Raises:
            UnitError: if the atlas has no such unit, or the unit has no facets.
            RunError: if its files can't be read.
        """
        wanted = unit_name(name) if isinstance(name, Unit) else name
        row = next((row for row in self.units if row["unit"] == wanted), None)
        if row is None or row["status"] != "done":
            why = "isn't in the atlas" if row is None else f"is {row['status']}, and has no facets"
            raise UnitError(f"{wanted} {why}")
        rows = [one for one in self.facets if one["unit"] == wanted]
        try:
            facets = self.read_facets(wanted, encoder)
            if [one["index"] for one in rows] != list(range(len(facets))):
                raise ValueError(f"facets.json has {len(rows)} of its facets, not {len(facets)} in order")
        except (ValueError, OSError) as error:
            raise RunError(f"{self.path}: {wanted} can't be read: {error}") from error
        return AtlasUnit(row, rows, facets, tuple(self.read_image(wanted, k) for k in range(len(facets))))

    def read_facets(self, unit: str, encoder: nn.Module | None = None) -> FacetSet:
        """Read the facet set of a unit; the encoder and errors are those of `FacetSet.load`."""
        try:
            return FacetSet.load(inside(self.path, tensors_file(unit)), encoder)
        except ValueError as error:
            raise RunError(f"{self.path}: the facets of {unit} can't be read: {error}") from error

    def read_key(self, unit: str) -> str:
        """Return the fingerprint of everything that a unit's rows depend on; RunError if they can't be read."""
        name = record_file(unit)
        try:
            return str(read_json(inside(self.path, name))["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path / name} can't be read: {error}") from error

    def read_image(self, unit: str, facet: int) -> Tensor:
        """Read the synthesized image of a facet, (C, H, W) in [0, 1]; RunError if it can't be read."""
        n = self.input_spec.channels
        try:
            if n in (1, 3):
                return from_pil(open_image(inside(self.path, image_file(unit, facet)), ("WEBP",)))[:n]
            values = read_array(inside(self.path, array_file(unit, facet)), _MOST).astype(np.float32)
            if values.ndim != 3 or len(values) != n or not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{array_file(unit, facet)} must hold an image of {n} channels in [0, 1]")
            return torch.from_numpy(values)
        except (ValueError, OSError) as error:
            raise RunError(f"{self.path}: the image of {unit}, facet {facet}, can't be read: {error}") from error

    def nearest(self, unit: str, facet: int, n: int = 12) -> list[tuple[dict[str, Any], float]]:
        """Return the facets of all units of a layer that are nearest to a facet, with the cosine of their codes.

        Centers are compared after subtracting the mean center of the layer. The facet itself is left out.

        Raises:
            FacetError: if the atlas has no such facet.
        """
        layer = unit.rpartition(":")[0]
        rows = [row for row in self.facets if row["unit"].rpartition(":")[0] == layer]
        own = next((i for i, row in enumerate(rows) if row["unit"] == unit and row["index"] == facet), None)
        if own is None:
            raise FacetError(f"the atlas has no facet {facet} of {unit}")
        centers = self.centers(layer).astype(np.float64)
        if len(centers) != len(rows):
            raise RunError(f"{self.path}: codes.safetensors has {len(centers)} centers of {layer}, not {len(rows)}")
        centers -= centers.mean(0)
        unit_length = centers / np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-30)
        cosines = unit_length @ unit_length[own]
        order = [int(i) for i in np.argsort(-cosines, kind="stable") if i != own]
        return [(rows[i], float(cosines[i])) for i in order[:n]]

    def centers(self, layer: str) -> NDArray[np.float32]:
        """Return the center of each facet of a layer, (n_facets, D), in the order of the table."""
        return self._array(f"{layer}/centers")

    def map(self, layer: str) -> NDArray[np.float32]:
        """Return the coordinates of each facet of a layer on the map, (n_facets, 2), in the order of the table."""
        return self._array(f"{layer}/map")

    def _array(self, name: str) -> NDArray[np.float32]:
        try:
            with safe_open(inside(self.path, "codes.safetensors"), framework="numpy") as file:
                found: NDArray[np.float32] = file.get_tensor(name)
            if found.ndim != 2 or found.dtype != np.float32 or not (abs(found) <= LARGEST_CODE).all():
                raise ValueError(f"{name} must be finite float32 numbers in rows")
            return found
        except (SafetensorError, TypeError, AttributeError, OSError, ValueError) as error:
            raise RunError(f"{self.path}: codes.safetensors can't be read: {error}") from error

    def _read(self, name: str, kind: Any) -> list[dict[str, Any]]:
        try:
            rows = validate(list[kind], read_json(inside(self.path, name)))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: {name} can't be read: {error}") from error
        return [row.model_dump(exclude_unset=True) for row in rows]
