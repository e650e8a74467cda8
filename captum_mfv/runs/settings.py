"""The settings of a run and of an atlas, declared once for Python, the commands, TOML files and JSON Schema."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from captum_mfv.errors import RunError
from captum_mfv.runs.options import Option, OptionTable
from captum_mfv.storage.schema import Flag, Fraction, NotNegative, Positive, Seed, Side, Steps, declare

__all__ = ["ATLAS", "RUN", "AtlasOptions", "AtlasSettings", "RunSettings"]

_INPUT, _FACETS, _IMAGES, _RUN, _OTHER = "Model, unit and images", "Facets", "Synthesized images", "The run", "Other"
_WORK = "Work"
_HEADINGS = (_INPUT, _FACETS, _IMAGES, _WORK, _RUN, _OTHER)


def _to_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Text = Annotated[str, BeforeValidator(_to_text)]


@declare(RunError, kw_only=True)
class _Shared:
    """Settings that a run and an atlas have in common."""

    weights: Annotated[Text | None, Option(_INPUT, "FILE", "the model's own", names="file")] = None
    """Weights file: safetensors, or a .pt/.pth that holds only tensors."""

    sae: Annotated[Text | None, Option(_INPUT, "FILE|FOLDER", names="file")] = None
    """Sparse autoencoder of the unit's layer: the unit's index is then a latent."""

    reduce: Annotated[
        Literal["mean", "max", "center", "cls", "patches"] | None, Option(_INPUT, "HOW", "mean; with --top-k: max")
    ] = None
    """How positions become one number: mean, max, center, cls (the class token) or patches (the mean of the others)."""

    channels: Annotated[Literal["first", "last"] | None, Option(_INPUT, "first|last")] = None
    """Channel axis of the unit's layer, if neither the layer nor the next one shows it."""

    n_prefix: Annotated[NotNegative | None, Option(_INPUT, "N", "as the model declares")] = None
    """Number of class and register tokens before the patches, if the model doesn't declare it; 0 if there are none."""

    input_size: Annotated[Side | None, Option(_INPUT, "PIXELS", "the model's own")] = None
    """Side of the model's input."""

    crop_fraction: Annotated[Fraction | None, Option(_INPUT, "SHARE", "the model's own")] = None
    """Share of a resized image that the center crop keeps, per side; 1 for images that were cropped before."""

    code: Annotated[Text | None, Option(_FACETS, "LAYER[:REDUCE]", "last layer with positions, below a head")] = None
    """Layer whose output describes an image."""

    recipe: Annotated[Text, Option(_IMAGES, "NAME|FILE", names="recipe")] = "facet"
    """A name that `captum-mfv list recipes` prints, or a .json file."""

    steps: Annotated[Steps | None, Option(_IMAGES, "N", "the recipe's")] = None
    """Number of optimization steps."""

    size: Annotated[Side | None, Option(_IMAGES, "PIXELS", "the model's input size")] = None
    """Side of the synthesized images."""

    dtype: Annotated[Literal["bfloat16", "float16"] | None, Option(_IMAGES, "TYPE", "the model's own")] = None
    """bfloat16 or float16: autocast while images are synthesized, for GPUs."""

    device: Annotated[Text | None, Option(_RUN, "DEVICE", "a GPU if there is one")] = None
    """cpu, cuda, cuda:1, mps …."""

    seed: Annotated[Seed, Option(_RUN, "N")] = 0
    """Seed of all random numbers."""

    def given(self) -> dict[str, str | int | float]:
        """Return the settings that aren't None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def command(self, out: str) -> str:
        """Return the command that runs these settings."""
        options = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in self.given().items()]
        name = "run" if isinstance(self, RunSettings) else "atlas"
        return " ".join([f"captum-mfv {name}", *options, f"--out {shlex.quote(out)}"])


@declare(RunError)
class RunSettings(_Shared):
    """The settings of one unit's run.

    Raises:
        RunError: if a value is invalid; the message names the setting.
    """

    model: Annotated[Text, Option(_INPUT, names="model")]
    """A name of torchvision, timm:NAME, hf:NAME (transformers), open_clip:ARCHITECTURE/WEIGHTS (image tower); or
    file.py:function (which is run)."""

    unit: Annotated[Text, Option(_INPUT, "LAYER:INDEX", names="unit")]
    """The unit, e.g. features.12:37 or fc:945; `captum-mfv list layers` names the layers. LAYER:FILE.npy is a
    direction: one weight per channel, written by numpy.save."""

    images: Annotated[Text, Option(_INPUT, "FOLDER", names="folder")]
    """Folder of images that activate the unit; with --top-k, of any images."""

    top_k: Annotated[Positive | None, Option(_INPUT, "K")] = None
    """For a hidden unit: use only the K images with the largest activation, cropped to the peak's receptive field."""

    facets: Annotated[Positive | Literal["auto"], Option(_FACETS, "N|auto")] = 10
    """Number of facets; auto: as many as there are clusters, which may be one."""

    labels: Annotated[Text | None, Option(_FACETS, "FILE", names="file")] = None
    """JSON table of image path → known group; adds the adjusted Rand index of the facets to the metrics."""

    attribution: Annotated[Text | None, Option(_IMAGES, "METHOD", "shares of the code layer")] = None
    """A class of captum.attr for the overlays, e.g. IntegratedGradients."""

    @model_validator(mode="after")
    def _check(self) -> RunSettings:
        if self.top_k is not None and self.facets != "auto" and self.facets > self.top_k:
            raise ValueError(f"top_k must be at least the number of facets, {self.facets}, not {self.top_k}")
        return self


