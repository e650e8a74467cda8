"""Stream a dataset through a model once: units' activations and a code for every image, and the top images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from captum_mfv import models
from captum_mfv.activations import LayerCall, capture, code_layer, guard, layer_name, place, trace
from captum_mfv.errors import ImageError, MFVWarning, UnitError
from captum_mfv.fields import Field, receptive_field
from captum_mfv.images import ImageFolder, Images, InputSpec, batches, image_at
from captum_mfv.memory import Portions, at_once
from captum_mfv.store import Store
from captum_mfv.units import Code, Unit, channels_second, is_channels_last

__all__ = ["Collection", "TopImages", "View", "collect", "resolve", "top_images"]

View: TypeAlias = Callable[[Tensor], Tensor]
Outputs: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Collection:
    """What a unit and a code layer say of each image of a dataset; NaN where it can't be read.

    Args:
        unit: the unit, its layer by name.
        code: the code, its layer by name.
        indices: (n,) where the images that could be read stand in the dataset.
        activations: (n_images,) float32, the unit's activation.
        codes: (n_images, D) float32.
        views: (n_images, D') float32, what a function of the caller's says of each image, or None.
    """

    unit: Unit
    code: Code
    indices: NDArray[np.int64]
    activations: NDArray[np.float32]
    codes: NDArray[np.float32]
    views: NDArray[np.float32] | None


def collect(
    model: nn.Module,
    unit: Unit,
    images: Images,
    *,
    code: Code | str | None = None,
    view: View | None = None,
    input_spec: InputSpec | None = None,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Collection:
    """A unit's activation and a code for every image of a dataset, in one pass.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: the unit.
        images: a map-style dataset of images in [0, 1].
        code: which numbers describe an image; a layer's name means its mean over positions. By default
            the last layer with positions before the unit, pooled so.
        view: another description of images: a function from (N, C, H, W) in [0, 1] to (N, D').
        input_spec: what turns images into the model's input.
        batch_size: images that are read ahead together, and in one forward pass at most: a CPU takes fewer at once.
        store: a folder for the rows, memory-mapped: memory stays bounded, and the same call goes on where
            a stopped one ended. By default rows are held in memory.
        progress: show a progress bar.

    Raises:
        UnitError: if the unit or the code isn't in the model, or is ambiguous.
        ImageError: if no image can be read.
        RunError: if the store holds rows of another model, unit, code or dataset.
    """
    spec = input_spec or InputSpec()
    unit, code = resolve(model, unit, code, spec)

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        rows = {"activations": unit.read(outputs[unit.layer_name]), "codes": code.read(outputs[code.layer])}
        return rows if view is None else {**rows, "views": _view(view, batch.to(rows["codes"].device))}

    facts = {"unit": asdict(unit), "code": asdict(code), "view": None if view is None else type(view).__name__}
    stream = _Pass(model, images, spec, batch_size, store, progress)
    rows = stream.rows([unit.layer_name, code.layer], read, facts)
    indices = np.flatnonzero(rows["read"] == 1)
    views = rows["views"] if view is not None else None
    return Collection(unit, code, indices, rows["activations"], rows["codes"], views)


@dataclass(frozen=True, eq=False)
class TopImages:
    """The images that activate a unit most, strongest first; a dataset itself.

    Items are (C, H, W) in [0, 1]: of a channel that is read at its peak (``reduce="max"``), the crop that
    holds the peak's receptive field, at the scale of the model's input; else the whole image.

    Args:
        unit: the unit, its layer by name.
        images: the dataset that they are from.
        indices: (n,) where they stand in it.
        activations: (n,) float32, the unit's activation.
        corners: (n, 2) top and left pixel of the crop in the image as the model sees it.
        image_spec: what turns the dataset's images into the model's input.
        input_spec: the same for the crops; give it to what works on them.
    """

    unit: Unit
    images: Images
    indices: NDArray[np.int64]
    activations: NDArray[np.float32]
    corners: NDArray[np.int64]
    image_spec: InputSpec
    input_spec: InputSpec

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        image = self.image_spec.resize(image_at(self.images, int(self.indices[index]))[None])[0]
        (top, left), side = self.corners[index], self.input_spec.size
        return image[:, top : top + side, left : left + side]

    @property
    def cropped(self) -> bool:
        """Whether items are crops."""
        return self.input_spec.size < self.image_spec.size


@overload
def top_images(
    model: nn.Module,
    unit: Unit,
    images: Images,
    k: int = ...,
    *,
    input_spec: InputSpec | None = ...,
    batch_size: int = ...,
    store: str | os.PathLike[str] | None = ...,
    progress: bool = ...,
) -> TopImages: ...


@overload
def top_images(
    model: nn.Module,
    unit: Sequence[Unit],
    images: Images,
    k: int = ...,
    *,
    input_spec: InputSpec | None = ...,
    batch_size: int = ...,
    store: str | os.PathLike[str] | None = ...,
    progress: bool = ...,
) -> list[TopImages]: ...


def top_images(
    model: nn.Module,
    unit: Unit | Sequence[Unit],
    images: Images,
    k: int = 200,
    *,
    input_spec: InputSpec | None = None,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> TopImages | list[TopImages]:
    """The images of a dataset that activate a unit most, for one unit or many in one pass.

    Of a channel of a map, ``Unit(layer, index, "max")`` asks for its peaks: each image counts once, by its
    strongest position, and is cropped to what that position sees. Only images on which the activation is
    above zero count: a dead unit has none.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: a unit, or several.
        images: a map-style dataset of images in [0, 1].
        k: how many at most.
        input_spec: what turns images into the model's input.
        batch_size: images that are read ahead together, and in one forward pass at most: a CPU takes fewer at once.
        store: a folder for every image's activations, as in `collect`.
        progress: show a progress bar.

    Returns:
        The top images of the unit; of several, a list in their order.

    Raises:
        UnitError: if a unit isn't in the model, or is ambiguous, or is finite on no image.
        ImageError: if no image can be read, or ``k`` is below 1.
        RunError: if the store holds rows of another model, units or dataset.

    Warns:
        MFVWarning: if a unit isn't finite on some images, which are left out.
    """
    if k < 1:
        raise ImageError(f"k must be at least 1 image, not {k}")
    spec = input_spec or InputSpec()
    grey = spec.feed(model)(spec.grey())
    units = _resolve_units(model, [unit] if isinstance(unit, Unit) else unit, grey, trace(model, grey))
    layers = list(dict.fromkeys(one.layer_name for one in units))

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        values, peaks = zip(*(_peak(one, outputs[one.layer_name]) for one in units), strict=True)
        return {"activations": torch.stack(values, 1), "peaks": torch.stack(peaks, 1)}

    facts = {"units": [asdict(one) for one in units]}
    rows = _Pass(model, images, spec, batch_size, store, progress).rows(layers, read, facts)
    _check_finite(units, rows["activations"][np.flatnonzero(rows["read"] == 1)])
    peaked = dict.fromkeys(one.layer_name for one in units if one.reduce == "max")
    fields = {name: receptive_field(model, name, spec) for name in peaked}
    found = [
        _top(one, images, rows["activations"][:, i], rows["peaks"][:, i], k, fields.get(one.layer_name), spec)
        for i, one in enumerate(units)
    ]
    return found[0] if isinstance(unit, Unit) else found


def _check_finite(units: Sequence[Unit], activations: NDArray[np.float32]) -> None:
    """Tell a unit that is broken from one that is dead."""
    n_images = len(activations)
    for unit, n_wrong in zip(units, (~np.isfinite(activations)).sum(0).tolist(), strict=True):
        if n_wrong == n_images:
            raise UnitError(f"{unit} isn't finite on any of {n_images} images; look for NaN in the weights")
        if n_wrong:
            message = f"{unit} isn't finite on {n_wrong} of {n_images} images; they are left out"
            warnings.warn(message, MFVWarning, stacklevel=3)


def _peak(unit: Unit, output: Tensor) -> tuple[Tensor, Tensor]:
    """A unit's activation, (N,), and row and column of its peak, (N, 2); -1 where it isn't read at a peak."""
    activations = unit.read(output)
    maps = channels_second(output, unit.channels)
    if unit.reduce != "max" or maps.ndim != 4:
        return activations, torch.full((len(output), 2), -1, device=output.device)
    peaks = unit.pick(maps).flatten(1).argmax(1)
    return activations, torch.stack([peaks // maps.shape[3], peaks % maps.shape[3]], 1)


def _top(
    unit: Unit,
    images: Images,
    activations: NDArray[np.float32],
    peaks: NDArray[np.int64],
    k: int,
    field: Field | None,
    spec: InputSpec,
) -> TopImages:
    strength = np.where(np.isfinite(activations), activations, -np.inf)
    order = np.argsort(-strength, kind="stable")[:k]
    order = order[strength[order] > 0]
    if field is None or (peaks[order] < 0).any():
        corners, crop = np.zeros((len(order), 2), np.int64), spec
    else:
        corners = np.array([field.corner(*map(int, peaks[i])) for i in order], np.int64).reshape(-1, 2)
        crop = replace(spec, size=field.crop_size)
    return TopImages(unit, images, order, np.asarray(activations[order]), corners, spec, crop)


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass of a dataset through a model."""

    model: nn.Module
    images: Images
    spec: InputSpec
    batch_size: int
    store: str | os.PathLike[str] | None
    progress: bool

    def rows(
        self, layers: Sequence[str], read: Callable[[Outputs, Tensor], Outputs], facts: Mapping[str, Any]
    ) -> Store:
        """What is read of layers' outputs for every image, a row each; and, as ``read``, 1 where it could be."""
        if not len(self.images):
            raise ImageError(_why_empty(self.images))
        rows = Store(len(self.images), self._facts(facts), self.store)
        feed, portions = self.spec.feed(self.model), Portions(at_once(self.model, self.spec, self.batch_size))
        with (
            guard(self.model),
            tqdm(
                total=len(self.images), initial=rows.n_done, desc="activations", unit="image", disable=not self.progress
            ) as bar,
        ):

            def look(batch: Tensor, part: slice) -> Outputs:
                with torch.no_grad(), capture(self.model, layers) as run:
                    outputs = run(feed(batch[part]))
                return read(outputs, batch[part])  # uncaptured: a view may run the model itself

            if rows.n_done:
                rows.check(_rows([look(self.spec.grey(), slice(None))]))
            for indices, batch in batches(self.images, self.batch_size, self._begin(rows.n_done)):
                rows.write(indices, _rows(portions(len(batch), partial(look, batch))))
                bar.update(rows.n_done - bar.n)
        if "read" not in rows:
            raise ImageError("no image can be read")
        rows.finish()
        return rows

    def _begin(self, n_done: int) -> int:
        """Where to go on: in the batches of a pass that wasn't stopped, since sums of floats know their neighbours."""
        return n_done if n_done == len(self.images) else n_done - n_done % self.batch_size

    def _facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """All that the rows depend on; datasets that aren't folders are told by their length alone."""
        if self.store is None:  # nothing to tell them from, and a folder takes a while to list
            return {}
        images = self.images.digest() if isinstance(self.images, ImageFolder) else None
        return {
            **facts,
            "input_spec": asdict(self.spec),
            "images": images,
            "weights": models.digest(self.model),
        }


def _why_empty(images: Images) -> str:
    if isinstance(images, TopImages):
        return f"no image activates {images.unit} above zero: it is dead, or the dataset doesn't show what it looks for"
    return "the dataset holds no images"


def _rows(parts: Sequence[Outputs]) -> dict[str, NDArray[Any]]:
    """What is noted of each image of a batch that went through in parts."""
    values = {name: _array(torch.cat([part[name] for part in parts])) for name in parts[0]}
    return {"read": np.ones(len(next(iter(values.values()))), np.int8), **values}


def _array(values: Tensor) -> NDArray[Any]:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def _view(view: View, batch: Tensor) -> Tensor:
    codes = view(batch)
    if not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) != len(batch):
        found = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"a function that describes {len(batch)} images must return ({len(batch)}, D), not {found}")
    return codes


