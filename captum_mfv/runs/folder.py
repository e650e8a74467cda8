"""The folder of one unit's run: write it stage by stage, read it, resume it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captum_mfv._version import __version__
from captum_mfv.errors import RunError
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import InputSpec, from_pil, open_image, to_pil
from captum_mfv.optvis.render import Rendering
from captum_mfv.runs.member_images import MemberImages, why_not_read
from captum_mfv.runs.records import FacetRow, FinishedSettings, Manifest, Metrics
from captum_mfv.storage.files import remove, sweep, tensor_file, write_whole
from captum_mfv.storage.schema import validate
from captum_mfv.storage.untrusted import inside, read_json, within

__all__ = ["FORMAT", "NEAREST", "RunFolder"]


_log = logging.getLogger(__name__)


FORMAT = 1
"""Version of the folder's layout, in its manifest."""


NEAREST = 6
"""Members of each facet that are shown: on its card, and with an overlay."""


_PLAIN = "images/plain.png"


_UNFINISHED = ".unfinished"


_LEFT: Mapping[str, Sequence[str]] = {
    "facets": ("facets.json", "tensors.safetensors"),
    "images": ("images", "controls"),
    "plain image": (_PLAIN,),
    "attributions": ("attributions",),
    "metrics": ("metrics.json",),
    "report": ("report.html", "run.toml", "recipe.json"),
}
"""What the stages of a run leave in its folder."""


_PACKAGES = ("torch", "torchvision", "captum", "torch-lucent", "scikit-learn", "numpy", "pillow")


