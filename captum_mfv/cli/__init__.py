"""The command ``captum-mfv``."""

from __future__ import annotations

import os
import sys

import click

from captum_mfv._version import __version__
from captum_mfv.cli.atlas import atlas, status
from captum_mfv.cli.benchmark import bench
from captum_mfv.cli.commands import demo, evaluate, run
from captum_mfv.cli.console import plain_warnings
from captum_mfv.cli.labeling import label
from captum_mfv.cli.lists import list_
from captum_mfv.cli.pages import compare, publish, report, view
from captum_mfv.errors import MFVError
from captum_mfv.storage.untrusted import visible

__all__ = ["app", "main"]

_EPILOG = """\b
Exit status:
  0    done; results are on standard output, all else on standard error
  2    the input can't be used; one line says why, and nothing that was there is lost
  3    done, but units of an atlas or cells of a benchmark failed; units.json or the table says why
  130  interrupted; the same command goes on from there
  1    anything else, with a traceback: a bug, please report it

\b
Completion of commands, options, models and recipes, in your shell's start-up file:
  bash  eval "$(_CAPTUM_MFV_COMPLETE=bash_source captum-mfv)"
  zsh   eval "$(_CAPTUM_MFV_COMPLETE=zsh_source captum-mfv)"
  fish  _CAPTUM_MFV_COMPLETE=fish_source captum-mfv | source
"""


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
    captum-mfv run --help                          your own model and images
    """


for _command in (run, atlas, status, demo, list_, view, report, compare, evaluate, label, publish, bench):
    app.add_command(_command)


def main(args: list[str] | None = None) -> None:
    """Run the command and exit; invalid input is explained in one line on standard error."""
    try:
        with plain_warnings():
            status = app.main(args, prog_name="captum-mfv", standalone_mode=False)
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (click.ClickException, MFVError, OSError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"captum-mfv: error: {visible(' '.join(text.split()))}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        if "_CAPTUM_MFV_COMPLETE" not in os.environ:  # a completing shell shows no message
            click.echo("captum-mfv: interrupted; rerun the same command to resume", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
