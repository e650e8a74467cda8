"""The folder of one unit's run, as the jobs that fill it see it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from captum_mfv.display.notebook import encoded
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.images import to_pil
from captum_mfv.optvis.render import Rendering
from captum_mfv.runs.folder import PEAKS, RunFolder, array_path, control_path, find_outputs, image_path, own
from captum_mfv.runs.labels import LABELS, RunLabels
from captum_mfv.runs.records import check_place, new_manifest
from captum_mfv.storage.files import remove, sweep, tensor_file, write_whole
from captum_mfv.storage.identity import check_same
from captum_mfv.storage.untrusted import inside, read_json, within

__all__ = ["RunWriter"]

_log = logging.getLogger(__name__)

_UNFINISHED = ".unfinished"


class RunWriter(RunFolder):
    """A `RunFolder` that is written to, stage by stage."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        keys: Mapping[str, str],
        outputs: Mapping[str, Sequence[str]],
        *,
        update: bool = False,
    ) -> Self:
        """Start a run, or resume the one that has the same settings.

        Args:
            path: the folder; new, empty, or of the same run.
            settings: everything that the result depends on, JSON values by name.
            keys: the fingerprint of each stage's input, in the stages' order.
            outputs: the files of each stage, as `runs.folder` describes them.
            update: resume a run with other settings too: redo the stages whose key changed, after removing their
                files.

        Raises:
            RunError: if the folder holds anything else; nothing of it is changed.
        """
        path, settings = Path(path), json.loads(json.dumps(settings))
        if not check_place(path):
            sweep(path)
            return cls(path, new_manifest(settings, dict(keys)))
        folder = cls.read(path)
        if update:
            folder._update(settings, keys, outputs)
        old, new = ({**one, "command": None} for one in (folder.settings, settings))
        check_same(
            old, new, f"{path} holds another run", "choose another folder, or --update to redo what that changes"
        )
        for place, _, _ in os.walk(path):
            sweep(Path(place))
        if folder.finished:
            remove(path / _UNFINISHED)
        return folder

    def done(self, stage: str) -> bool:
        """Return whether a stage is done."""
        return stage in self.manifest["stages"]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and, if it succeeds, record it in the manifest, and write the manifest."""
        began = perf_counter()
        yield
        done = [*self.manifest["stages"], name]
        seconds = perf_counter() - began
        _log.debug("%s took %.1f s", name, seconds)
        self.manifest["stages"] = [stage for stage in self.manifest.get("keys", done) if stage in done]
        self.manifest["timings"][name] = round(seconds, 3)
        self._write_manifest()

    def unfinished(self, name: str) -> Path:
        """Return the path of the state from which an interrupted stage resumes; removed when the run is finished.

        Raises:
            RunError: if a link leads out of the run's folder.
        """
        return own(self.path, f"{_UNFINISHED}/{name}", within)

    def finish(self) -> None:
        """Record that every stage is done."""
        self.manifest["status"] = "finished"
        self._write_manifest()
        remove(self.path / _UNFINISHED)

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, and before the first one the manifest, so that an interrupted run can be resumed."""
        if name != "manifest.json" and not (self.path / "manifest.json").exists():
            self._write_manifest()
        write_whole(own(self.path, name), content)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        self.write(name, (text + "\n").encode("utf-8", "surrogateescape"))

    def write_facets(self, facets: FacetSet, sources: Sequence[Mapping[str, Any]]) -> None:
        """Write ``facets.json`` and the facet set's tensors.

        ``sources`` has the ``path`` of each image, relative to the image folder, and the ``crop`` of each crop: left,
        top, right and bottom in the preprocessed image.
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
                    {**sources[row], "activation": float(facet.activations[i]), "distance": float(facet.distances[i])}
                    for i, row in enumerate(facet.members)
                ],
            }
            for facet in facets
        ]
        self.write_json("facets.json", rows)

    def write_image(self, name: str, image: Tensor) -> None:
        """Write an image, (C, H, W) in [0, 1], as a PNG file; of other than 1 or 3 channels, all of them beside it."""
        if len(image) not in (1, 3):
            buffer = BytesIO()
            np.save(buffer, image.numpy(), allow_pickle=False)
            self.write(array_path(name), buffer.getvalue())
        self.write(name, encoded(to_pil(self.input_spec.display(image)), "PNG"))

    def write_renderings(self, facets: FacetSet, renderings: Sequence[Rendering]) -> None:
        """Write every facet's image and start, and add histories and transparencies (of 255) to the tensors."""
        for rendering in renderings:
            self.write_image(image_path(rendering.facet.index), rendering.image)
            self.write_image(image_path(rendering.facet.index, "_start"), rendering.start)
        terms = renderings[0].history
        histories = {f"history.{term}": np.stack([r.history[term] for r in renderings]) for term in terms}
        transparency = np.stack([(r.transparency * 255).round().byte().numpy() for r in renderings])
        self._write_tensors(facets, {**histories, "transparency": transparency})

    def write_peaks(self, peaks: Mapping[str, Sequence[float]]) -> None:
        """Write the patch of the unit's peak in overlays: the overlay's path, and left, top, right and bottom."""
        if peaks:
            self.write_json(PEAKS, peaks)

    def write_control(self, name: str, key: str, images: Sequence[Tensor]) -> None:
        """Write a control's images, one per facet, as ``controls/NAME/facet_NN.png``, and then its key."""
        remove(own(self.path, control_path(name), within))
        for k, image in enumerate(images):
            self.write_image(control_path(name, f"facet_{k:02d}.png"), image)
        self.write_json(control_path(name, "key.json"), key)

    def write_metrics(self, section: str, values: Mapping[str, Any]) -> None:
        """Write a section of ``metrics.json``, ``run`` or ``judge`` (an independent network); keep the other one."""
        try:
            found = read_json(inside(self.path, "metrics.json"))
        except (OSError, ValueError):
            found = None
        old = found.items() if isinstance(found, dict) else ()
        kept = {name: value for name, value in old if (name == "judge") != (section == "judge")}
        merged = {**kept, **values} if section == "judge" else {**values, **kept}
        if merged:
            self.write_json("metrics.json", merged)
        else:
            remove(own(self.path, "metrics.json"))

    def write_labels(self, labels: RunLabels) -> None:
        """Write ``labels.json``, the labels of the facets."""
        self.write_json(LABELS, labels.model_dump(mode="json"))

    def _write_manifest(self) -> None:
        self.write_json("manifest.json", self.manifest)

    def _write_tensors(self, facets: FacetSet, more: Mapping[str, NDArray[Any]]) -> None:
        arrays = {**facets.arrays(), "centers": facets.centers, **more}
        self.write("tensors.safetensors", tensor_file(arrays, facets.header()))

    def _update(
        self, settings: Mapping[str, Any], keys: Mapping[str, str], outputs: Mapping[str, Sequence[str]]
    ) -> None:
        """Mark stages whose key changed as not done, then remove their files, then record settings and keys.

        A run that is killed in between is in order: stages are marked before any of their files is removed, and the
        old keys stay in the manifest until all are.
        """
        old = self.manifest.get("keys", {})
        changed = [stage for stage in {**keys, **old} if old.get(stage) != keys.get(stage)]
        if not changed:
            return
        names = [name for stage in changed for name in outputs.get(stage, ())]
        paths = find_outputs(self.path, names)
        kept = [stage for stage in self.manifest["stages"] if stage not in changed]
        redone = [stage for stage in self.manifest["stages"] if stage in changed]
        _log.info("to be redone: %s", ", ".join(redone) or "nothing that was done")
        timings = {stage: seconds for stage, seconds in self.manifest["timings"].items() if stage not in changed}
        self.manifest |= {"stages": kept, "status": "running", "timings": timings}
        self._write_manifest()
        for path in paths:
            remove(path)
        for name in names:
            if "#" in name:
                self.write_metrics(name.partition("#")[2], {})
        self.manifest |= {"settings": settings, "keys": dict(keys)}
        self._write_manifest()
