"""``captum-mfv list``."""

from __future__ import annotations

import json
from typing import Any

import click

from captum_mfv.cli.options import complete_model, completed, recipe_names

__all__ = ["list_"]


@click.group(name="list")
def list_() -> None:
    """List the choices for options: recipes, models, layers, controls, methods, and JSON Schemas."""


@list_.command()
@click.argument("name", required=False, shell_complete=completed(recipe_names))
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


_SCHEMAS = (
    *("recipe", "run", "manifest", "facets", "metrics", "labels"),
    *("atlas", "atlas-manifest", "atlas-units", "atlas-facets", "atlas-labels", "suite", "result"),
)


@list_.command()
@click.argument("name", type=click.Choice(_SCHEMAS))
def schema(name: str) -> None:
    """JSON Schema of a file: a recipe, TOML options of a run or an atlas, a JSON file in the folder of one, or a suite.

    Editors complete and check files with it.

    \b
    captum-mfv list schema recipe > recipe.schema.json
    """
    from captum_mfv.bench import Result, Suite
    from captum_mfv.optvis.recipes import Recipe
    from captum_mfv.runs.labels import AtlasLabels, RunLabels
    from captum_mfv.runs.records import AtlasFacetRow, AtlasManifest, AtlasUnitRow, FacetRow, Manifest, Metrics
    from captum_mfv.runs.settings import ATLAS, RUN
    from captum_mfv.storage.schema import json_schema

    kinds = {
        "recipe": Recipe,
        "run": RUN.model,
        "manifest": Manifest,
        "facets": list[FacetRow],
        "metrics": Metrics,
        "labels": RunLabels,
        "atlas": ATLAS.model,
        "atlas-manifest": AtlasManifest,
        "atlas-units": list[AtlasUnitRow],
        "atlas-facets": list[AtlasFacetRow],
        "atlas-labels": AtlasLabels,
        "suite": Suite,
        "result": Result,
    }
    click.echo(json.dumps(json_schema(kinds[name]), indent=2))


@list_.command()
def controls() -> None:
    """The controls that `evaluate --control` draws, a line each."""
    from captum_mfv.metrics import CONTROLS

    for name, control in CONTROLS.items():
        click.echo(f"{name:22} {control.summary}")


@list_.command()
def methods() -> None:
    """The methods that `bench` compares, a line each, and its suites."""
    from captum_mfv.bench import SUITES, get_suite, method_names

    for name, summary in method_names().items():
        click.echo(f"{name:22} {summary}")
    for name in SUITES:
        click.echo(f"--suite {name:14} {get_suite(name).summary}")


@list_.command()
@click.argument("pattern", default="*")
def models(pattern: str) -> None:
    """The names that --model accepts and that match a PATTERN with * and ?; without one, of torchvision.

    Names of image models of transformers, hf:NAME, have no list: NAME is a model of the Hugging Face hub, or a local
    folder that save_pretrained wrote.

    \b
    captum-mfv list models "timm:vit_tiny*"
    captum-mfv list models "open_clip:*"
    """
    from captum_mfv.models import names

    click.echo("\n".join(names(pattern)))


@list_.command()
@click.option(
    "--model",
    required=True,
    shell_complete=complete_model,
    help="A name, as for `run --model`.",
)
@click.option("--unit", metavar="LAYER[:INDEX]", show_default="the last layer", help="Whose default code is marked.")
def layers(model: str, unit: str | None) -> None:
    """The layers of a model, in the order in which they run, and how many units each has; no download.

    A unit is LAYER:INDEX, its index below the layer's number of units. The layer with a * is the default code of
    units of the last layer, or of the one that --unit names. A layer that runs several times has no units of its
    own; = names a layer with the very same output. LAYER[1] or LAYER[NAME] is another output of a layer that returns
    several. Where only the output's shape suggests channels last, marked with a ?, `run --channels last` is needed.

    \b
    captum-mfv list layers --model resnet50 --unit fc
    """
    from captum_mfv.activations.capture import layer_name
    from captum_mfv.activations.containers import split_name
    from captum_mfv.activations.layers import code_layer, trace
    from captum_mfv.models import load

    network, spec = load(model, pretrained=False)
    calls = trace(network, spec.feed(network)(spec.gray()))
    last = next(call.name for call in reversed(calls) if call.runs == 1 and call.first and not call.copies)
    name = last if unit is None else layer_name(network, unit.partition(":")[0])
    code = code_layer(calls, name)
    rows = [("layer", "kind", "output", "units", "")]
    kinds = [type(network.get_submodule(split_name(call.name)[0])).__name__ for call in calls]
    rows += [(call.name, kind, *_layer(call, code)) for call, kind in zip(calls, kinds, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[3].rjust(5), row[4]]).rstrip())
    click.echo(f"* code of {name} by default", err=True)


def _layer(call: Any, code: str) -> tuple[str, str, str]:
    """Return the output shape, the number of units and notes of a layer's call."""
    notes = {
        "*": call.name == code,
        f"= {call.copies}": call.copies is not None and call.runs == 1,
        f"runs {call.runs} times": call.runs > 1,
        f"channels last{'' if call.channels else '?'}": len(call.shape) == 4 and call.last,
    }
    units = "" if call.runs > 1 or call.n_units is None else str(call.n_units)
    return " x ".join(map(str, call.shape[1:])), units, ", ".join(note for note, holds in notes.items() if holds)
