"""The folder of one unit's run, as its readers see it: names of its files, and checked reads of them.

The output of a stage is a relative path, with ``*`` in the file's name; a folder, whose name has no dot; or a section
of ``metrics.json``: ``metrics.json#run`` is what `jobs.run` measures, ``metrics.json#judge`` what `jobs.evaluate` adds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from typing_extensions import Self

from captum_mfv.errors import RunError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import InputSpec
from captum_mfv.images.files import from_pil, open_image
from captum_mfv.images.loading import check_range
from captum_mfv.optvis.render import Rendering
from captum_mfv.runs.images import MemberImages, why_not_read
from captum_mfv.runs.labels import RunLabels, read_labels
from captum_mfv.runs.records import FacetRow, FinishedSettings, Metrics, Peaks, read_manifest
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import inside, read_array, read_json, within

__all__ = [
    "BASELINE",
    "NEAREST",
    "PEAKS",
    "RunFolder",
    "array_path",
    "control_path",
    "find_outputs",
    "image_path",
    "overlay_path",
    "own",
]

BASELINE = "images/plain.png"
"""The image of the whole unit, synthesized without facets."""

NEAREST = 6
"""Members of each facet that are shown: on its card, and with an overlay."""

PEAKS = "attributions/peaks.json"
"""The patch of the unit's peak in the overlays that outline it."""

_MOST = 2**28  # numbers of an image


@dataclass(eq=False)
class RunFolder:
    """The files of one run; each appears whole or not at all.

    The folder holds ``manifest.json`` (format, status, settings, versions, timings), ``facets.json``,
    ``images/facet_NN.png``, ``facet_NN_start.png`` and ``plain.png``, ``attributions/facet_NN.png`` and
    ``facet_NN_member_M.png`` (the M-th nearest), ``attributions/peaks.json`` if overlays outline the patch of the
    unit's peak, ``controls/NAME/facet_NN.png`` where controls were rendered, ``tensors.safetensors``,
    ``metrics.json``, ``labels.json`` if the facets are labeled, ``report.html`` and ``run.toml``, which repeats the
    run. Beside the PNG file of an image of other than 1 or 3 channels, which shows some of them, ``.npy`` holds all,
    (C, H, W). Hidden files are for the run itself: its lock, and the state from which interrupted stages resume.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a run that was written before.

        Raises:
            RunError: if the folder holds no run, or one of another format.
        """
        return cls(Path(path), read_manifest(Path(path)))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run and fingerprints of its input."""
        settings: dict[str, Any] = self.manifest["settings"]
        return settings

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return bool(self.manifest["status"] == "finished")

    @property
    def input_spec(self) -> InputSpec:
        """Preprocessing of the model's input.

        Raises:
            RunError: if the settings are incomplete.
        """
        try:
            return validate(FinishedSettings, self.settings, "settings").input_spec
        except ValueError as error:
            raise RunError(f"{self.path}: the manifest can't be used: {error}") from error

    def read_facets(self, encoder: nn.Module | None = None) -> FacetSet:
        """Read the run's facet set; arguments and errors are those of `FacetSet.load`."""
        return FacetSet.load(self.path, encoder)

    def read_members(self) -> list[dict[str, Any]]:
        """Read the rows of ``facets.json``."""
        rows: list[dict[str, Any]] = _read_record(self.path, "facets.json", list[FacetRow])
        return rows

    def read_metrics(self) -> dict[str, Any]:
        """Read ``metrics.json``."""
        metrics: dict[str, Any] = _read_record(self.path, "metrics.json", Metrics)
        return metrics

    def read_labels(self) -> RunLabels | None:
        """Read ``labels.json``, the labels of the facets; None if ``captum-mfv label`` wasn't run."""
        return read_labels(self.path, RunLabels)

    def member_images(self) -> MemberImages:
        """Return every facet's images as a dataset that reads the run's image folder.

        The manifest may name any folder, so nothing is read of a folder whose file names and sizes aren't those of
        the run's images; ``refused`` says so.
        """
        rows, spec = self.read_members(), self.input_spec
        members = tuple(member for row in rows for member in row["members"])
        labels = np.repeat([row["index"] for row in rows], [len(row["members"]) for row in rows])
        root = Path(self.settings["images"])
        refused = why_not_read(root, members, self.settings.get("images_hash"))
        return MemberImages(root, members, labels.astype(np.int64), spec, refused)

    def read_images(self, facets: FacetSet, suffix: str = "") -> list[Tensor]:
        """Read the saved images, one per facet; with suffix ``_start``, the start images."""
        return [self._read_image(image_path(facet.index, suffix)) for facet in facets]

    def read_renderings(self, facets: FacetSet) -> list[Rendering]:
        """Read the renderings, one per facet; images of 1 or 3 channels and transparencies have 255 levels.

        Raises:
            RunError: if they can't be read, or belong to other facets.
        """
        histories, tensors = self.read_histories(), _read_tensors(self.path, "transparency")
        images, starts = self.read_images(facets), self.read_images(facets, "_start")
        try:
            return [
                Rendering(
                    facet=facet,
                    image=images[k],
                    start=starts[k],
                    history={term: values[k] for term, values in histories.items()},
                    seed=self.manifest["seed"],
                    recipe=self.manifest["recipe"],
                    transparency=torch.from_numpy(tensors[""][k]) / 255,
                    input_spec=self.input_spec,
                )
                for k, facet in enumerate(facets)
            ]
        except (KeyError, IndexError, TypeError) as error:
            raise RunError(f"{self.path}: the tensors aren't of these facets' images: {error!r}") from error

    def read_histories(self) -> dict[str, NDArray[np.float32]]:
        """Read each objective term's value per facet and step, (n_facets, n_steps)."""
        return _read_tensors(self.path, "history.")

    def read_baseline(self) -> Tensor | None:
        """Read the image of the whole unit, synthesized without facets; None in a run that has none."""
        return self._read_image(BASELINE) if (self.path / BASELINE).exists() else None

    def read_overlay(self, index: int, member: int | None = None) -> Tensor | None:
        """Read the overlay of a facet's image or of its member-th nearest member; None if there is none."""
        path = overlay_path(index, member)
        return _read_png(self.path, path) if (self.path / path).exists() else None

    def read_peaks(self) -> dict[str, tuple[float, float, float, float]]:
        """Read the patch of the peak, (left, top, right, bottom), by the path of the overlay with its outline."""
        if not (self.path / PEAKS).exists():
            return {}
        peaks: dict[str, tuple[float, float, float, float]] = _read_record(self.path, PEAKS, Peaks)
        return peaks

    def has_control(self, name: str, key: str) -> bool:
        """Return whether the folder holds a control (`metrics.CONTROLS`) whose images depend on the same input."""
        try:
            return bool(read_json(inside(self.path, control_path(name, "key.json"))) == key)
        except (OSError, ValueError):
            return False

    def read_control(self, name: str, n_facets: int) -> list[Tensor]:
        """Read a control's images, one per facet."""
        return [self._read_image(control_path(name, f"facet_{k:02d}.png")) for k in range(n_facets)]

    def _read_image(self, name: str) -> Tensor:
        """Read an image with all of its channels, (C, H, W) in [0, 1]; RunError if it can't be read."""
        n = self.input_spec.channels
        if n in (1, 3):
            return _read_png(self.path, name)
        try:
            image = torch.from_numpy(read_array(inside(self.path, array_path(name)), _MOST).astype(np.float32))
            if image.ndim != 3 or len(image) != n or image.shape[1] != image.shape[2]:
                raise ValueError(f"its shape is {tuple(image.shape)}, not ({n}, side, side)")
            return check_range(image, "its values")
        except ValueError as error:
            raise RunError(f"{self.path / array_path(name)} can't be read: {error}") from error


