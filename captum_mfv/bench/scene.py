"""A cell, loaded: its network, images and facets, and what the evaluating networks return for the images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_mfv import models
from captum_mfv.activations.top_k import TopImages, top_images
from captum_mfv.bench.suite import Cell, Suite, safe_name
from captum_mfv.errors import RunError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.facets.finder import find_facets
from captum_mfv.images import Images, InputSpec
from captum_mfv.jobs.atlas.plan import names_function, open_dataset
from captum_mfv.metrics import Judge, JudgeOutput, LabeledOutput
from captum_mfv.storage.files import Checkpoint, write_whole
from captum_mfv.storage.identity import (
    canonical,
    check_same,
    content_fingerprint,
    dataset_fingerprint,
    fingerprint,
    weights_fingerprint,
)
from captum_mfv.storage.untrusted import is_file, is_folder, read_json
from captum_mfv.units import Code, Unit

__all__ = ["Scene", "Scenes"]

_OUTPUTS = ("codes", "probabilities", "top1")


@dataclass(frozen=True, eq=False)
class Scene:
    """A cell's input, and what it is compared with.

    Args:
        cell: the cell.
        model: the network that has the unit.
        spec: preprocessing of the network's input.
        images: the images that activate the unit.
        facets: the facets of the unit.
        judges: the suite's other networks, by name.
        real: the judges' output for the images, and each image's facet.
        fingerprint: fingerprint of the weights, images and facets on which all figures of the cell depend.
    """

    cell: Cell
    model: nn.Module
    spec: InputSpec
    images: Images
    facets: FacetSet
    judges: Mapping[str, Judge]
    real: Mapping[str, LabeledOutput]
    fingerprint: str


def _file_of(name: str) -> str | None:
    """Return the file in ``file.py:function``; None for other names."""
    path, _, _ = name.rpartition(":")
    return path if path.endswith(".py") else None


@dataclass(frozen=True, eq=False)
class Scenes:
    """The cells of a suite, loaded one at a time; each network is loaded once.

    Facets, the judges' output for real images, and scans of folders for hidden units are kept in ``folder``, so that
    they are computed once.

    Args:
        suite: the suite.
        data: the folder with the suite's images, weights and models; None if the suite needs none.
        folder: the folder in which is kept what was computed; it is created.
        device: where the networks run.
    """

    suite: Suite
    data: Path | None
    folder: Path
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    _networks: dict[str, tuple[nn.Module, InputSpec, str]] = field(default_factory=dict, init=False, repr=False)

    def check(self, cells: list[Cell]) -> None:
        """Check that the data folder has what cells need.

        Raises:
            RunError: if a folder or a file is missing.
        """
        for cell in cells:
            if not names_function(cell.source.images):
                place = self._place(cell.source.images, f"the images of {cell.name}")
                if not is_folder(place):
                    raise RunError(
                        f"{place} isn't a folder; suite {self.suite.name} has the images of {cell.name} there"
                    )
        files = {(_file_of(cell.source.images), f"the images of {cell.name}") for cell in cells}
        for name, network in self.suite.networks.items():
            files |= {(network.weights, f"network {name}"), (_file_of(network.model), f"network {name}")}
        for file, what in sorted((file, what) for file, what in files if file is not None):
            if not is_file(place := self._place(file, what)):
                raise RunError(f"there is no file {place}, which suite {self.suite.name} needs for {what}")

    def network(self, name: str) -> tuple[nn.Module, InputSpec]:
        """Return a network of the suite and its preprocessing."""
        return self._network(name)[:2]

    def images(self, cell: Cell) -> tuple[Images, InputSpec]:
        """Return a cell's images, all or those that activate the unit most, and the preprocessing for these."""
        spec, source = self.network(cell.network)[1], cell.source
        photos = self._dataset(cell)
        if source.crop_fraction is not None:
            spec = replace(spec, crop_fraction=source.crop_fraction)
        if hasattr(photos, "input_spec"):
            photos.input_spec = spec
        if source.top_k is None:
            return photos, spec
        top = self._top_images(cell, photos, spec)
        return top, top.input_spec

    def facets(self, cell: Cell) -> FacetSet:
        """Return a cell's facets, from the file of an earlier call if there is one."""
        images, spec = self.images(cell)
        return self._facets(cell, images, spec)

    def scene(self, cell: Cell) -> Scene:
        """Return a cell's input.

        Raises:
            RunError: if the folder holds a cell of the same name with other weights, images or settings.
            MFVError: if a network or images can't be loaded, or facets can't be found.
        """
        model, _, weights = self._network(cell.network)
        images, spec = self.images(cell)
        facets = self._facets(cell, images, spec)
        judges = {name: self._judge(cell, name) for name in self.suite.networks if name != cell.network}
        real = {name: self._output(cell, name, judge, images, facets) for name, judge in judges.items()}
        parts = {
            "weights": weights,
            "input_spec": spec,
            "unit": facets.unit,
            "code": facets.code,
            "images": dataset_fingerprint(images),
            "labels": content_fingerprint(facets.labels),  # and not the codes, which differ by rounding
            "judges": {name: self._judge_parts(name, judge) for name, judge in judges.items()},
        }
        return Scene(cell, model, spec, images, facets, judges, real, fingerprint(**parts))

    def _place(self, name: str, what: str) -> Path:
        if self.data is None:
            raise RunError(f"--data is missing: the folder with {name}, {what} in suite {self.suite.name}")
        return self.data / name

    def _placed(self, name: str, what: str) -> str:
        """Return the name of a model or of a function, a ``file.py`` in the data folder."""
        return name if _file_of(name) is None else str(self._place(name, what))

    def _network(self, name: str) -> tuple[nn.Module, InputSpec, str]:
        """Return a network, its preprocessing, and the fingerprint of its weights."""
        if name not in self._networks:
            network = self.suite.networks[name]
            weights = None if network.weights is None else self._place(network.weights, f"network {name}")
            model, spec = models.load(self._placed(network.model, f"network {name}"), weights)
            if network.mean is not None and network.std is not None:
                spec = replace(spec, mean=network.mean, std=network.std)
            self._networks[name] = model.to(self.device), spec, weights_fingerprint(model)
        return self._networks[name]

    def _dataset(self, cell: Cell) -> Any:
        source, what = cell.source.images, f"the images of {cell.name}"
        return open_dataset(self._placed(source, what) if names_function(source) else str(self._place(source, what)))

    def _top_images(self, cell: Cell, photos: Images, spec: InputSpec) -> TopImages:
        """Return a unit's top images; one scan serves all units of the network that share images and number."""
        source = cell.source
        alike = [
            other
            for other in (*self.suite.cells(), *self.suite.cells(tuning=True))
            if other.network == cell.network
            and (other.source.images, other.source.top_k, other.source.crop_fraction)
            == (source.images, source.top_k, source.crop_fraction)
        ]
        units = list(dict.fromkeys(other.unit for other in alike))
        store = self.folder / "top" / safe_name(f"{cell.network}-{source.images}-{source.top_k}-{source.crop_fraction}")
        assert source.top_k is not None
        top = top_images(self.network(cell.network)[0], units, photos, source.top_k, input_spec=spec, store=store)
        found = top[units.index(cell.unit)]
        if not len(found):
            raise RunError(f"{cell.name}: {found.why_empty}")
        return found

    def _code(self, name: str) -> Code | None:
        return Code.parse(self.suite.networks[name].code)

    def _facets(self, cell: Cell, images: Images, spec: InputSpec) -> FacetSet:
        place = self.folder / cell.name
        path, record = place / "facets.safetensors", place / "cell.json"
        model, _, weights = self._network(cell.network)
        code, n_facets = self._code(cell.network), cell.source.n_facets
        wanted = canonical({"weights": weights, "unit": cell.unit, "code": code, "input_spec": spec})
        wanted |= {"images": dataset_fingerprint(images), "n_facets": n_facets}
        if is_file(record):
            try:
                stored = dict(read_json(record))
            except (OSError, ValueError, TypeError) as error:
                raise RunError(f"{record} can't be read: {error}; remove it") from error
            check_same(stored, wanted, f"{place} is of another cell", "choose another --out")
        if not (path.exists() and record.exists()):  # the record is written last
            find_facets(model, cell.unit, images, n_facets=n_facets, code=code, input_spec=spec).save(path)
            write_whole(record, json.dumps(wanted, indent=2).encode())
        facets = FacetSet.load(path)
        if len(facets.labels) != len(images) or len(facets) != n_facets:
            raise RunError(
                f"{path} has {len(facets)} facets of {len(facets.labels)} images, not {n_facets} of {len(images)}; "
                f"choose another --out"
            )
        return facets

    def _judge(self, cell: Cell, name: str) -> Judge:
        model, spec = self.network(name)
        layer, index = self.suite.networks[name].class_layer, cell.unit.index
        unit = None if cell.class_name is None or layer is None else Unit(layer, index)
        return Judge(model, unit, self._code(name), spec)

    def _judge_parts(self, name: str, judge: Judge) -> dict[str, Any]:
        """Return everything that a judge's output for an image depends on."""
        return {
            "weights": self._network(name)[2],
            **{part: getattr(judge, part) for part in ("unit", "code", "input_spec")},
        }

    def _output(self, cell: Cell, name: str, judge: Judge, images: Images, facets: FacetSet) -> LabeledOutput:
        """Return a judge's output for a cell's images, from a file if there is one."""
        parts = {**self._judge_parts(name, judge), "images": dataset_fingerprint(images)}
        file = Checkpoint(self.folder / cell.name / f"{safe_name(name)}.safetensors", parts, what="evaluation")
        if (state := file.load()) is None:
            found = vars(judge(images))
            state = {part: torch.from_numpy(found[part]) for part in _OUTPUTS if found[part] is not None}
            file.save(state)
        return LabeledOutput(JudgeOutput(**{part: values.numpy() for part, values in state.items()}), facets.labels)
