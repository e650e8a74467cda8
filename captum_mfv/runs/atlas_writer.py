"""The folder of an atlas, as the coordinator sees it: one process that stores the results of units."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from typing_extensions import Self

from captum_mfv.errors import RunError
from captum_mfv.runs.atlas import AtlasFolder, image_file, record_file, unit_name
from captum_mfv.runs.labels import LABELS, AtlasLabels, read_labels
from captum_mfv.runs.records import ATLAS_FORMAT, AtlasFacetRow, AtlasUnitRow, check_place, installed_versions
from captum_mfv.storage.files import remove, sweep, tensor_file, write_whole
from captum_mfv.storage.identity import canonical, check_same
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import inside, read_json
from captum_mfv.units import Unit

__all__ = ["SCAN", "AtlasWriter"]

SCAN = ".scan.safetensors"
"""State of a scan, in the atlas's folder or in that of a shard."""

_COMPONENTS = 50
_OF_UNIT = re.compile(r"(\d+|direction-[0-9a-f]{8})(?:_\d+(?:_members)?)?\.(?:json|safetensors|webp|npy)")


class AtlasWriter(AtlasFolder):
    """An `AtlasFolder` that is written to."""

    failed = 0  # units that failed; of a shard, its own

    @classmethod
    def open(
        cls, path: Path, settings: Mapping[str, Any], sizes: Mapping[str, int | None], *, update: bool = False
    ) -> Self:
        """Start an atlas, or resume the one that has the same settings; with ``update``, also with others.

        Raises:
            RunError: if the folder holds anything else, or an atlas with other settings.
        """
        wanted = canonical(settings)
        if not check_place(path, "atlas"):
            folder = cls(path, _new_manifest(wanted, sizes))
            folder.write_manifest()
            return folder
        folder = cls(path, AtlasFolder.read(path).manifest)
        if not update:
            remedy = "choose another folder, or --update to redo the units that depend on what changed"
            check_same(folder.manifest["settings"], wanted, f"{path} holds another atlas", remedy)
        elif folder.manifest["settings"] != wanted:
            for scan in (path / SCAN, *path.glob(f".shards/*/{SCAN}")):
                remove(scan)
            folder.manifest = _new_manifest(wanted, sizes)
            folder.write_manifest()
        return folder

    def sweep(self, units: Sequence[Unit]) -> None:
        """Remove temporary files of killed writes, and files of units other than these; no process may be writing."""
        wanted = {Path(record_file(unit_name(unit))).with_suffix("").parts[1:] for unit in units}
        folders = [folder for name in ("data/", "images/*/", "units/*/") for folder in self.path.glob(name)]
        for folder in (self.path, *folders):
            if not folder.resolve().is_relative_to(self.path.resolve()):
                continue
            sweep(folder)
            for path in folder.iterdir() if folder != self.path else ():
                own = _OF_UNIT.fullmatch(path.name)
                if own and (folder.name, own[1]) not in wanted:
                    remove(path)

    def record(self, unit: Unit, key: str) -> dict[str, Any] | None:
        """Return the stored rows of a unit, or None if there are none for the same settings and images."""
        name = record_file(unit_name(unit))
        if not (self.path / name).exists():
            return None
        try:
            record: dict[str, Any] = dict(read_json(inside(self.path, name)))
            validate(AtlasUnitRow, record["row"])
            validate(list[AtlasFacetRow], record["facets"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path / name} can't be read: {error}; remove it to redo the unit") from error
        return record if record.get("key") == key else None

    def store(
        self, key: str, row: Mapping[str, Any], facets: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]
    ) -> None:
        """Replace a unit's files; its rows are removed first and written last."""
        remove(self._inside(record_file(row["unit"])))
        stem = Path(image_file(row["unit"], 0))
        for path in (self.path / stem.parent).glob(f"{stem.name.partition('_')[0]}_*"):
            if path.relative_to(self.path).as_posix() not in files:
                remove(self._inside(os.fspath(path.relative_to(self.path))))
        for name, content in files.items():
            write_whole(self._inside(name), content)
        record = json.dumps({"key": key, "row": row, "facets": facets}, indent=1)
        write_whole(self._inside(record_file(row["unit"])), record.encode())

    def finish(self, records: Sequence[Mapping[str, Any]], seed: int) -> None:
        """Write the tables and the map of all units, and mark the atlas as finished.

        Labels of units that were redone are left out.
        """
        rows = [dict(record["row"]) for record in records]
        _adjust(rows)
        facets = [row for record in records for row in record["facets"]]
        self._write_tables(rows, facets, self._kept_labels(records))
        arrays = dict[str, NDArray[Any]]()
        for layer in dict.fromkeys(row["layer"] for row in rows):
            names = [row["unit"] for row in rows if row["layer"] == layer and row["status"] == "done"]
            sets = [self.read_facets(name) for name in names]
            if len({one.codes.shape[1] for one in sets}) > 1:
                raise RunError(f"codes of {layer} differ in length; remove {self.path / 'units'} to redo all")
            centers = np.concatenate([one.centers for one in sets]) if sets else np.zeros((0, 1), np.float32)
            arrays |= {f"{layer}/centers": centers, f"{layer}/map": _map(centers, seed)}
        write_whole(self._inside("codes.safetensors"), tensor_file(arrays, {"format": str(ATLAS_FORMAT)}))
        self.manifest["status"] = "finished"
        self.write_manifest()

    def write_labels(self, labels: AtlasLabels) -> None:
        """Write ``labels.json``, and the texts to the tables."""
        self._write_json(LABELS, labels.model_dump(mode="json"))
        self._write_tables(self.units, self.facets, labels)

    def _kept_labels(self, records: Sequence[Mapping[str, Any]]) -> AtlasLabels | None:
        """Remove the labels of units that were redone or are gone; return the others."""
        labels = read_labels(self.path, AtlasLabels)
        if labels is None:
            return None
        known = {record["row"]["unit"]: (record["key"], len(record["facets"])) for record in records}
        kept = {name: its for name, its in labels.units.items() if known.get(name) == (its.key, len(its.facets))}
        labels = labels.model_copy(update={"units": kept})
        if kept:
            self._write_json(LABELS, labels.model_dump(mode="json"))
        else:
            remove(self._inside(LABELS))
        return labels

    def _write_tables(
        self, rows: Sequence[dict[str, Any]], facets: Sequence[dict[str, Any]], labels: AtlasLabels | None
    ) -> None:
        """Write ``units.json`` and ``facets.json`` with the texts of labels."""
        units = {} if labels is None else labels.units
        for row in rows:
            if row["status"] == "done":
                row["label"] = units[row["unit"]].unit.text if row["unit"] in units else None
        for row in facets:
            row["label"] = units[row["unit"]].facets[row["index"]].text if row["unit"] in units else None
        self._write_json("units.json", rows)
        self._write_json("facets.json", facets)

    def add_timings(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds of each part of the work to the manifest's."""
        known = self.manifest["timings"]
        self.manifest["timings"] = {**known, **{part: known.get(part, 0.0) + value for part, value in seconds.items()}}
        self.write_manifest()

    def write_manifest(self) -> None:
        """Write ``manifest.json``."""
        self._write_json("manifest.json", self.manifest)

    def _write_json(self, name: str, value: Any) -> None:
        write_whole(self._inside(name), json.dumps(value, indent=1).encode())

    def _inside(self, name: str) -> Path:
        try:
            return inside(self.path, name)
        except ValueError as error:
            raise RunError(f"{os.fspath(self.path)}: {error}") from error


def _new_manifest(settings: Mapping[str, Any], sizes: Mapping[str, int | None]) -> dict[str, Any]:
    return {
        "format": ATLAS_FORMAT,
        "kind": "atlas",
        "status": "running",
        **sizes,
        "settings": settings,
        "versions": installed_versions(),
        "timings": {},
    }


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add the p-values, corrected over the units of each layer (Benjamini and Hochberg 1995)."""
    for layer in {row["layer"] for row in rows}:
        done = [row for row in rows if row["layer"] == layer and row["status"] == "done"]
        adjusted = false_discovery_control([row["p_value"] for row in done]) if done else []
        for row, p_value in zip(done, adjusted, strict=True):
            row["p_adjusted"] = float(p_value)


def _map(centers: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return coordinates of centers in the plane, (n, 2), by t-SNE of their principal components."""
    n = len(centers)
    if n < 5:
        return np.column_stack([np.arange(n), np.zeros(n)]).astype(np.float32)
    lengths = np.linalg.norm(centers - centers.mean(0), axis=1, keepdims=True)
    directions = (centers - centers.mean(0)) / np.maximum(lengths, 1e-30)
    reduced = PCA(min(_COMPONENTS, *directions.shape), random_state=seed).fit_transform(directions)
    embedding = TSNE(2, perplexity=min(30.0, (n - 1) / 3), init="random", random_state=seed)
    return np.asarray(embedding.fit_transform(reduced), np.float32)
