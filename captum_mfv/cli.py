"""The command ``captum-mfv``."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from captum_mfv._version import __version__
from captum_mfv.errors import FacetError, MFVError, MFVWarning

__all__ = ["main"]

_EPILOG = "Exit status: 0 done; 2 the input can't be used, one line says why; 130 interrupted."


def _facets(context: click.Context, option: click.Parameter, value: str) -> int | str:
    """A number, or auto."""
    if value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor auto") from None


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="captum-mfv")
def app() -> None:
    """Multifaceted feature visualization: what are the facets of a unit, and how does each look?"""


@app.command()
@click.option("--model", required=True, help="torchvision name, or file.py:function (which is run).")
@click.option("--weights", help="safetensors file, or a .pt/.pth of tensors alone.  [default: the model's own]")
@click.option("--unit", required=True, metavar="LAYER:INDEX", help="The unit, e.g. features.12:37 or fc:945.")
@click.option("--images", required=True, metavar="FOLDER", help="Images that activate the unit; with --top-k, any.")
@click.option("--out", required=True, metavar="FOLDER", help="The run's folder.")
@click.option(
    "--top-k",
    type=int,
    metavar="K",
    help="For a hidden unit: only the K images that activate it most, cropped to what its peak sees.",
)
@click.option(
    "--reduce", metavar="HOW", help="mean, max, center or cls over positions.  [default: mean; with --top-k: max]"
)
@click.option("--channels", metavar="first|last", help="Where the unit's layer has its channels, if it doesn't show.")
@click.option(
    "--facets", callback=_facets, default="10", metavar="N|auto", help="How many; auto: as many as are separated."
)
@click.option(
    "--recipe", default="facet", metavar="NAME|FILE", help="One of `captum-mfv list recipes`, or a .json of yours."
)
@click.option(
    "--code",
    metavar="LAYER[:REDUCE]",
    help="What tells images apart.  [default: last layer with positions before the unit]",
)
@click.option("--steps", type=int, help="Optimisation steps.  [default: the recipe's]")
@click.option("--size", type=int, help="Side of the synthesised images in pixels.  [default: what the model sees]")
@click.option("--input-size", type=int, help="Side of the model's input in pixels.  [default: the model's own]")
@click.option(
    "--attribution",
    metavar="METHOD",
    help="A class of captum.attr for the overlays, e.g. IntegratedGradients.  [default: the code layer's own shares]",
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps ….  [default: a GPU if there is one]")
@click.option("--dtype", metavar="TYPE", help="bfloat16 or float16: autocast while synthesising, for GPUs.")
@click.option("--seed", default=0, help="Seed of everything random.")
@click.option("--labels", metavar="FILE", help="JSON table of image path → known group, to compare the facets with.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars, no summary.")
def run(out: str, labels: str | None, quiet: bool, **options: Any) -> None:
    """Find the facets of a unit in a folder of images and synthesise one image per facet.

    A run that was stopped goes on with the same command; a finished one isn't done again.

    \b
    captum-mfv run --model squeezenet1_0 --unit classifier.1:945 \\
        --images peppers/ --facets 10 --out out/pepper
    captum-mfv run --model squeezenet1_0 --unit features.12:410 \\
        --images imagenet/ --top-k 200 --facets 4 --out out/hidden
    """
    from captum_mfv.pipeline import Job  # here, so that --help is quick

    _run(Job(**options), out, None if labels is None else _read_labels(labels), quiet)


@app.command()
@click.option("--out", default="out/demo", metavar="FOLDER", help="The run's folder.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars, no summary.")
def demo(out: str, quiet: bool) -> None:
    """The five known facets of "even" in a small network trained on the spot; no download.

    Trains a network to tell even digits from odd ones, finds the facets of its unit "even", which
    should be 0, 2, 4, 6 and 8, and synthesises one image for each.
    """
    from captum_mfv.datasets import write_even_digits
    from captum_mfv.pipeline import Job

    digits = f"{out.rstrip('/')}-digits"
    known = write_even_digits(digits)
    job = Job(model="captum_mfv.datasets:even_or_odd", unit="logits:0", images=digits, facets=5, code="relu4:flatten")
    if not quiet:
        click.echo("training a small network to tell even digits from odd ones …")
    _run(job, out, known, quiet)


@app.group(name="list")
def list_() -> None:
    """What there is to choose from."""


@list_.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """The recipes, a line each; of one NAME, its JSON, to change and give to `run --recipe FILE.json`.

    \b
    captum-mfv list recipes facet > mine.json
    """
    from captum_mfv.optvis.recipes import RECIPES, get_recipe

    if name is not None:
        click.echo(get_recipe(name).to_json())
        return
    for recipe in RECIPES.values():
        click.echo(f"{recipe.name:20} {recipe.n_steps:4} steps  {recipe.summary}")


@list_.command()
def controls() -> None:
    """The controls that `evaluate --control` draws, a line each."""
    from captum_mfv.metrics import CONTROLS

    for name, control in CONTROLS.items():
        click.echo(f"{name:22} {control.summary}")


@app.command()
@click.argument("folder")
def report(folder: str) -> None:
    """Make the page of a run's FOLDER anew."""
    from captum_mfv.report import build
    from captum_mfv.result import RunFolder

    click.echo(build(RunFolder.read(folder)))


