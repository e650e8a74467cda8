"""Log lines and warnings of the command on standard error."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from tqdm import tqdm

from captum_mfv.errors import MFVWarning
from captum_mfv.storage.untrusted import visible

__all__ = ["console", "plain_warnings"]


class _Lines(logging.Handler):
    """Print log records on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(visible(self.format(record)), file=sys.stderr)


@contextmanager
def console(quiet: bool, verbose: bool) -> Iterator[None]:
    """Print the package's log on standard error.

    Args:
        quiet: print warnings and errors only.
        verbose: print debug messages too, with the time, and other packages' warnings.

    Raises:
        UsageError: if both are given.
    """
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose are mutually exclusive")
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
def plain_warnings() -> Iterator[None]:
    """Print this package's warnings as single lines, each once; other packages' warnings only with ``--verbose``."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        line = visible(f"captum-mfv: {'' if issubclass(category, MFVWarning) else f'{category.__name__}: '}{message}")
        if line not in shown:
            tqdm.write(line, file=sys.stderr)
        shown.add(line)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MFVWarning)
        warnings.showwarning = show
        yield
