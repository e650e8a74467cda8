"""The JSON files of a run, declared and validated; anyone may have written them, and newer versions may add keys."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from captum_mfv._version import __version__
from captum_mfv.errors import RunError
from captum_mfv.images import InputSpec
from captum_mfv.metrics import Evaluation, ImageScores, Multifacetedness
from captum_mfv.storage.schema import Integer, Number, Record, Seed, Side, validate
from captum_mfv.storage.untrusted import inside, read_json

__all__ = [
    "ATLAS_FORMAT",
    "FORMAT",
    "AtlasFacetRow",
    "AtlasUnitRow",
    "FacetRow",
    "FinishedSettings",
    "Manifest",
    "Metrics",
    "Peaks",
    "Spec",
    "check_place",
    "installed_versions",
    "is_atlas",
    "new_manifest",
    "read_atlas_manifest",
    "read_manifest",
]

FORMAT = 1
"""Version of the folder's layout, in its manifest."""

ATLAS_FORMAT = 1
"""Version of an atlas's layout, in its manifest."""

_PACKAGES = ("torch", "torchvision", "captum", "torch-lucent", "scikit-learn", "numpy", "pillow")


def _absent() -> Any:
    """Return the field of a key that may be missing, but isn't null where it is present; a new field each time."""
    return Field(default_factory=lambda: None)


def _known(values: Any) -> Any:
    """Leave out keys that `InputSpec` lacks, as a `Record` does."""
    return {k: v for k, v in values.items() if k in InputSpec.__annotations__} if isinstance(values, dict) else values


Spec = Annotated[InputSpec, BeforeValidator(_known)]
"""Preprocessing in a manifest; keys of newer versions are left out."""

Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class FinishedSettings(Record):
    """The settings of a finished run that the package reads again."""

    model: str
    unit: str
    images: str
    recipe: str
    command: str
    seed: Seed
    input_spec: Spec
    images_hash: str | None = None
    size: Side | None = None
    dtype: str | None = None
    recipe_data: dict[str, Any] = _absent()


class Manifest(Record):
    """``manifest.json``; the settings are complete once the run is finished (`FinishedSettings`)."""

    format: Integer
    status: str
    settings: dict[str, Any]
    stages: list[str]
    versions: dict[str, str]
    timings: dict[str, Number]
    keys: dict[str, str] = _absent()


class _Member(Record):
    path: str
    activation: Number
    distance: Number
    crop: tuple[Integer, Integer, Integer, Integer] = _absent()


class FacetRow(Record):
    """A facet in ``facets.json``."""

    index: Integer
    size: Integer
    activation: Number
    stability: Number | None
    members: list[_Member]
    stability_interval: tuple[Number, Number] | None = None


class _Baseline(Record):
    activation: Number
    percentile: Number
    nearest_facet: Integer


@dataclass(frozen=True)
class _NamedEvaluation(Evaluation):
    name: str


class Metrics(Record):
    """``metrics.json``; ``judge`` holds the evaluation by an independent network."""

    facets: list[ImageScores]
    retention: Number
    chance: Number
    p_value: Number | None
    multifacetedness: Multifacetedness
    plain: _Baseline = _absent()
    agreement: Number = _absent()
    adjusted_rand_index: Number = _absent()
    judge: _NamedEvaluation | None = None


class AtlasUnitRow(Record):
    """A unit in ``units.json``; one without facets is dead, or failed with an error."""

    unit: str
    layer: str
    index: Integer | str
    status: Literal["done", "dead", "failed"]
    error: str = _absent()
    n_images: Integer = _absent()
    peak: Number = _absent()
    multifacetedness: Number = _absent()
    p_value: Share = _absent()
    p_adjusted: Share = _absent()
    n_facets: Integer = _absent()
    coverage: Number | None = None
    retention: Number = _absent()
    label: str | None = None

    @model_validator(mode="after")
    def _check(self) -> AtlasUnitRow:
        needed = {"n_images", "peak", "multifacetedness", "p_value", "n_facets", "retention"}
        if self.status == "done" and (lacking := sorted(needed - self.model_fields_set)):
            raise ValueError(f"a unit that is done lacks {lacking[0]}")
        return self


class AtlasFacetRow(Record):
    """A facet in ``facets.json`` of an atlas."""

    unit: str
    index: Integer
    size: Integer
    activation: Number
    stability: Number | None
    stability_interval: tuple[Number, Number] | None = None
    image_activation: Number
    activation_percentile: Number
    retention: bool
    label: str | None = None
    image: str
    members: list[_Member]


class AtlasManifest(Record):
    """``manifest.json`` of an atlas."""

    format: Integer
    kind: Literal["atlas"]
    status: str
    n_units: Integer
    n_images: Integer | None
    settings: dict[str, Any]
    versions: dict[str, str]
    timings: dict[str, Number]


Peaks = dict[str, tuple[Number, Number, Number, Number]]
"""``attributions/peaks.json``: left, top, right and bottom of a patch, by the path of the overlay that outlines it."""


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a run's folder.

    Raises:
        RunError: if the folder holds no run, or one of another format.
    """
    return _read_manifest(path, Manifest, FORMAT, "run")


def read_atlas_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of an atlas's folder.

    Raises:
        RunError: if the folder holds no atlas, or one of another format.
    """
    return _read_manifest(path, AtlasManifest, ATLAS_FORMAT, "atlas")


def is_atlas(path: Path) -> bool:
    """Return whether a folder's manifest is of an atlas; False if it can't be read."""
    try:
        return bool(read_json(inside(path, "manifest.json"))["kind"] == "atlas")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_manifest(path: Path, kind: type[Record], version: int, noun: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = read_json(inside(path, "manifest.json"))
        found = manifest["format"]
        if found == version:
            validate(kind, manifest, "the manifest")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} holds no {noun} that can be read: {error}") from error
    if found != version:
        raise RunError(f"{path} has format {str(found)[:40]}, and this version reads format {version}")
    return manifest


def new_manifest(settings: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the manifest of a run that has done no stage yet."""
    return {
        "format": FORMAT,
        "status": "running",
        "settings": settings,
        "keys": keys,
        "versions": installed_versions(),
        "stages": [],
        "timings": {},
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, of this package, and of the packages on which results depend."""
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"captum-mfv": __version__, "python": platform.python_version(), **installed}


def check_place(path: Path, noun: str = "run") -> bool:
    """Return whether a folder holds a run, or an atlas, already.

    Raises:
        RunError: if the path is a file, or the folder holds anything else than hidden files and what can be read.
    """
    if (path / "manifest.json").exists():
        (read_manifest if noun == "run" else read_atlas_manifest)(path)
        return True
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another folder for the {noun}")
    if path.is_dir() and any(not item.name.startswith(".") for item in path.iterdir()):
        raise RunError(f"{path} isn't empty and holds no {noun}; choose another folder for the {noun}")
    return False
