"""What a run's JSON files hold; anyone may have written them, and newer versions may add keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from captum_mfv.storage.schema import FROM_NUMPY, Integer, Number, Record, Seed, Side

__all__ = ["FacetRow", "FinishedSettings", "Manifest", "Member", "Metrics", "Spec"]

_absent: Any = Field(default_factory=lambda: None)  # a key that may be missing, but isn't null where it is present


def _check_channels(values: list[float]) -> list[float]:
    if len(values) not in (1, 3):
        raise ValueError(f"must have 1 or 3 numbers, one per channel, not {len(values)}")
    return values


Channels = Annotated[list[Number], AfterValidator(_check_channels)]


class Spec(Record):
    """`InputSpec`."""

    size: Side
    mean: Channels
    std: Channels
    crop_fraction: Annotated[float, Field(strict=True, ge=0.01, le=1), FROM_NUMPY] = 1.0
    interpolation: str = "bilinear"


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
    recipe_data: dict[str, Any] = _absent


class Manifest(Record):
    """``manifest.json``; the settings are complete once the run is finished (`FinishedSettings`)."""

    format: Integer
    status: str
    settings: dict[str, Any]
    stages: list[str]
    versions: dict[str, str]
    timings: dict[str, Number]
    keys: dict[str, str] = _absent


class Member(Record):
    """A real image of a facet: its path in the image folder, and its crop where the run worked on crops."""

    path: str
    activation: Number
    distance: Number
    crop: tuple[Integer, Integer, Integer, Integer] = _absent


class FacetRow(Record):
    """A facet in ``facets.json``."""

    index: Integer
    size: Integer
    activation: Number
    stability: Number | None
    members: list[Member]
    stability_interval: tuple[Number, Number] | None = None


class _Baseline(Record):
    activation: Number
    percentile: Number
    nearest_facet: Integer


class _Score(_Baseline):
    off_facet: Number = _absent
    real_off_facet: Number | None = None


class _Multifacetedness(Record):
    score: Number
    p_value: Number
    coverage: Number | None


class _Estimate(Record):
    value: Number
    low: Number
    high: Number
    n: Integer


class _NullDistribution(_Estimate):
    p_value: Number


class _Scores(Record):
    retention: _Estimate
    centered: _Estimate
    predicts: _Estimate
    top1: _Estimate | None
    probability: _Estimate | None
    distance: _Estimate | None
    precision: _Estimate | None
    covered: _Estimate | None
    diversity: _Estimate | None


class _Evaluation(Record):
    name: str
    chance: Number
    scores: _Scores
    controls: dict[str, _Scores]
    confusion: list[list[Number]]
    shuffled: _NullDistribution
    held_out: _Estimate | None
    over_seeds: _Estimate | None
    real_predicts: _Estimate
    real_top1: _Estimate | None
    real_probability: _Estimate | None
    separation: _Estimate | None


class Metrics(Record):
    """``metrics.json``; ``judge`` holds the figures of an independent network."""

    facets: list[_Score]
    retention: Number
    chance: Number
    p_value: Number | None
    multifacetedness: _Multifacetedness
    plain: _Baseline = _absent
    agreement: Number = _absent
    adjusted_rand_index: Number = _absent
    judge: _Evaluation | None = None
