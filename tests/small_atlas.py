"""A small network with known facets, its images, and atlases of it."""

import json
import textwrap
from pathlib import Path
from typing import Any

from conftest import planted_images

from captum_mfv.images import to_pil
from captum_mfv.jobs.atlas import AtlasSettings

NET = """
    import torch
    from torch import nn
    from captum_mfv import InputSpec

    def make():
        # Detectors of red, green and blue, and units that read some of them. Unit 2 is dead, 3 is the same as 0
        detectors, unit, classes = nn.Conv2d(3, 3, 5, 2, 2), nn.Conv2d(3, 5, 3, 2, 1), nn.Linear(5, 3)
        reads = torch.tensor([[1.0, 1, 0], [1, 0, 0], [-1, -1, -1], [1, 1, 0], [1, 1, 1]])
        with torch.no_grad():
            detectors.weight[:] = ((torch.eye(3) - 1 / 3) / 25)[:, :, None, None]
            unit.weight[:] = (reads / 9)[:, :, None, None]
            classes.weight[:] = torch.eye(5)[[1, 0, 4]]
            for layer in (detectors, unit, classes):
                layer.bias.zero_()
        layers = {"detectors": detectors, "rectified": nn.ReLU(), "unit": unit, "relu": nn.ReLU()}
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classes": classes}
        net = nn.Sequential()
        for name, layer in layers.items():
            net.add_module(name, layer)
        return net, InputSpec(32)
"""


def write_inputs(root: Path, n_each: int = 20) -> Path:
    """Write net.py, and images of red discs, green stripes and blue checks, NUMBER_KIND.png, to images/."""
    (root / "net.py").write_text(textwrap.dedent(NET))
    (root / "images").mkdir()
    images, kinds = planted_images(n_each)
    for number, (image, kind) in enumerate(zip(images, kinds, strict=True)):
        to_pil(image).save(root / "images" / f"{number:03d}_{kind}.png")
    return root


def settings(root: Path, **changes: Any) -> AtlasSettings:
    """Return the settings of an atlas of a few steps: two facets of the 8 strongest images of each unit."""
    options: dict[str, Any] = {"model": f"{root}/net.py:make", "units": "unit:*", "images": str(root / "images")}
    options |= {"top_k": 8, "facets": 2, "steps": 2, "batch": 2, "device": "cpu"}
    return AtlasSettings(**{**options, **changes})


def content(folder: Path) -> dict[str, Any]:
    """Return the bytes of an atlas's files by path, without hidden files and timings."""
    visible = [path for path in folder.rglob("*") if path.is_file() and "/." not in f"/{path.relative_to(folder)}"]
    found: dict[str, Any] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in visible}
    manifest = json.loads(found["manifest.json"])
    return {**found, "manifest.json": {**manifest, "timings": {}}}