@app.command()
@click.argument("folder")
@click.option("--judge", required=True, metavar="MODEL", help="torchvision name, or file.py:function (which is run).")
@click.option("--judge-weights", help="Its weights file.  [default: the model's own]")
@click.option("--judge-unit", metavar="LAYER:INDEX", help="Its logit of the class, for top-1 and probability.")
@click.option(
    "--judge-code", metavar="LAYER[:REDUCE]", help="What it tells images apart by.  [default: last with maps]"
)
@click.option("--judge-input", nargs=2, type=float, metavar="MEAN STD", help="Of each channel.  [default: the model's]")
@click.option("--held-out", metavar="FOLDER", help="Images of the class that the run didn't have; needs --model.")
@click.option(
    "--control",
    "controls",
    multiple=True,
    metavar="NAME",
    help="A control to draw and judge too, or `all`; needs --model, and takes as long as the run's images did.",
)
@click.option("--model", help="The run's model, to draw controls and to tell the facets of images held out.")
@click.option("--weights", help="Its weights file.")
@click.option("--seed", default=0, help="Seed of bootstrap samples.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def evaluate(folder: str, **options: Any) -> None:
    """Show the images of a finished run's FOLDER to a network that took no part.

    Writes retention, prediction, transfer, naturalness and their controls, with bootstrap intervals, to
    metrics.json, and makes the page anew. `captum-mfv list controls` has the controls.

    \b
    captum-mfv evaluate out/pepper --judge resnet50 --judge-unit fc:945
    captum-mfv evaluate out/pepper --judge resnet50 --judge-unit fc:945 \\
        --control "shuffled clusters" --control "half of the images" --model squeezenet1_0
    """
    click.echo(_table(_evaluate(folder, **options)))


def _table(found: Any) -> str:
    """A verdict as lines of text: a row for the images, for each control, and for the real images."""
    shown = ("retention", "centered", "predicts", "top1", "probability", "distance", "diversity")
    columns = [column for column in shown if getattr(found.scores, column) is not None]
    real = {"predicts": found.real_predicts, "top1": found.real_top1, "probability": found.real_probability}
    rows = {"images": vars(found.scores), **{name: vars(scores) for name, scores in found.controls.items()}}
    rows["all real images"] = real
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>17}" for column in columns)]
    for name, row in rows.items():
        cells = ("" if (one := row.get(column)) is None else _interval(one) for column in columns)
        lines.append(f"{name:{width}}" + "".join(f"{cell:>17}" for cell in cells))
    more = {"held-out images told": found.held_out, "same facet, another seed": found.over_seeds}
    lines += [f"{name}: {_interval(one)}, n = {one.n}" for name, one in more.items() if one is not None]
    return "\n".join([*lines, f"chance of retention and predicts: {found.chance:.2f}"])


def _interval(estimate: Any) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"


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
    seed: int,
    quiet: bool,
) -> Any:
    from captum_mfv import models
    from captum_mfv.evaluate import evaluate
    from captum_mfv.images import ImageFolder, InputSpec
    from captum_mfv.metrics import CONTROLS, Judge
    from captum_mfv.result import RunFolder
    from captum_mfv.units import Code, Unit

    folder = RunFolder.read(path)
    network, spec = models.load(judge, judge_weights)
    if judge_input is not None:
        spec = InputSpec(spec.size, *((number,) * spec.channels for number in judge_input))
    layer, _, reduce = (judge_code or "").partition(":")
    own = InputSpec(**folder.settings["input_spec"])
    return evaluate(
        folder,
        Judge(
            network,
            None if judge_unit is None else Unit.parse(judge_unit),
            Code(layer, reduce or "mean") if layer else None,
            spec,
        ),
        judge_name=judge,
        controls=tuple(CONTROLS) if controls == ("all",) else controls,
        held_out=None if held_out is None else ImageFolder(held_out, own),
        model=None if model is None else models.load(model, weights)[0],
        seed=seed,
        progress=not quiet,
    )


def _run(job: Any, out: str, known: dict[str, int] | None, quiet: bool) -> None:
    from captum_mfv import pipeline

    def say(line: str) -> None:
        if not quiet:
            click.echo(line)

    folder = pipeline.run(job, out, known=known, progress=not quiet, say=say)
    metrics = folder.read_metrics()
    say(
        f"images nearest to their own facet, in the network's own codes: {metrics['retention']:.0%} "
        f"(chance {metrics['chance']:.0%})"
    )
    unit = metrics["multifacetedness"]
    say(
        f"multifacetedness {unit['score']:.2f} (0: one facet; p = {unit['p_value']:.2g}); "
        f"facets that bootstrap samples find again hold {unit['coverage']:.0%} of its activation"
    )
    if "adjusted_rand_index" in metrics:
        say(f"facets against the known groups: adjusted Rand index {metrics['adjusted_rand_index']:.3f}")
    say(f"page: {folder.path / 'report.html'}")


def _read_labels(path: str) -> dict[str, int]:
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        return {str(name): int(group) for name, group in table.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FacetError(f"{path} isn't a JSON table of image path and group number: {error}") from error


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our warnings as lines on standard error, each once; other packages' not at all."""

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        tqdm.write(f"captum-mfv: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MFVWarning)
        warnings.showwarning = show
        yield


def main(args: list[str] | None = None) -> None:
    """Run the command and exit; what can't be used gets one line on standard error."""
    try:
        with _plain_warnings():
            status = app.main(args, prog_name="captum-mfv", standalone_mode=False)
    except (click.ClickException, MFVError, OSError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"captum-mfv: error: {' '.join(text.split())}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("captum-mfv: interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
