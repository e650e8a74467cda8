"""The page of an atlas: ``index.html``, and the files in ``data/`` that the page loads as needed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captum_mfv.errors import ImageError, RunError
from captum_mfv.images.files import open_image
from captum_mfv.labels import Label
from captum_mfv.report.provenance import Provenance, without_folders
from captum_mfv.report.templates import fill, save
from captum_mfv.runs.atlas import AtlasFolder, image_file
from captum_mfv.runs.settings import AtlasSettings, RunSettings
from captum_mfv.storage.files import remove, write_whole
from captum_mfv.storage.untrusted import inside, visible, within

__all__ = ["build", "fill_page", "page_files"]

_SCRIPTS = ("dom", "data", "state", "query", "wall", "table", "map", "unit", "controls", "keyboard")
_UNITS = 100  # units of a chunk
_NEIGHBORS = 8
_TILE, _TILES = 32, 64  # pixels of a tile on the map, tiles of a sprite's side
_BLOCK = 512  # rows of a block of cosines
_INDEX = re.compile(r"[0-9]+|direction-[0-9a-f]{8}")
_OWN = re.compile(r"(?:units|facets-[0-9]+|map)\.js|sprites-[0-9]+\.webp")
_START, _END = 'atlasChunk("%s", ', ");\n"  # of a script in data/
_FIGURES = ("n_images", "peak", "multifacetedness", "p_value", "p_adjusted", "n_facets", "coverage", "retention")
_OF_FACET = (*("size", "activation", "stability", "stability_interval", "image_activation"), "activation_percentile")


def build(folder: AtlasFolder) -> Path:
    """Write ``index.html`` and ``data/`` of an atlas's folder and return the page's path.

    Raises:
        RunError: if the atlas isn't finished, or its files can't be read or contradict each other.
    """
    if not folder.finished:
        raise RunError(f"{folder.path} isn't finished; rerun the command that makes it")
    files = page_files(folder)
    try:
        data = within(folder.path, "data")
        for path in data.iterdir() if data.is_dir() else ():
            if _OWN.fullmatch(path.name) and f"data/{path.name}" not in files:
                remove(path)
        page = files.pop("index.html")
        for name, file in files.items():
            write_whole(inside(folder.path, name), file)
        return save(inside(folder.path, "index.html"), page)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder.path}: the page can't be written: {error}") from error


def page_files(folder: AtlasFolder, provenance: Provenance | None = None) -> dict[str, bytes]:
    """Return the page of a finished atlas and the files that it loads, beside images, by their paths.

    With a provenance, the page is for publication: without images, names and numbers of real images.

    Raises:
        RunError: if the atlas's files can't be read or contradict each other.
    """
    content = _Content(folder, provenance is None)
    files = {f"data/{name}.js": _chunk(name, value) for name, value in content.chunks()}
    files |= {f"data/{name}": sprite for name, sprite in content.sprites()}
    model = (provenance.settings if provenance else folder.manifest["settings"]).get("model", "a network")
    return files | {"index.html": fill_page(files, str(model), provenance)}


def fill_page(files: Mapping[str, bytes], model: str, provenance: Provenance | None = None) -> bytes:
    """Return ``index.html`` for the files that it loads, ``data/…`` by their paths, of an atlas of a model."""
    units = json.loads(files["data/units.js"][len(_START % "units") : -len(_END)])
    content = b"".join(files[name] for name in sorted(files))
    nonce = base64.b64encode(hashlib.sha256(content).digest()).decode()  # no text in the files can contain it
    return fill(
        "atlas.html",
        parts=("atlas", *(f"scripts/{name}" for name in _SCRIPTS)),
        images="'self' file: data:",
        scripts=f"'nonce-{nonce}'",  # of the scripts that the page adds; hosts and schemes differ between browsers
        nonce=nonce,
        provenance=provenance,
        model=model,
        layers=[layer["name"] for layer in units["layers"]],
        n_units=len(units["layer"]),
        n_facets=sum(map(len, units["sizes"])),
    )


def _chunk(name: str, value: Any) -> bytes:
    """Return a script that hands a value to the page."""
    return f"{_START % name}{json.dumps(value, separators=(',', ':'))}{_END}".encode()


@dataclass(eq=False)
class _Content:
    """Contents of an atlas's page, with or without its real images."""

    folder: AtlasFolder
    real: bool

    @cached_property
    def layers(self) -> dict[str, str]:
        """The folder of each layer's images, by the layer's name."""
        found = {}
        for row in self.folder.units:
            if row["unit"] != f"{row['layer']}:{row['index']}" or not _INDEX.fullmatch(str(row["index"])):
                raise RunError(f"{self.folder.path}: units.json names a unit {row['unit']!r}, which no atlas has")
            found[row["layer"]] = Path(image_file(row["unit"], 0)).parent.name
        return found

    @cached_property
    def positions(self) -> dict[str, int]:
        """The place of each unit in the table, by name."""
        return {row["unit"]: position for position, row in enumerate(self.folder.units)}

    @cached_property
    def facets(self) -> list[list[dict[str, Any]]]:
        """The rows of each unit's facets."""
        found: list[list[dict[str, Any]]] = [[] for _ in self.folder.units]
        for row in self.folder.facets:
            position = self.positions.get(row["unit"], -1)
            if position < 0 or row["index"] != len(found[position]):
                raise RunError(f"{self.folder.path}: facets.json isn't of the units in units.json")
            found[position].append(row)
        if [len(rows) for rows in found] != [row.get("n_facets", 0) for row in self.folder.units]:
            raise RunError(f"{self.folder.path}: facets.json isn't of the units in units.json")
        return found

    def chunks(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and the value of each chunk."""
        yield "units", self._columns()
        neighbors = self._neighbors()
        for number, first in enumerate(range(0, len(self.facets), _UNITS)):
            some = range(first, min(first + _UNITS, len(self.facets)))
            rows = [[self._facet(row, neighbors) for row in self.facets[position]] for position in some]
            commands = [self._command(position) for position in some] if self.real else []
            scores = [self._scores(position) for position in some]
            yield f"facets-{number}", {"rows": rows, "commands": commands, "scores": scores}
        yield "map", self._map()

    def _columns(self) -> dict[str, Any]:
        """Return the table of units, column by column."""
        rows, names = self.folder.units, list(self.layers)
        stabilities = [[row["stability"] for row in its if row["stability"] is not None] for its in self.facets]
        columns: dict[str, Any] = {
            "chunk": _UNITS,
            "real": self.real,
            "layers": [{"name": visible(name), "folder": self.layers[name]} for name in names],
            "layer": [names.index(row["layer"]) for row in rows],
            "index": [str(row["index"]) for row in rows],
            "status": [row["status"] for row in rows],
            "error": {n: self._error(row) for n, row in enumerate(rows) if row.get("error") is not None},
            "label": {n: label for n, row in enumerate(rows) if (label := _text(row))},
            "labels": {n: labels for n, its in enumerate(self.facets) if any(labels := list(map(_text, its)))},
            "namer": self._namer(),
            "sizes": [[row["size"] for row in its] for its in self.facets],
            "stability": [_short(float(np.mean(values))) if values else None for values in stabilities],
        }
        return columns | {name: [_short(row.get(name)) for row in rows] for name in _FIGURES}

    def _error(self, row: Mapping[str, Any]) -> str:
        """Return why a unit failed; without real images, only the type of the error, whose text may name files."""
        text = visible(row["error"])
        return text if self.real else re.split(r"\W", text, maxsplit=1)[0]

    def _facet(self, row: Mapping[str, Any], neighbors: Mapping[tuple[str, int], Any]) -> dict[str, Any]:
        """Return a facet's row for the page."""
        real = row["members"] if self.real else ()
        members = [[visible(one["path"]), _short(one["activation"]), _short(one["distance"])] for one in real]
        return {
            **{name: _short(row.get(name)) for name in _OF_FACET},
            "retention": row["retention"],
            "members": members,
            "neighbors": neighbors[row["unit"], row["index"]],
        }

    def _namer(self) -> list[Any] | None:
        """Return the name of what labeled the facets and the number of its words; None without labels."""
        labels = self.folder.labels
        if labels is None:
            return None
        name = labels.namer if self.real else without_folders("model", labels.namer)
        return [visible(name), labels.n_words]

    def _scores(self, position: int) -> list[Any] | None:
        """Return how well the label of a unit, and then that of each of its facets, holds; None without labels."""
        units = {} if self.folder.labels is None else self.folder.labels.units
        its = units.get(self.folder.units[position]["unit"])
        return None if its is None else [_score(label) for label in (its.unit, *its.facets)]

    def _neighbors(self) -> dict[tuple[str, int], list[tuple[int, int, float]]]:
        """Return the facets of other units that are nearest to each facet: place of the unit, facet, cosine."""
        found = {}
        for layer in self.layers:
            rows, centers = self._rows(layer), self.folder.centers(layer).astype(np.float32)
            self._check(layer, rows, centers)
            units = np.array([self.positions[row["unit"]] for row in rows])
            centers = centers - centers.mean(0) if len(centers) else centers
            centers /= np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-30)
            for first in range(0, len(rows), _BLOCK):
                cosines = centers[first : first + _BLOCK] @ centers.T
                cosines[units[first : first + _BLOCK, None] == units] = -np.inf
                order = _largest(cosines)
                for row, values, places in zip(rows[first : first + _BLOCK], cosines, order, strict=True):
                    found[row["unit"], row["index"]] = [
                        (int(units[place]), int(rows[place]["index"]), round(float(values[place]), 3))
                        for place in places.tolist()
                        if np.isfinite(values[place])
                    ]
        return found

    def _map(self) -> dict[str, Any]:
        """Return the place of each facet on its layer's map, column by column, in the order of the sprites' tiles."""
        order = {id(row): tile for tile, row in enumerate(self.folder.facets)}
        columns = []
        for layer in self.layers:
            rows, places = self._rows(layer), self.folder.map(layer)
            self._check(layer, rows, places, 2)
            columns.append(
                {
                    "x": [_short(float(x)) for x in places[:, 0]],
                    "y": [_short(float(y)) for y in places[:, 1]],
                    "unit": [self.positions[row["unit"]] for row in rows],
                    "facet": [row["index"] for row in rows],
                    "tile": [order[id(row)] for row in rows],
                }
            )
        n_sprites = -(-len(order) // _TILES**2)
        return {"tile": _TILE, "tiles": _TILES, "sprites": n_sprites, "layers": columns}

    def sprites(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the content of each image of tiles, a tile for each facet."""
        rows = self.folder.facets
        for number, first in enumerate(range(0, len(rows), _TILES**2)):
            some = rows[first : first + _TILES**2]
            sprite = Image.new("RGB", (_TILE * _TILES, _TILE * -(-len(some) // _TILES)), "#888")
            for place, row in enumerate(some):
                tile = self._tile(image_file(row["unit"], row["index"]))
                if tile is not None:
                    sprite.paste(tile, (place % _TILES * _TILE, place // _TILES * _TILE))
            buffer = BytesIO()
            sprite.save(buffer, "webp", quality=85, method=4)
            yield f"sprites-{number}.webp", buffer.getvalue()

    def _tile(self, name: str) -> Image.Image | None:
        """Return a facet's image as a tile, or None if it can't be read."""
        try:
            image = open_image(inside(self.folder.path, name), ("WEBP",))
        except (ImageError, OSError, ValueError):
            return None
        return image.convert("RGB").resize((_TILE, _TILE), Image.Resampling.BOX)

    def _rows(self, layer: str) -> list[dict[str, Any]]:
        names = {row["unit"] for row in self.folder.units if row["layer"] == layer}
        return [row for row in self.folder.facets if row["unit"] in names]

    def _check(self, layer: str, rows: Sequence[Any], values: NDArray[Any], width: int = 1) -> None:
        if values.ndim != 2 or values.shape[1] < width or len(values) != len(rows) or not np.isfinite(values).all():
            raise RunError(f"{self.folder.path}: codes.safetensors isn't of the facets of {layer} in facets.json")

    def _command(self, position: int) -> str | None:
        """Return the command of a run of one unit, or None if its images can't be given to a run."""
        settings, row = self.folder.manifest["settings"], self.folder.units[position]
        members = self.facets[position][0]["members"] if self.facets[position] else []
        if not members or ".tar/" in members[0]["path"] or not isinstance(row["index"], int):
            return None
        images, top_k = settings.get("images"), settings.get("top_k")
        if images is None:  # images by class: members' paths begin with the folder of the class
            images, top_k = f"{settings.get('class_folders')}/{members[0]['path'].partition('/')[0]}", None
        names = {field.name for field in fields(AtlasSettings)} & {field.name for field in fields(RunSettings)}
        shared = {name: settings[name] for name in names - {"images", "top_k", "facets"} if name in settings}
        try:
            run = RunSettings(unit=row["unit"], images=images, top_k=top_k, facets=row["n_facets"], **shared)
        except (RunError, TypeError):
            return None
        function = images.rpartition(":")[2].isidentifier() and ":" in images
        return None if function else visible(run.command(f"out/{self.layers[row['layer']]}-{row['index']}"))


def _text(row: Mapping[str, Any]) -> str:
    """Return the label of a unit or a facet; "" without one."""
    return "" if row.get("label") is None else visible(row["label"])


def _score(label: Label) -> dict[str, Any] | None:
    """Return the tested words of a label, the best one's AUROC with its interval, and whether the image agrees."""
    if label.score is None:
        return None
    interval = [_short(value) for value in (label.score.value, label.score.low, label.score.high)]
    others = [[visible(word), _short(value)] for word, value in label.runners_up]
    return {"best": visible(label.best), "auroc": interval, "others": others, "agrees": label.agrees}


def _largest(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the places of each row's largest values, the largest first."""
    n = min(_NEIGHBORS, values.shape[1])
    places = np.argpartition(-values, n - 1, axis=1)[:, :n]
    order = np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)


def _short(value: Any) -> Any:
    """Return numbers with four significant digits."""
    if isinstance(value, (list, tuple)):
        return [_short(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
