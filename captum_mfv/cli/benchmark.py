"""The command ``captum-mfv bench``."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import click

from captum_mfv.cli.atlas import SOME_FAILED
from captum_mfv.cli.console import console
from captum_mfv.cli.options import completed
from captum_mfv.display.progress import waiting

__all__ = ["bench"]


def _methods() -> list[str]:
    from captum_mfv.bench.methods import method_names

    return list(method_names())


def _suites() -> list[str]:
    from captum_mfv.bench.suite import SUITES

    return list(SUITES)


def _list(context: click.Context, option: click.Parameter, text: str | None) -> list[str] | None:
    """Return the parts of a text between commas."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _numbers(least: int, most: int) -> Any:
    """Return a function that reads whole numbers between commas."""

    def read(context: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
        parts = _list(context, option, text)
        for part in parts or ():
            if not (part.isascii() and part.isdigit() and len(part) <= 10 and least <= int(part) <= most):
                raise click.BadParameter(f"must be whole numbers from {least} to {most} between commas, not {text!r}")
        return None if parts is None else list(dict.fromkeys(map(int, parts)))

    return read


@click.command()
@click.argument("methods", metavar="METHOD …", nargs=-1, shell_complete=completed(_methods))
@click.option(
    "--suite",
    default="digits",
    metavar="NAME|FILE",
    shell_complete=completed(_suites),
    help="The units: digits (no download), caltech101, or a suite's JSON file, whose models are run.",
)
@click.option("--data", metavar="FOLDER", help="The suite's images, weights and models; digits needs none.")
@click.option("--out", default="out/bench", metavar="FOLDER", help="The folder of the results.")
@click.option("--seeds", default="0", metavar="N,N…", callback=_numbers(0, 2**32 - 1), help="Seeds of the images.")
@click.option(
    "--steps",
    metavar="N,N…",
    callback=_numbers(1, 10**6),
    help="Numbers of steps, each a row METHOD-N.  [default: a recipe's own, 100 otherwise]",
)
@click.option("--cells", metavar="NAME,NAME…", callback=_list, help="Some of the suite's cells; * stands for any text.")
@click.option("--tuning", is_flag=True, help="Use the suite's cells for tuning instead of the others.")
@click.option("--controls", is_flag=True, help="Add all controls to the methods.")
@click.option("--against", metavar="METHOD", help="The method that the others are compared with.  [default: facet]")
@click.option("--shard", metavar="I/N", help="Compute every N-th cell from the I-th on, without the table.")
@click.option("--update", is_flag=True, help="Replace results of methods that were changed since.")
@click.option("--table", "only_table", is_flag=True, help="Only print the table of the results in --out.")
@click.option(
    "--join", "joins", is_flag=True, help="Write the results of several folders, given as METHOD …, to --out."
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps ….  [default: a GPU if there is one]")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads of PyTorch.  [default: PyTorch's own]"
)
@click.option("-q", "--quiet", is_flag=True, help="Print only the table, warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print also tracebacks of methods that failed.")
def bench(methods: tuple[str, ...], quiet: bool, verbose: bool, only_table: bool, joins: bool, **options: Any) -> None:
    """Compare methods that render the facets of units.

    A METHOD is a recipe's name or JSON file, a control, another package (lucent, horama-maco …), or FILE.py with
    a function render, which is run; `captum-mfv list methods` lists those that there are. Each method renders the
    facets of each of the suite's cells, a unit of a network; the suite's other networks evaluate the images. Prints
    the means and the comparisons with one method, and writes them to table.json and table.md. Rerun the same command
    to resume; results are not computed again.

    \b
    Try it: a minute, no download
      captum-mfv bench facet plain

    \b
    A method of yours, beside the recipe and all controls
      captum-mfv bench facet mine.py --controls --suite caltech101 --data DATA --out out/mine

    \b
    One of two jobs at the same time, and the table of both
      captum-mfv bench facet mine.py --suite caltech101 --data DATA --shard 0/2
      captum-mfv bench --table

    \b
    Results of two people
      captum-mfv bench --join out/mine out/theirs --out out/both
    """
    with console(quiet, verbose):
        with waiting("starting", not quiet):
            from captum_mfv import bench as benchmark  # here, so that --help is quick
        if only_table or joins:
            failed = _finish(benchmark, methods, joins, options)
        else:
            failed = _run(benchmark, methods, options)
    if failed:
        sys.exit(SOME_FAILED)


def _run(benchmark: Any, methods: tuple[str, ...], options: dict[str, Any]) -> bool:
    """Compute what is missing, print the table, and return whether a method failed."""
    import torch

    from captum_mfv.bench.controls import BENCH_CONTROLS
    from captum_mfv.jobs.inputs import parse_shard

    names = [*methods, *(BENCH_CONTROLS if options["controls"] else ())]
    if not names:
        raise click.UsageError("name a METHOD, such as facet or mine.py; `captum-mfv list methods` lists some")
    first, step = parse_shard(options["shard"]) or (0, 1)
    suite = benchmark.get_suite(options["suite"])
    cells = suite.choose(options["cells"], tuning=options["tuning"])
    found = [benchmark.find_method(*pair) for pair in product(dict.fromkeys(names), options["steps"] or [None])]
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    results = benchmark.run(
        suite,
        found,
        options["out"],
        data=options["data"],
        cells=cells[first::step],
        seeds=options["seeds"],
        update=options["update"],
        device=options["device"],
    )
    if options["shard"] is None:
        chosen = {cell.name for cell in cells}
        kept = [one for one in benchmark.ResultFolder(Path(options["out"])).read() if one.cell in chosen]
        _print(benchmark, kept, [method.name for method in found], options)
    return any(result.status == "failed" for result in results)


def _finish(benchmark: Any, names: tuple[str, ...], joins: bool, options: dict[str, Any]) -> bool:
    """Join folders, or read one, print the table, and return whether a method failed."""
    if joins:
        if not names:
            raise click.UsageError("--join needs folders of results")
        results, names = benchmark.join(names, options["out"]), ()
    else:
        results = benchmark.ResultFolder(Path(options["out"])).read()
    _print(benchmark, results, list(names) or None, options)
    return False


def _print(benchmark: Any, results: list[Any], names: list[str] | None, options: dict[str, Any]) -> None:
    table = benchmark.make_table(results, names, against=options["against"], tuning=options["tuning"])
    table.write(Path(options["out"]))
    click.echo(table.markdown(), nl=False)