class RunFolder:
    """The files of one run; each appears whole or not at all.

    The folder holds ``manifest.json`` (format, status, settings, versions, timings), ``facets.json``,
    ``images/facet_NN.png``, ``facet_NN_start.png`` and ``plain.png``, ``attributions/facet_NN.png`` and
    ``facet_NN_member_M.png`` (the M-th nearest), ``controls/NAME/facet_NN.png`` where controls were drawn,
    ``tensors.safetensors``, ``metrics.json``, ``report.html`` and ``run.toml``, which repeats the run. Hidden
    files are for the run itself: its lock, and what stopped stages go on from.

    Args:
        path: the folder.
        manifest: its manifest.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        needs: Mapping[str, Sequence[str]],
        *,
        update: bool = False,
    ) -> RunFolder:
        """Begin a run, or continue the one that has the same settings.

        Args:
            path: the folder; new, empty, or of the same run.
            settings: all that the result depends on, JSON values by name.
            needs: of each stage, in order, the settings that it depends on beside those of the stages before.
            update: continue a run with other settings too, from the first stage that depends on what changed; what
                later stages left is removed.

        Raises:
            RunError: if something else is there; nothing of it is touched.
        """
        path, settings = Path(path), json.loads(json.dumps(settings))
        keys = _keys(settings, needs)
        if (path / "manifest.json").exists():
            folder = cls.read(path)
            if update:
                folder._forget([stage for stage in needs if folder.manifest.get("keys", {}).get(stage) != keys[stage]])
                folder.manifest |= {"settings": settings, "keys": keys}
            folder._check_same(settings)
            for place, _, _ in os.walk(path):
                sweep(Path(place))
            if folder.finished:
                remove(path / _UNFINISHED)
            return folder
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another folder for the run")
        if path.is_dir() and any(not item.name.startswith(".") for item in path.iterdir()):
            raise RunError(f"{path} isn't empty and holds no run; choose another folder for the run")
        sweep(path)
        manifest = {
            "format": FORMAT,
            "status": "running",
            "settings": settings,
            "keys": keys,
            "versions": _versions(),
            "stages": [],
            "timings": {},
        }
        return cls(path, manifest)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunFolder:
        """A run that was written before.

        Raises:
            RunError: if the folder holds no run, or one of another format.
        """
        path = Path(path)
        try:
            manifest = read_json(inside(path, "manifest.json"))
            found = manifest["format"]
            if found == FORMAT:
                validate(Manifest, manifest, "the manifest")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} holds no run that can be read: {error}") from error
        if found != FORMAT:
            raise RunError(f"{path} has format {_short(found)}, and this version reads format {FORMAT}")
        return cls(path, manifest)

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was asked to do."""
        settings: dict[str, Any] = self.manifest["settings"]
        return settings

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return bool(self.manifest["status"] == "finished")

    def done(self, stage: str) -> bool:
        """Whether a stage was finished before."""
        return stage in self.manifest["stages"]

    @contextmanager
    def stage(self, name: str, **facts: Any) -> Iterator[None]:
        """Time a stage and, once it ends well, note it and the facts in the manifest."""
        began = perf_counter()
        yield
        self.manifest["stages"].append(name)
        seconds = perf_counter() - began
        self.manifest["timings"][name] = round(seconds, 3)
        _log.debug("%s took %.1f s", name, seconds)
        self.manifest.update(facts)
        self._write_manifest()

    def unfinished(self, name: str) -> Path:
        """A place for what a stopped stage goes on with; it is removed when the run is finished.

        Raises:
            RunError: if a link leads it out of the run's folder.
        """
        return self._own(f"{_UNFINISHED}/{name}", within)

    def finish(self) -> None:
        """Note that every stage is done."""
        self.manifest["status"] = "finished"
        self._write_manifest()
        remove(self.path / _UNFINISHED)

    def write_facets(self, facets: FacetSet, sources: Sequence[Mapping[str, Any]]) -> None:
        """Write ``facets.json`` and the facet set's tensors.

        Args:
            facets: the facets.
            sources: of each image, its ``path``, relative to the image folder, and, if it is a crop, as
                ``crop`` its left, top, right and bottom in the image as the model sees it.
        """
        self._write_tensors(facets, {})
        rows = [
            {
                "index": facet.index,
                "size": len(facet),
                "activation": float(facet.activations.mean()),
                "stability": facet.stability,
                "stability_interval": facet.stability_interval,
                "members": [
                    {**sources[member], "activation": float(activation), "distance": float(distance)}
                    for member, activation, distance in zip(
                        facet.members, facet.activations, facet.distances, strict=True
                    )
                ],
            }
            for facet in facets
        ]
        self.write_json("facets.json", rows)

    def read_facets(self) -> FacetSet:
        """The facet set of the run."""
        return FacetSet.load(self.path)

    def read_members(self) -> list[dict[str, Any]]:
        """The rows of ``facets.json``."""
        rows: list[dict[str, Any]] = self._read_json("facets.json", list[FacetRow])
        return rows

    @property
    def input_spec(self) -> InputSpec:
        """What turned images into the model's input.

        Raises:
            RunError: if the settings don't tell.
        """
        try:
            return InputSpec(**validate(FinishedSettings, self.settings, "settings").input_spec.model_dump())
        except ValueError as error:
            raise RunError(f"{self.path}: the manifest can't be used: {error}") from error

    def member_images(self) -> MemberImages:
        """Every facet's images, from the run's image folder.

        A manifest that somebody else wrote may name any folder, so nothing is read of one that hasn't the names
        and sizes of the run's images; ``refused`` says so.
        """
        rows, spec = self.read_members(), self.input_spec
        members = tuple(member for row in rows for member in row["members"])
        labels = np.repeat([row["index"] for row in rows], [len(row["members"]) for row in rows])
        root = Path(self.settings["images"])
        refused = why_not_read(root, members, self.settings.get("images_hash"))
        return MemberImages(root, members, labels.astype(np.int64), spec, refused)

    def write_renderings(self, facets: FacetSet, renderings: Sequence[Rendering]) -> None:
        """Write every facet's image and start, and add histories and transparencies (of 255) to the tensors."""
        for rendering in renderings:
            name = f"images/facet_{rendering.facet.index:02d}"
            self._write(self.path / f"{name}.png", _png(rendering.image))
            self._write(self.path / f"{name}_start.png", _png(rendering.start))
        terms = renderings[0].history
        histories = {f"history.{term}": np.stack([r.history[term] for r in renderings]) for term in terms}
        transparency = np.stack([(r.transparency * 255).round().byte().numpy() for r in renderings])
        self._write_tensors(facets, {**histories, "transparency": transparency})

    def read_images(self, facets: FacetSet, suffix: str = "") -> list[Tensor]:
        """The images as they were saved, one a facet; with suffix ``_start``, the start images."""
        names = [f"images/facet_{facet.index:02d}{suffix}.png" for facet in facets]
        return [_read_png(self.path, name) for name in names]

    def has_control(self, name: str, n_facets: int) -> bool:
        """Whether every image of a control (`metrics.CONTROLS`) is there."""
        return all((self.path / path).exists() for path in self._control(name, n_facets))

    def write_control(self, name: str, images: Sequence[Tensor]) -> None:
        """Write a control's images, one a facet, as ``controls/NAME/facet_NN.png``."""
        for path, image in zip(self._control(name, len(images)), images, strict=True):
            self._write(self.path / path, _png(image))

    def read_control(self, name: str, n_facets: int) -> list[Tensor]:
        """A control's images as they were saved, one a facet."""
        return [_read_png(self.path, path) for path in self._control(name, n_facets)]

    def _control(self, name: str, n_facets: int) -> list[str]:
        slug = "-".join(re.findall("[a-z]+", name))
        return [f"controls/{slug}/facet_{k:02d}.png" for k in range(n_facets)]

    def _own(self, name: str, place: Callable[[Path, str], Path] = inside) -> Path:
        """The path of one of the folder's files, or of something else in it, which no link leads out of it."""
        try:
            return place(self.path, name)
        except ValueError as error:
            raise RunError(f"{self.path}: {error}") from error

    def read_renderings(self, facets: FacetSet) -> list[Rendering]:
        """What `write_renderings` wrote, images and transparencies rounded to 255 levels, one a facet."""
        histories, tensors = self.read_histories(), self._read_tensors("transparency")
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
                )
                for k, facet in enumerate(facets)
            ]
        except (KeyError, IndexError, TypeError) as error:
            raise RunError(f"{self.path}: the tensors aren't of these facets' images: {error!r}") from error

    def write_plain(self, rendering: Rendering) -> None:
        """Write the image that the whole unit has without facets."""
        self._write(self.path / _PLAIN, _png(rendering.image))

    def read_plain(self) -> Tensor | None:
        """The image that the whole unit has without facets; None in a run that has none."""
        return _read_png(self.path, _PLAIN) if (self.path / _PLAIN).exists() else None

    def read_overlay(self, index: int, member: int | None = None) -> Tensor | None:
        """The overlay of a facet's image or of its member-th nearest member; None if there is none."""
        name = f"attributions/facet_{index:02d}{'' if member is None else f'_member_{member}'}.png"
        return _read_png(self.path, name) if (self.path / name).exists() else None

    def read_histories(self) -> dict[str, NDArray[np.float32]]:
        """Term → (n_facets, n_steps)."""
        return self._read_tensors("history.")

    def _read_tensors(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The tensors whose names begin so, by the rest of the name."""
        try:
            with safe_open(inside(self.path, "tensors.safetensors"), framework="numpy") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
                found = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{self.path}: tensors.safetensors can't be read: {error}") from error
        if not found:
            raise RunError(f"{self.path}: tensors.safetensors holds no {prefix.rstrip('.')}; is the run finished?")
        return found

    def write_overlays(self, index: int, overlays: Sequence[bytes]) -> None:
        """Write the overlays of a facet as PNG files: of its image, then of its nearest members."""
        names = ["", *(f"_member_{n}" for n in range(len(overlays) - 1))]
        for name, overlay in zip(names, overlays, strict=True):
            self._write(self.path / f"attributions/facet_{index:02d}{name}.png", overlay)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``."""
        self.write_json("metrics.json", metrics)

    def read_metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        metrics: dict[str, Any] = self._read_json("metrics.json", Metrics)
        return metrics

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file."""
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        self._write(self.path / name, (text + "\n").encode("utf-8", "surrogateescape"))

    def _read_json(self, name: str, kind: Any) -> Any:
        try:
            value = read_json(inside(self.path, name))
            validate(kind, value)
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: {name} can't be read: {error}") from error
        return value

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file whole; before the first one the manifest, by which a stopped run is known again."""
        if path.name != "manifest.json" and not (self.path / "manifest.json").exists():
            self._write_manifest()
        write_whole(self._own(path.relative_to(self.path).as_posix()), content)

    def _write_manifest(self) -> None:
        self.write_json("manifest.json", self.manifest)

    def _write_tensors(self, facets: FacetSet, more: Mapping[str, NDArray[Any]]) -> None:
        arrays = {**facets.arrays(), "centers": facets.centers, **more}
        self._write(self.path / "tensors.safetensors", tensor_file(arrays, facets.header()))

    def _check_same(self, settings: Mapping[str, Any]) -> None:
        old = self.settings
        other = [name for name in {**old, **settings} if old.get(name) != settings.get(name) and name != "command"]
        if other:
            changes = ", ".join(f"{n} {_short(old.get(n))} there, {_short(settings.get(n))} here" for n in other[:3])
            what_would_do = "choose another folder, or --update to redo what that changes"
            raise RunError(f"{self.path} holds another run ({changes}); {what_would_do}")

    def _forget(self, stages: Sequence[str]) -> None:
        """Take stages back, first in the manifest, so that a stop in between is harmless, and remove what they left."""
        kept = [stage for stage in self.manifest["stages"] if stage not in stages]
        if kept == self.manifest["stages"]:
            return
        _log.info("to be done again: %s", ", ".join(stages))
        names = [name for stage in stages for name in _LEFT.get(stage, ())]
        # a file may lie in a linked folder, which is refused; of a folder that is a link, `remove` takes the link
        left = [self._own(name) if "." in name else self.path / name for name in names]
        self.manifest |= {"stages": kept, "status": "running"}
        self._write_manifest()
        for path in [*left, self.path / _UNFINISHED]:
            remove(path)


def _keys(settings: Mapping[str, Any], needs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A hash of all that each stage depends on, by its name."""
    found: dict[str, str] = {}
    digest = hashlib.sha256()
    for stage, names in needs.items():
        digest.update(json.dumps([stage, {name: settings[name] for name in names}], sort_keys=True).encode())
        found[stage] = digest.hexdigest()[:16]
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _png(image: Tensor) -> bytes:
    buffer = BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def _read_png(folder: Path, name: str) -> Tensor:
    try:
        image = open_image(inside(folder, name), ("PNG",), grey=True)
    except ValueError as error:
        raise RunError(f"{folder / name} can't be read: {error}") from error
    if image.width != image.height:
        raise RunError(f"{folder / name} can't be read: it isn't square")
    return from_pil(image)


def _versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"captum-mfv": __version__, "python": platform.python_version(), **installed}