def image_path(index: int, suffix: str = "") -> str:
    """Return the relative path of a facet's image; with suffix ``_start``, of the image it started from."""
    return f"images/facet_{index:02d}{suffix}.png"


def array_path(path: str) -> str:
    """Return the path of the file with all channels of an image, beside its PNG file."""
    return f"{path.removesuffix('.png')}.npy"


def overlay_path(index: int, member: int | None = None) -> str:
    """Return the relative path of the overlay of a facet's image, or of its member-th nearest member."""
    return f"attributions/facet_{index:02d}{'' if member is None else f'_member_{member}'}.png"


def control_path(name: str, file: str = "") -> str:
    """Return the relative path of a control's folder, or of one of its files."""
    return f"controls/{'-'.join(re.findall('[a-z]+', name))}/{file}"


def own(folder: Path, name: str, place: Callable[[Path, str], Path] = inside) -> Path:
    """Return the path of something in a run's folder; ``place`` is `inside` for files, `within` for folders too.

    Raises:
        RunError: if a link leads out of the folder, or ``name`` isn't what ``place`` allows.
    """
    try:
        return place(folder, name)
    except ValueError as error:
        raise RunError(f"{folder}: {error}") from error


def _read_record(folder: Path, name: str, kind: Any) -> Any:
    """Read a JSON file of the folder, validated against a type; keys that the type lacks are left out.

    Raises:
        RunError: if the file can't be read or doesn't fit.
    """
    try:
        valid = validate(kind, read_json(inside(folder, name)))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: {name} can't be read: {error}") from error
    return TypeAdapter(kind).dump_python(valid, exclude_unset=True)


def _read_tensors(folder: Path, prefix: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of ``tensors.safetensors`` whose names begin with a prefix, keyed by the rest of the name.

    Raises:
        RunError: if the file can't be read or has no such array.
    """
    try:
        with safe_open(inside(folder, "tensors.safetensors"), framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            found = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder}: tensors.safetensors can't be read: {error}") from error
    if not found:
        raise RunError(f"{folder}: tensors.safetensors holds no {prefix.rstrip('.')}; is the run finished?")
    return found


def _read_png(folder: Path, name: str) -> Tensor:
    """Read a square PNG file of the folder as (C, H, W) in [0, 1].

    Raises:
        RunError: if the file can't be read or isn't square.
    """
    try:
        image = open_image(inside(folder, name), ("PNG",), keep=("L",))
    except ValueError as error:
        raise RunError(f"{folder / name} can't be read: {error}") from error
    if image.width != image.height:
        raise RunError(f"{folder / name} can't be read: it isn't square")
    return from_pil(image)


def find_outputs(folder: Path, outputs: Iterable[str]) -> list[Path]:
    """Return the existing files and folders of some outputs; sections of a file are checked and left out.

    Raises:
        RunError: if a link leads out of the folder. An output folder that is a link is returned itself.
    """
    found: list[Path] = []
    for output in outputs:
        name, _, section = output.partition("#")
        parent, _, pattern = name.rpartition("/")
        place = own(folder, parent or ".", within)
        if "." not in pattern:
            found.append(place / pattern)
            continue
        paths = [own(folder, path.relative_to(folder).as_posix()) for path in sorted(place.glob(pattern))]
        found += [] if section else paths
    return found
