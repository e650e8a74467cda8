"""Options of the command: generated from the declaration of a run's settings, under headings, with completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from captum_mfv.runs.options import Declared, OptionTable

__all__ = ["DeclaredCommand", "complete_model", "completed", "recipe_names"]

_LIBRARIES = {"timm": "timm", "hf": "transformers", "open_clip": "open_clip"}  # module by prefix of --model

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def completed(find: Callable[[], Sequence[str]]) -> Complete:
    """Return completion by names, or by files if the typed text can only be a path."""

    def complete(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
        if "/" in typed or typed.startswith("."):
            return [CompletionItem(typed, type="file")]
        return [CompletionItem(name) for name in find() if name.startswith(typed)]

    return complete


def complete_model(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete ``--model``: torchvision's names and prefixes of installed libraries, then names of the typed prefix."""
    from captum_mfv.models import names
    from captum_mfv.models.sources import LISTS

    library, colon, _ = typed.partition(":")
    if colon and library in _LIBRARIES:
        listed = names(f"{library}:*") if library in LISTS and find_spec(_LIBRARIES[library]) else []
        return [CompletionItem(name) for name in listed if name.startswith(typed)]
    prefixes = [f"{prefix}:" for prefix, module in _LIBRARIES.items() if find_spec(module)]
    return completed(lambda: [*prefixes, *names()])(context, option, typed)


def recipe_names() -> list[str]:
    """Return the names that ``--recipe`` accepts."""
    from captum_mfv.optvis.recipes import RECIPES

    return list(RECIPES)


class _Value(click.ParamType):  # type: ignore[type-arg]
    """A value that is validated by the option's declaration."""

    name = "value"

    def __init__(self, table: OptionTable, declared: Declared) -> None:
        self.table, self.declared = table, declared

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.table.validate(self.declared.name, value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = self.declared.option.names
        if names in ("file", "folder", "units", "dataset"):
            return [CompletionItem(incomplete, type="dir" if names in ("folder", "dataset") else "file")]
        if names == "model":
            return complete_model(ctx, param, incomplete)
        find = recipe_names if names == "recipe" else lambda: _literals(self.declared.hint)
        return completed(find)(ctx, param, incomplete)


def _literals(hint: Any) -> list[str]:
    """Return the texts that a type lists."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return [part for part in parts if isinstance(part, str)]
    return [name for part in parts for name in _literals(part)]


class _Option(click.Option):
    """An option under a heading."""

    def __init__(self, *names: str, heading: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self.heading = heading


def _option(table: OptionTable, declared: Declared) -> _Option:
    shown, is_flag = declared.option, declared.default is False
    names = [f"--{declared.hyphenated}", *([shown.letter] if shown.letter else [])]
    more = {"is_flag": True} if is_flag else {"type": _Value(table, declared), "metavar": shown.metavar or "TEXT"}
    return _Option(
        *names,
        heading=shown.heading,
        help=declared.help,
        required=declared.required,
        default=declared.default,
        show_default=shown.default or True,
        **more,
    )


class DeclaredCommand(click.Command):
    """A command with declared options, under headings in its help.

    The options are generated when they are first used, so that ``captum-mfv --help`` doesn't import pydantic.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        del self.__dict__["params"]

    @property
    def table(self) -> OptionTable:
        """The command's options."""
        from captum_mfv.runs import settings

        table: OptionTable = getattr(settings, (self.name or "").upper())
        return table

    @cached_property
    def params(self) -> list[click.Parameter]:  # type: ignore[override]
        """The options in the order of their declaration."""
        options = [_option(self.table, declared) for declared in self.table.declared.values()]
        config = _Option(
            "--config",
            heading="The run",
            type=click.Path(),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=self._read_config,
            help="TOML file of these options, such as a run's own run.toml; options on the command line come first. "
            "A file.py that the file names is run.",
        )
        return [*options, config]

    def _read_config(self, context: click.Context, option: click.Parameter, value: str | None) -> None:
        """Take defaults from a file; options on the command line come first."""
        if value is not None:
            context.default_map = self.table.read_toml(value)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section per heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            if (record := parameter.get_help_record(context)) is not None:
                groups.setdefault(getattr(parameter, "heading", "Other"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)
