"""The patch at which a unit that is read by the maximum over tokens is most active in an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_mfv.activations.batching import Scan
from captum_mfv.activations.capture import Outputs
from captum_mfv.activations.layers import patch_grid, resolve_units
from captum_mfv.images import Images, InputSpec
from captum_mfv.units import Unit

__all__ = ["peak_patches"]


def peak_patches(
    model: nn.Module, unit: Unit | str, images: Images, *, input_spec: InputSpec | None = None, batch_size: int = 32
) -> Tensor:
    """Find the patch of each image at which a unit that is read by ``max`` over tokens is most active.

    Args:
        model: the model, unchanged afterwards.
        unit: the unit.
        images: images in [0, 1], from any dataset.
        input_spec: preprocessing from images in [0, 1] to the model's input.
        batch_size: images in a forward pass at most.

    Returns:
        (N, 4) left, top, right and bottom of the patch in pixels of the image. NaN if the maximum is at a class or
        register token, the image can't be read, or the unit isn't read by ``max`` over tokens.

    Raises:
        UnitError: if the unit isn't in the model, or the model doesn't show where the patches are.
    """
    spec = input_spec or InputSpec()
    (unit,) = resolve_units(model, [unit], spec)
    boxes = torch.full((len(images), 4), torch.nan)
    grid = patch_grid(model, unit, spec) if unit.reduce == "max" else None
    if grid is None:
        return boxes

    def read(outputs: Outputs, batch: Tensor) -> Outputs:
        places = unit.pick(unit.read_positions(outputs[unit.layer_name])).argmax(1) - grid.n_prefix
        height, width = batch.shape[2] / grid.rows, batch.shape[3] / grid.columns
        rows, columns = places // grid.columns, places % grid.columns
        found = torch.stack([columns * width, rows * height, (columns + 1) * width, (rows + 1) * height], 1)
        return {"boxes": found.where(places[:, None] >= 0, torch.nan)}

    def take(indices: list[int], rows: Outputs) -> None:
        boxes[indices] = rows["boxes"].to(boxes)

    Scan(model, images, spec, [unit.layer_name], read, batch_size, None, progress=False).run(take)
    return boxes
