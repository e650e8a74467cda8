"""Options of the command, their headings, types and completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["FOLDER", "SEED", "Command", "completed", "kinds", "loudness", "model_names", "recipe_names", "run_options"]

_FILE, FOLDER, SEED = click.Path(), click.Path(file_okay=False), click.IntRange(0, 2**32 - 1)

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


class _Option(click.Option):
    """An option under a heading of its own."""

    def __init__(self, *arguments: Any, under: str = "Options", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.under = under


class Command(click.Command):
    """A command whose help has its options under their headings."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section a heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            if (record := parameter.get_help_record(context)) is not None:
                groups.setdefault(getattr(parameter, "under", "Other"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def completed(find: Callable[[], Sequence[str]]) -> Complete:
    """Completion by names, or by files where what is typed can only be one."""

    def complete(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
        if "/" in typed or typed.startswith("."):
            return [CompletionItem(typed, type="file")]
        return [CompletionItem(name) for name in find() if name.startswith(typed)]

    return complete


def model_names() -> list[str]:
    """What ``--model`` knows."""
    from captum_mfv.models import names

    return names()


def recipe_names() -> list[str]:
    """What ``--recipe`` knows."""
    from captum_mfv.optvis.recipes import RECIPES

    return list(RECIPES)


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
        from captum_mfv.runs.config import read

        context.default_map = read(value, {name: kinds for name, kinds in map(kinds, context.command.params) if name})


def kinds(option: click.Parameter) -> tuple[str, tuple[type, ...]]:
    """The types that an option's value may have in a config file, by the option's name; no name if it has no place."""
    if option.name is None or not option.expose_value:
        return "", ()
    if option.name == "facets":
        return option.name, (int, str)
    flag = isinstance(option, click.Option) and option.is_flag
    return option.name, (bool,) if flag else (int,) if isinstance(option.type, type(click.INT)) else (str,)


def loudness(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options ``--quiet`` and ``--verbose``."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Also layers, code, what took how long, all warnings."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no summary; warnings and errors alone."),
    ):
        command = option(command)
    return command


_RUN: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "What is looked at": {
        "--model": {
            "required": True,
            "shell_complete": completed(model_names),
            "help": "One of `captum-mfv list models`, or file.py:function (which is run).",
        },
        "--weights": {
            "type": _FILE,
            "show_default": "the model's own",
            "help": "safetensors file, or a .pt/.pth of tensors alone.",
        },
        "--unit": {
            "required": True,
            "metavar": "LAYER:INDEX",
            "help": "The unit, e.g. features.12:37 or fc:945; `captum-mfv list layers` names the layers.",
        },
        "--images": {
            "required": True,
            "type": FOLDER,
            "metavar": "FOLDER",
            "help": "Images that activate the unit; with --top-k, any.",
        },
        "--top-k": {
            "type": int,
            "metavar": "K",
            "help": "For a hidden unit: only the K images that activate it most, cropped to what its peak sees.",
        },
        "--reduce": {
            "metavar": "HOW",
            "show_default": "mean; with --top-k: max",
            "shell_complete": completed(lambda: ["mean", "max", "center", "cls"]),
            "help": "How positions become one number: mean, max, center or cls.",
        },
        "--channels": {
            "metavar": "first|last",
            "shell_complete": completed(lambda: ["first", "last"]),
            "help": "Where the unit's layer has its channels, if it doesn't show.",
        },
        "--input-size": {
            "type": int,
            "metavar": "PIXELS",
            "show_default": "the model's own",
            "help": "Side of the model's input.",
        },
    },
    "Facets": {
        "--facets": {
            "callback": _facets,
            "default": "10",
            "metavar": "N|auto",
            "shell_complete": completed(lambda: ["auto"]),
            "help": "How many; auto: as many as are separated, which may be one.",
        },
        "--code": {
            "metavar": "LAYER[:REDUCE]",
            "show_default": "last layer with positions before the unit",
            "help": "What tells images apart.",
        },
        "--labels": {
            "type": _FILE,
            "metavar": "FILE",
            "help": "JSON table of image path → known group, to compare the facets with.",
        },
    },
    "Synthesised images": {
        "--recipe": {
            "default": "facet",
            "metavar": "NAME|FILE",
            "shell_complete": completed(recipe_names),
            "help": "One of `captum-mfv list recipes`, or a .json of yours.",
        },
        "--steps": {"type": int, "show_default": "the recipe's", "help": "Optimisation steps."},
        "--size": {
            "type": int,
            "metavar": "PIXELS",
            "show_default": "what the model sees",
            "help": "Side of the images.",
        },
        "--dtype": {
            "metavar": "TYPE",
            "shell_complete": completed(lambda: ["bfloat16", "float16"]),
            "help": "bfloat16 or float16: autocast while synthesising, for GPUs.",
        },
        "--attribution": {
            "metavar": "METHOD",
            "show_default": "the code layer's own shares",
            "help": "A class of captum.attr for the overlays, e.g. IntegratedGradients.",
        },
    },
    "The run": {
        "--out": {"required": True, "type": FOLDER, "metavar": "FOLDER", "help": "The run's folder."},
        "--config": {
            "type": _FILE,
            "metavar": "FILE",
            "is_eager": True,
            "expose_value": False,
            "callback": _read_config,
            "help": "TOML file of these options, such as a run's own run.toml; those given here come first. A file.py "
            "that it names is run.",
        },
        "--device": {"metavar": "DEVICE", "show_default": "a GPU if there is one", "help": "cpu, cuda, cuda:1, mps …."},
        "--seed": {"type": SEED, "default": 0, "help": "Seed of everything random."},
        "--update": {
            "is_flag": True,
            "help": "In a folder that holds a run with other options or input, do again what depends on what changed.",
        },
    },
}
"""The options of `run`, by the heading that they have in its help."""


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `run`."""
    options = [(name, title, settings) for title, group in _RUN.items() for name, settings in group.items()]
    for name, title, settings in reversed(options):  # the last one decorates first
        command = click.option(name, cls=_Option, under=title, **settings)(command)
    return command