def resolve(model: nn.Module, unit: Unit, code: Code | str | None, spec: InputSpec) -> tuple[Unit, Code]:
    """Unit and code with their layers by name, checked against one forward pass of a grey image.

    Raises:
        UnitError: if a layer isn't in the model, doesn't run once, or has no such channel.
    """
    grey = spec.feed(model)(spec.grey())
    calls = trace(model, grey)
    (unit,) = _resolve_units(model, [unit], grey, calls)
    if isinstance(code, str):
        code = Code(layer_name(model, code))
    elif code is None:
        layer = calls[place(calls, code_layer(calls, unit.layer_name))]
        code = Code(layer.name, channels="last" if is_channels_last(layer.shape) else None)
    place(calls, layer_name(model, code.layer))  # refuses a layer that runs never or several times
    with guard(model), torch.no_grad(), capture(model, [code.layer]) as run:
        if code.read(run(grey)[code.layer]).ndim != 2:
            raise UnitError(f"the code of layer {code.layer} isn't (N, D)")
    return unit, code


def _resolve_units(model: nn.Module, units: Sequence[Unit], grey: Tensor, calls: list[LayerCall]) -> list[Unit]:
    units = [replace(unit, layer=layer_name(model, unit.layer)) for unit in units]
    layers = list(dict.fromkeys(unit.layer_name for unit in units))
    for layer in layers:
        place(calls, layer)
    with guard(model), torch.no_grad(), capture(model, layers) as run:
        outputs = run(grey)
    for unit in units:
        unit.read(outputs[unit.layer_name])
    return units
