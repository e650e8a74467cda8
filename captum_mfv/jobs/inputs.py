"""The input of a run, loaded and checked: cheap checks first, the model last."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_mfv import models
from captum_mfv.activations.layers import resolve
from captum_mfv.display.progress import waiting
from captum_mfv.errors import FacetError, ModelError, RunError
from captum_mfv.images import ImageFolder, InputSpec
from captum_mfv.optvis.recipes import Recipe, get_recipe
from captum_mfv.runs.settings import AtlasSettings, RunSettings
from captum_mfv.storage.identity import fingerprint, weights_fingerprint
from captum_mfv.storage.untrusted import read_json
from captum_mfv.units import Code, Unit

__all__ = ["Inputs", "Network", "find_device", "load_inputs", "load_network", "parse_code", "parse_shard"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Network:
    """The model that settings name, in evaluation mode on its device, and what else the work on any unit needs."""

    model: nn.Module
    spec: InputSpec
    recipe: Recipe
    encoder: nn.Module | None  # of latents
    dtype: torch.dtype | None  # under autocast; None: the model's own


@dataclass(frozen=True, eq=False)
class Inputs(Network):
    """Everything that a run's settings name, loaded and checked; the model is in evaluation mode on its device."""

    job: RunSettings
    unit: Unit
    code: Code
    images: ImageFolder
    groups: Mapping[str, int] | None  # known group of each image by its path in the folder

    def settings(self, out: str) -> dict[str, Any]:
        """Return all settings and fingerprints that the result depends on, and the command that repeats the run."""
        return {
            **asdict(self.job),
            "recipe_data": asdict(self.recipe),
            "n_steps": self.recipe.n_steps,
            "input_spec": asdict(self.spec),
            "images_hash": self.images.files_fingerprint,
            "weights_hash": weights_fingerprint(self.model),
            "direction_hash": None if isinstance(self.unit.index, int) else fingerprint(weights=self.unit.index),
            "sae_hash": None if self.encoder is None else weights_fingerprint(self.encoder),
            "known_groups": None if self.groups is None else len(set(self.groups.values())),
            "labels_hash": None if self.groups is None else fingerprint(labels=self.groups),
            "command": self.job.command(out),
        }


def load_network(job: RunSettings | AtlasSettings, progress: bool = False) -> Network:
    """Load the model, the recipe and the encoder that settings name; check everything else before loading the model.

    Raises:
        MFVError: if something can't be used, naming what and why.
    """
    recipe = get_recipe(job.recipe)
    recipe = recipe if job.steps is None else recipe.with_steps(job.steps)
    dtype, device = models.autocast_dtype(job.dtype), find_device(job.device)
    encoder = None if job.sae is None else models.load_sae(job.sae).to(device)
    _log.info("loading %s", job.model)
    with waiting(f"loading {job.model}", progress):
        model, spec = models.load(job.model, job.weights, progress=progress)
    n_params = sum(param.numel() for param in model.parameters())
    _log.debug("%s: %s, %d parameters, on %s", job.model, spec, n_params, device)
    spec = replace(spec, size=job.input_size or spec.size, crop_fraction=job.crop_fraction or spec.crop_fraction)
    return Network(model.to(device), spec, recipe, encoder, dtype)


def load_inputs(job: RunSettings, progress: bool = False) -> Inputs:
    """Load the input that a run's settings name; check everything else before loading the model.

    Raises:
        MFVError: if something can't be used, naming what and why.
    """
    if job.attribution is not None:
        from captum_mfv.attr import check_method  # here, since importing Captum takes a second

        check_method(job.attribution)
    reduce = job.reduce or ("mean" if job.top_k is None else "max")
    unit = replace(Unit.parse(job.unit), reduce=reduce, channels=job.channels, n_prefix=job.n_prefix)
    code = parse_code(job)
    images = ImageFolder(job.images)
    if job.facets != "auto" and job.facets > len(images):
        raise FacetError(f"{job.facets} facets can't be found in {len(images)} images; ask for 1 to {len(images)}")
    groups = None if job.labels is None else _read_groups(job.labels, images)
    network = load_network(job, progress)
    unit, code = resolve(network.model, replace(unit, encoder=network.encoder), code, network.spec)
    _log.debug("unit %s, read by %s; code: %s of %s", unit, unit.reduce, code.reduce, code.layer)
    images.input_spec = network.spec  # the folder was listed before the model was known
    return Inputs(**vars(network), job=job, unit=unit, code=code, images=images, groups=groups)


def parse_code(job: RunSettings | AtlasSettings) -> Code | None:
    """Return the code that settings name; None: the default."""
    return (parsed := Code.parse(job.code)) and replace(parsed, n_prefix=job.n_prefix)


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Return the number of a shard and of all shards, of a text such as ``3/16``; RunError for any other text."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not int(found[1]) < int(found[2]):
        raise RunError(f"--shard must be I/N, from 0/N to N-1/N, such as 3/16, not {text!r}")
    return int(found[1]), int(found[2])


def find_device(name: str | None) -> torch.device:
    """Return the device of a name, after allocating a tensor on it; None: a GPU if there is one, else the CPU.

    Raises:
        ModelError: if there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"--device {name} can't be used: {reason}") from error
    return device


def _read_groups(path: str, images: ImageFolder) -> dict[str, int]:
    """Read the known groups of images.

    Raises:
        FacetError: if the file is no table of them, or names no image of the folder.
    """
    try:
        groups = {str(name): int(group) for name, group in read_json(Path(path)).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FacetError(f"{path} isn't a JSON table of image path and group number: {error}") from error
    if not any(images.name(i) in groups for i in range(len(images))):
        raise FacetError(
            f"{path} names none of the images in {os.fspath(images.root)}; its names are paths in the folder, such as "
            f"{images.name(0)!r}"
        )
    return groups
