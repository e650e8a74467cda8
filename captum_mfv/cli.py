"""The command ``captum-mfv``."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from tqdm import tqdm

from captum_mfv._version import __version__
from captum_mfv.errors import MFVError, MFVWarning
from captum_mfv.progress import waiting
from captum_mfv.text import visible

__all__ = ["main"]

_EPILOG = """\b
Exit status:
  0    done; results are on standard output, all else on standard error
  2    the input can't be used; one line says why, and nothing that was there is lost
  130  interrupted; the same command goes on from there
  1    anything else, with a traceback: a bug, please report it

\b
Completion of commands, options, models and recipes, in your shell's start-up file:
  bash  eval "$(_CAPTUM_MFV_COMPLETE=bash_source captum-mfv)"
  zsh   eval "$(_CAPTUM_MFV_COMPLETE=zsh_source captum-mfv)"
  fish  _CAPTUM_MFV_COMPLETE=fish_source captum-mfv | source
"""


class _Option(click.Option):
    """An option under a heading of its own."""

    def __init__(self, *arguments: Any, under: str = "Options", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.under = under


class _Command(click.Command):
    """A command whose help has its options under their headings."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            if (record := parameter.get_help_record(context)) is not None:
                groups.setdefault(getattr(parameter, "under", "Other"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def _names(find: Callable[[], Sequence[str]]) -> Complete:
    """Completion by names, or by files where what is typed can only be one."""

    def complete(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
        if "/" in typed or typed.startswith("."):
            return [CompletionItem(typed, type="file")]
        return [CompletionItem(name) for name in find() if name.startswith(typed)]

    return complete


def _models() -> list[str]:
    from captum_mfv.models import names

    return names()


def _recipes() -> list[str]:
    from captum_mfv.optvis.recipes import RECIPES

    return list(RECIPES)


_FILE, _FOLDER, _SEED = click.Path(), click.Path(file_okay=False), click.IntRange(0, 2**32 - 1)


def _facets(context: click.Context, option: click.Parameter, value: str) -> int | str:
    """A number, or auto."""
    if value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor auto") from None


def _read_config(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Defaults from a file, under what the command line gives."""
    if value is not None:
        from captum_mfv.config import read

        context.default_map = read(value, {name: kinds for name, kinds in map(_kinds, context.command.params) if name})


def _kinds(option: click.Parameter) -> tuple[str, tuple[type, ...]]:
    """The types that an option's value may have in a config file, by the option's name; no name if it has no place."""
    if option.name is None or not option.expose_value:
        return "", ()
    if option.name == "facets":
        return option.name, (int, str)
    flag = isinstance(option, click.Option) and option.is_flag
    return option.name, (bool,) if flag else (int,) if isinstance(option.type, type(click.INT)) else (str,)


def _loudness(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options ``--quiet`` and ``--verbose``."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Also layers, code, what took how long, all warnings."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no summary; warnings and errors alone."),
    ):
        command = option(command)
    return command


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="captum-mfv")
def app() -> None:
    """Multifaceted feature visualization: what are the facets of a unit, and how does each look?

    \b
    captum-mfv demo                                try it: half a minute, no download
    captum-mfv list layers --model squeezenet1_0   which units there are
    captum-mfv run --help                          the real job
    """


_WHAT, _FACETS, _IMAGES, _RUN = "What is looked at", "Facets", "Synthesised images", "The run"


@app.command(cls=_Command)
@click.option(
    "--model",
    cls=_Option,
    under=_WHAT,
    required=True,
    shell_complete=_names(_models),
    help="One of `captum-mfv list models`, or file.py:function (which is run).",
)
@click.option(
    "--weights",
    cls=_Option,
    under=_WHAT,
    type=_FILE,
    show_default="the model's own",
    help="safetensors file, or a .pt/.pth of tensors alone.",
)
@click.option(
    "--unit",
    cls=_Option,
    under=_WHAT,
    required=True,
    metavar="LAYER:INDEX",
    help="The unit, e.g. features.12:37 or fc:945; `captum-mfv list layers` names the layers.",
)
@click.option(
    "--images",
    cls=_Option,
    under=_WHAT,
    required=True,
    type=_FOLDER,
    metavar="FOLDER",
    help="Images that activate the unit; with --top-k, any.",
)
@click.option(
    "--top-k",
    cls=_Option,
    under=_WHAT,
    type=int,
    metavar="K",
    help="For a hidden unit: only the K images that activate it most, cropped to what its peak sees.",
)
@click.option(
    "--reduce",
    cls=_Option,
    under=_WHAT,
    metavar="HOW",
    show_default="mean; with --top-k: max",
    shell_complete=_names(lambda: ["mean", "max", "center", "cls"]),
    help="How positions become one number: mean, max, center or cls.",
)
@click.option(
    "--channels",
    cls=_Option,
    under=_WHAT,
    metavar="first|last",
    shell_complete=_names(lambda: ["first", "last"]),
    help="Where the unit's layer has its channels, if it doesn't show.",
)
@click.option(
    "--input-size",
    cls=_Option,
    under=_WHAT,
    type=int,
    metavar="PIXELS",
    show_default="the model's own",
    help="Side of the model's input.",
)
@click.option(
    "--facets",
    cls=_Option,
    under=_FACETS,
    callback=_facets,
    default="10",
    metavar="N|auto",
    shell_complete=_names(lambda: ["auto"]),
    help="How many; auto: as many as are separated, which may be one.",
)
@click.option(
    "--code",
    cls=_Option,
    under=_FACETS,
    metavar="LAYER[:REDUCE]",
    show_default="last layer with positions before the unit",
    help="What tells images apart.",
)
@click.option(
    "--labels",
    cls=_Option,
    under=_FACETS,
    type=_FILE,
    metavar="FILE",
    help="JSON table of image path → known group, to compare the facets with.",
)
@click.option(
    "--recipe",
    cls=_Option,
    under=_IMAGES,
    default="facet",
    metavar="NAME|FILE",
    shell_complete=_names(_recipes),
    help="One of `captum-mfv list recipes`, or a .json of yours.",
)
@click.option("--steps", cls=_Option, under=_IMAGES, type=int, show_default="the recipe's", help="Optimisation steps.")
@click.option(
    "--size",
    cls=_Option,
    under=_IMAGES,
    type=int,
    metavar="PIXELS",
    show_default="what the model sees",
    help="Side of the images.",
)
@click.option(
    "--dtype",
    cls=_Option,
    under=_IMAGES,
    metavar="TYPE",
    shell_complete=_names(lambda: ["bfloat16", "float16"]),
    help="bfloat16 or float16: autocast while synthesising, for GPUs.",
)
@click.option(
    "--attribution",
    cls=_Option,
    under=_IMAGES,
    metavar="METHOD",
    show_default="the code layer's own shares",
    help="A class of captum.attr for the overlays, e.g. IntegratedGradients.",
)
@click.option("--out", cls=_Option, under=_RUN, required=True, type=_FOLDER, metavar="FOLDER", help="The run's folder.")
@click.option(
    "--config",
    cls=_Option,
    under=_RUN,
    type=_FILE,
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="TOML file of these options, such as a run's own run.toml; those given here come first. A file.py that it "
    "names is run.",
)
@click.option(
    "--device",
    cls=_Option,
    under=_RUN,
    metavar="DEVICE",
    show_default="a GPU if there is one",
    help="cpu, cuda, cuda:1, mps ….",
)
@click.option("--seed", cls=_Option, under=_RUN, type=_SEED, default=0, help="Seed of everything random.")
@click.option(
    "--update",
    cls=_Option,
    under=_RUN,
    is_flag=True,
    help="In a folder that holds a run with other options or input, do again what depends on what changed.",
)
@_loudness
def run(out: str, quiet: bool, verbose: bool, update: bool, **options: Any) -> None:
    """Find the facets of a unit in a folder of images and synthesise one image per facet.

    The folder gets a page, report.html, and all that it shows. A run that was stopped, however it was, goes on with
    the same command; a finished one isn't done again.

    \b
    A class unit, and images of the class:
      captum-mfv run --model squeezenet1_0 --unit classifier.1:945 \\
          --images peppers/ --facets 10 --out out/pepper

    \b
    A hidden unit, and any images:
      captum-mfv run --model squeezenet1_0 --unit features.12:410 \\
          --images imagenet/ --top-k 200 --facets 4 --out out/hidden

    \b
    A model of yours, in a file with a function that returns it:
      captum-mfv run --model net.py:make --weights net.safetensors --unit fc:3 \\
          --images cats/ --facets auto --out out/cats

    \b
    The same facets, drawn by another recipe:
      captum-mfv run --config out/pepper/run.toml --recipe maco --out out/pepper --update

    \b
    A run again, larger:
      captum-mfv run --config out/pepper/run.toml --size 512 --out out/large
    """
    _run(options, out, quiet, verbose, update)


@app.command()
@click.option("--out", default="out/demo", type=_FOLDER, metavar="FOLDER", help="The run's folder.")
@_loudness
def demo(out: str, quiet: bool, verbose: bool) -> None:
    """The five known facets of "even" in a small network trained on the spot; no download.

    Trains a network to tell even digits from odd ones, finds the facets of its unit "even", which
    should be 0, 2, 4, 6 and 8, and synthesises one image for each.
    """
    from captum_mfv.datasets import write_even_digits
    from captum_mfv.files import write_whole

    digits = f"{out.rstrip('/')}-digits"
    write_whole(Path(labels := f"{digits}.json"), json.dumps(write_even_digits(digits)).encode())
    job = {"unit": "logits:0", "images": digits, "labels": labels, "facets": 5, "code": "relu4:flatten"}
    _run({"model": "captum_mfv.datasets:even_or_odd", **job}, out, quiet, verbose)


@app.group(name="list")
def list_() -> None:
    """What there is to choose from."""


@list_.command()
@click.argument("name", required=False, shell_complete=_names(_recipes))
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


@list_.command()
def models() -> None:
    """The names that --model knows: torchvision's image classifiers."""
    click.echo("\n".join(_models()))


@list_.command()
@click.option(
    "--model",
    required=True,
    shell_complete=_names(_models),
    help="One of `captum-mfv list models`, or file.py:function (which is run).",
)
@click.option("--unit", metavar="LAYER[:INDEX]", show_default="the last layer", help="Whose default code is marked.")
def layers(model: str, unit: str | None) -> None:
    """The layers of a model, in the order in which they run, and how many units each has; no download.

    A unit is LAYER:INDEX, its index below the layer's number of units. The layer with a * is the default code of
    units of the last layer, or of the one that --unit names. A layer that runs several times has no units of its
    own; one with channels last needs `run --channels last`; = names a layer with the very same output.

    \b
    captum-mfv list layers --model resnet50 --unit fc
    """
    from captum_mfv.activations import code_layer, layer_name, trace
    from captum_mfv.models import load

    network, spec = load(model, pretrained=False)
    calls = trace(network, spec.feed(network)(spec.grey()))
    last = next(call.name for call in reversed(calls) if call.runs == 1 and not call.copies)
    name = last if unit is None else layer_name(network, unit.partition(":")[0])
    code = code_layer(calls, name)
    rows = [("layer", "kind", "output", "units", "")]
    rows += [(call.name, type(network.get_submodule(call.name)).__name__, *_layer(call, code)) for call in calls]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[3].rjust(5), row[4]]).rstrip())
    click.echo(f"* code of {name} by default", err=True)


def _layer(call: Any, code: str) -> tuple[str, str, str]:
    """Output shape, number of units and what else is to know of a layer's run."""
    from captum_mfv.units import is_channels_last

    notes = {
        "*": call.name == code,
        f"= {call.copies}": call.copies is not None and call.runs == 1,
        f"runs {call.runs} times": call.runs > 1,
        "channels last": is_channels_last(call.shape),
    }
    units = "" if call.runs > 1 or call.n_units is None else str(call.n_units)
    return " x ".join(map(str, call.shape[1:])), units, ", ".join(note for note, holds in notes.items() if holds)


@app.command()
@click.argument("folder")
def report(folder: str) -> None:
    """Make the page of a run's FOLDER anew."""
    from captum_mfv.lock import hold
    from captum_mfv.report import build
    from captum_mfv.result import RunFolder

    run = RunFolder.read(folder)  # before a folder that is none is touched
    with hold(folder):
        click.echo(os.fsencode(build(run)))


@app.command()
@click.argument("folders", metavar="RUN RUN …", nargs=-1, required=True)
@click.option("--out", default="compare.html", metavar="FILE", help="The page to write.")
def compare(folders: tuple[str, ...], out: str) -> None:
    """Show finished runs side by side on one page.

    What differs in their settings, their facets, paired where they share images, and their figures.

    \b
    captum-mfv compare out/pepper out/pepper-plain --out compare.html
    """
    from captum_mfv.report import compare as write
    from captum_mfv.result import RunFolder

    click.echo(os.fsencode(write([RunFolder.read(folder) for folder in folders], out)))


_COLUMNS = ("retention", "centered", "predicts", "top1", "probability", "distance")


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
@click.option("--model", help="The run's model (a file.py is run), for controls and images held out.")
@click.option("--weights", help="Its weights file.")
@click.option("--seed", type=_SEED, default=0, help="Seed of bootstrap samples.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def evaluate(folder: str, **options: Any) -> None:
    """Show the images of a finished run's FOLDER to a network that took no part.

    Writes retention, prediction, transfer, naturalness and their controls, with 95 % intervals, to
    metrics.json, and makes the page anew. `captum-mfv list controls` has the controls.

    \b
    captum-mfv evaluate out/pepper --judge resnet50 --judge-unit fc:945
    captum-mfv evaluate out/pepper --judge resnet50 --judge-unit fc:945 \\
        --control "shuffled clusters" --control "half of the images" --model squeezenet1_0
    """
    click.echo(_table(_evaluate(folder, **options)))


def _table(found: Any) -> str:
    """A verdict as lines of text: the images' figures, then a table of controls and of the real images."""
    more = {"held-out images told": found.held_out, "same facet, another seed": found.over_seeds}
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
    seed: int,
    quiet: bool,
) -> Any:
    from captum_mfv import models
    from captum_mfv.evaluate import evaluate
    from captum_mfv.images import ImageFolder, InputSpec
    from captum_mfv.lock import hold
    from captum_mfv.metrics import CONTROLS, Judge
    from captum_mfv.result import RunFolder
    from captum_mfv.units import Code, Unit

    folder = RunFolder.read(path)
    network, spec = models.load(judge, judge_weights)
    if judge_input is not None:
        spec = InputSpec(spec.size, *((number,) * spec.channels for number in judge_input))
    own = folder.input_spec
    unit = None if judge_unit is None else Unit.parse(judge_unit)
    with hold(path):
        return evaluate(
            folder,
            Judge(network, unit, Code.parse(judge_code), spec),
            judge_name=judge,
            controls=tuple(CONTROLS) if controls == ("all",) else controls,
            held_out=None if held_out is None else ImageFolder(held_out, own),
            model=None if model is None else models.load(model, weights)[0],
            seed=seed,
            progress=_bars(quiet),
        )


def _run(job: Mapping[str, Any], out: str, quiet: bool, verbose: bool, update: bool = False) -> None:
    """Do a job, or go on with it, and say what came of it."""
    progress = _bars(quiet)
    with _told(quiet, verbose):
        with waiting("starting", progress):
            from captum_mfv import pipeline  # here, so that --help is quick
        folder = pipeline.run(pipeline.Job(**job), out, update=update, progress=progress)
    if not quiet:
        _sum_up(folder)


def _bars(quiet: bool) -> bool:
    """Whether progress is drawn: somebody has to be there to see it move."""
    return not quiet and sys.stderr.isatty()


def _sum_up(folder: Any) -> None:
    """A finished run in a few lines."""
    facets, metrics = folder.read_facets(), folder.read_metrics()
    click.echo(
        f"{len(facets)} facets of {visible(facets.unit)}, of {', '.join(str(len(facet)) for facet in facets)} images"
    )
    click.echo(
        f"images nearest to their own facet, in the network's own codes: {metrics['retention']:.0%} "
        f"(chance {metrics['chance']:.0%})"
    )
    unit = metrics["multifacetedness"]
    click.echo(
        f"multifacetedness {unit['score']:.2f} (0: one facet; p = {unit['p_value']:.2g}); "
        f"facets that bootstrap samples find again hold {unit['coverage']:.0%} of its activation"
    )
    if "adjusted_rand_index" in metrics:
        click.echo(f"facets against the known groups: adjusted Rand index {metrics['adjusted_rand_index']:.3f}")
    click.echo(os.fsencode(f"page: {folder.path / 'report.html'}"))


class _Lines(logging.Handler):
    """Log records as lines on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(visible(self.format(record)), file=sys.stderr)


@contextmanager
def _told(quiet: bool, verbose: bool) -> Iterator[None]:
    """What the package logs, as lines; with ``verbose`` in detail, with times, and other packages' warnings too."""
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose can't both be meant")
    logger, lines = logging.getLogger("captum_mfv"), _Lines()
    lines.setFormatter(logging.Formatter("%(asctime)s  %(message)s" if verbose else "%(message)s", "%H:%M:%S"))
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    try:
        if verbose:
            warnings.simplefilter("always")
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our warnings as lines on standard error, each once; other packages' only if somebody asks for them."""

    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        line = visible(f"captum-mfv: {'' if issubclass(category, MFVWarning) else f'{category.__name__}: '}{message}")
        if line not in said:
            tqdm.write(line, file=sys.stderr)
        said.add(line)

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
    except BrokenPipeError:  # whoever reads has enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (click.ClickException, MFVError, OSError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"captum-mfv: error: {visible(' '.join(text.split()))}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        if "_CAPTUM_MFV_COMPLETE" not in os.environ:  # a shell that asked for completion has a line to keep clean
            click.echo("captum-mfv: interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
