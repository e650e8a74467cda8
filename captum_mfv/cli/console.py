"""What the command says on standard error while it works: progress, log lines, warnings."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from tqdm import tqdm

from captum_mfv.display.text import visible
from captum_mfv.errors import MFVWarning

__all__ = ["plain_warnings", "told"]


class _Lines(logging.Handler):
    """Log records as lines on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(visible(self.format(record)), file=sys.stderr)


@contextmanager
def told(quiet: bool, verbose: bool) -> Iterator[None]:
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
def plain_warnings() -> Iterator[None]:
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