@declare(RunError)
class AtlasSettings(_Shared):
    """The settings of an atlas: the facets of many units.

    Raises:
        RunError: if a value is invalid; the message names the setting.
    """

    model: Annotated[Text, Option(_INPUT, names="model")]
    """A name of torchvision, timm:NAME, hf:NAME (transformers), open_clip:ARCHITECTURE/WEIGHTS (image tower); or
    file.py:function (which is run)."""

    units: Annotated[Text, Option(_INPUT, "UNITS|FILE", names="units")]
    """Units, separated by commas: features.12:0-511, features.9:3,7,20-29, or layer4.2:* for all of a layer; or a file
    with such a line for each layer."""

    images: Annotated[Text | None, Option(_INPUT, "FOLDER", names="dataset")] = None
    """Folder of any images, which are scanned for those that activate each unit most; a tar archive or a folder of
    them, such as shards of WebDataset; or file.py:function, which returns a map-style dataset."""

    class_folders: Annotated[Text | None, Option(_INPUT, "FOLDER", names="folder")] = None
    """Instead of --images, for class units: a folder with a folder of images for each class."""

    classes: Annotated[Text | None, Option(_INPUT, "FILE", names="file")] = None
    """JSON table of folder in --class-folders → index of the class unit."""

    top_k: Annotated[Positive, Option(_INPUT, "K")] = 100
    """Number of images of each unit: those with the largest activation, cropped to the peak's receptive field."""

    facets: Annotated[Positive | Literal["auto"], Option(_FACETS, "N|auto")] = "auto"
    """Number of facets of each unit; auto: as many as there are clusters, which may be one."""

    max_facets: Annotated[Positive, Option(_FACETS, "N")] = 6
    """Largest number of facets by auto; the nearest clusters are merged."""

    batch: Annotated[Positive | None, Option(_WORK, "N", "8, on a GPU 64")] = None
    """Number of units whose images are synthesized together, and after which work is stored."""

    @model_validator(mode="after")
    def _check(self) -> AtlasSettings:
        if (self.images is None) == (self.class_folders is None):
            raise ValueError("give images, which are scanned, or class_folders, a folder of images for each class")
        if (self.class_folders is None) != (self.classes is None):
            raise ValueError("class_folders and classes need each other")
        if self.facets != "auto" and self.facets > self.top_k:
            raise ValueError(f"top_k must be at least the number of facets, {self.facets}, not {self.top_k}")
        return self


@declare(RunError)
class CommandOptions:
    """Options of ``captum-mfv run`` that don't change the result."""

    out: Annotated[Text, Option(_RUN, "FOLDER", names="folder")]
    """The run's folder."""

    update: Annotated[Flag, Option(_RUN)] = False
    """In a folder that holds a run with other settings or input, redo the stages that depend on what changed."""

    quiet: Annotated[Flag, Option(_OTHER, letter="-q")] = False
    """Print only warnings and errors."""

    verbose: Annotated[Flag, Option(_OTHER, letter="-v")] = False
    """Print also layers, code, the duration of each stage, and all warnings."""


@declare(RunError)
class AtlasOptions:
    """Options of ``captum-mfv atlas`` that don't change the result."""

    out: Annotated[Text, Option(_RUN, "FOLDER", names="folder")]
    """The atlas's folder."""

    jobs: Annotated[Positive, Option(_WORK, "N")] = 1
    """Number of processes, which share the cores; with several GPUs, one for each."""

    engine: Annotated[Literal["processes", "dask", "ray"], Option(_WORK, "processes|dask|ray")] = "processes"
    """What runs the processes: joblib on this machine, Dask or Ray; pip install "captum-mfv[dask]" or "[ray]"."""

    address: Annotated[Text | None, Option(_WORK, "ADDRESS", "a cluster on this machine")] = None
    """Address of a Dask scheduler or a Ray cluster to connect to."""

    threads: Annotated[Positive | None, Option(_WORK, "N", "this machine's cores, shared by --jobs")] = None
    """Number of threads of each process; give it where the workers' machines have other cores."""

    shard: Annotated[Text | None, Option(_WORK, "I/N")] = None
    """Do only the I-th of N parts, 0 to N-1, as the jobs of an array do; --merge joins them."""

    merge: Annotated[Flag, Option(_WORK)] = False
    """Join the parts of --shard: write the tables of all units that are done."""

    workers: Annotated[NotNegative, Option(_WORK, "N")] = 0
    """Number of processes that decode images, for each of --jobs; 0: a thread."""

    retry_failed: Annotated[Flag, Option(_WORK)] = False
    """Redo the units that failed."""

    dry_run: Annotated[Flag, Option(_WORK)] = False
    """Measure a few batches, print how long the atlas will take, and write nothing."""

    update: Annotated[Flag, Option(_RUN)] = False
    """In a folder that holds an atlas with other settings or input, redo the units that depend on what changed."""

    quiet: Annotated[Flag, Option(_OTHER, letter="-q")] = False
    """Print only warnings and errors."""

    verbose: Annotated[Flag, Option(_OTHER, letter="-v")] = False
    """Print also the duration of each part, and all warnings."""

    @model_validator(mode="after")
    def _check(self) -> AtlasOptions:
        if self.address is not None and self.engine == "processes":
            raise ValueError("address needs engine dask or ray")
        return self


RUN = OptionTable("run", (RunSettings, CommandOptions), _HEADINGS)
"""The options of ``captum-mfv run``."""

ATLAS = OptionTable("atlas", (AtlasSettings, AtlasOptions), _HEADINGS)
"""The options of ``captum-mfv atlas``."""
