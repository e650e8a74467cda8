"""``captum-mfv evaluate``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from captum_mfv.cli.options import SEED

__all__ = ["evaluate"]

_COLUMNS = ("retention", "centered", "predicts", "top1", "probability", "distance")


@click.command()
@click.argument("folder")
@click.option(
    "--judge",
    required=True,
    metavar="MODEL",
    help="The independent network: a torchvision name, or file.py:function (which is run).",
)
@click.option("--judge-weights", help="The independent network's weights file.  [default: the model's own]")
@click.option("--judge-unit", metavar="LAYER:INDEX", help="The class's logit there, for top-1 and probability.")
@click.option(
    "--judge-code", metavar="LAYER[:REDUCE]", help="The layer that describes images.  [default: last with maps]"
)
@click.option(
    "--judge-input",
    nargs=2,
    type=float,
    metavar="MEAN STD",
    help="Mean and std of all channels.  [default: the model's]",
)
@click.option("--held-out", metavar="FOLDER", help="Images of the class that the run didn't use; needs --model.")
@click.option(
    "--control",
    "controls",
    multiple=True,
    metavar="NAME",
    help="A control to render and evaluate too, or `all`; needs --model, and takes as long as the run's images did.",
)
@click.option("--model", help="The run's model (a file.py is run), for controls and held-out images.")
@click.option("--weights", help="The weights file of --model.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps ….  [default: a GPU if there is one]")
@click.option("--seed", type=SEED, default=0, help="Seed of bootstrap samples.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def evaluate(folder: str, **options: Any) -> None:
    """Evaluate the images of a finished run's FOLDER by an independent network.

    Writes retention, prediction, transfer, naturalness and their controls, with 95 % intervals, to
    metrics.json, and rebuilds the page. `captum-mfv list controls` lists the controls.

    \b
    captum-mfv evaluate out/pepper --judge resnet50 --judge-unit fc:945
    captum-mfv evaluate out/pepper --judge resnet50 --judge-unit fc:945 \\
        --control "shuffled clusters" --control "half of the images" --model squeezenet1_0
    """
    click.echo(_table(_evaluate(folder, **options)))


def _table(found: Any) -> str:
    """Return an evaluation as text: the images' scores, then a table of controls and of the real images."""
    more = {"held-out images": found.held_out, "same facet, another seed": found.over_seeds}
    figures = {**vars(found.scores), **more}
    lines = [
        f"{name:26}{one.value:.2f} ({one.low:.2f} to {one.high:.2f}, n = {one.n})"
        for name, one in figures.items()
        if one is not None
    ]
    columns = [name for name in _COLUMNS if getattr(found.scores, name) is not None]
    real = {"predicts": found.real_predicts, "top1": found.real_top1, "probability": found.real_probability}
    rows = {name: vars(scores) for name, scores in {"these images": found.scores, **found.controls}.items()}
    lines += ["", " " * 21 + "".join(f"{name:>{len(name) + 2}}" for name in columns)]
    for name, row in {**rows, "all real images": real}.items():
        cells = ("" if (one := row.get(column)) is None else f"{one.value:.2f}" for column in columns)
        widths = (len(column) + 2 for column in columns)
        lines.append(f"{name:21}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join([*lines, f"{'chance':21}" + f"{found.chance:>{len('retention') + 2}.2f}"])


def _evaluate(
    path: str,
    judge: str,
    judge_weights: str | None,
    judge_unit: str | None,
    judge_code: str | None,
    judge_input: tuple[float, float] | None,
    held_out: str | None,
    controls: tuple[str, ...],
    model: str | None,
    weights: str | None,
    device: str | None,
    seed: int,
    quiet: bool,
) -> Any:
    from captum_mfv import models
    from captum_mfv.images import ImageFolder
    from captum_mfv.jobs.evaluation import check_evaluation, evaluate
    from captum_mfv.jobs.inputs import find_device
    from captum_mfv.metrics import CONTROLS, Judge
    from captum_mfv.runs.folder import RunFolder
    from captum_mfv.storage.files import hold
    from captum_mfv.units import Code, Unit

    folder = RunFolder.read(path)
    controls = tuple(CONTROLS) if controls == ("all",) else controls
    check_evaluation(folder, controls)
    own, place = folder.input_spec, find_device(device)
    unit, code = None if judge_unit is None else Unit.parse(judge_unit), Code.parse(judge_code)
    images = None if held_out is None else ImageFolder(held_out, own)
    network, spec = models.load(judge, judge_weights)
    if judge_input is not None:
        mean, std = ((number,) * spec.channels for number in judge_input)
        spec = replace(spec, mean=mean, std=std)
    with hold(path):
        return evaluate(
            folder,
            Judge(network.to(place), unit, code, spec),
            judge_name=judge,
            controls=controls,
            held_out=images,
            model=None if model is None else models.load(model, weights)[0].to(place),
            seed=seed,
            progress=not quiet,
        )
