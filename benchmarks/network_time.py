#!/usr/bin/env python
"""Measure the share of a command in network passes: python benchmarks/network_time.py atlas --out ATLAS [OPTION …]

Runs a captum-mfv command in this process and prints, at its end, wall seconds and CPU seconds of the process, and those
in network passes: forward passes of a model, and `torch.autograd.grad`, which contains the backward pass of the
objective's terms too. Processes that decode images are not counted. CPU seconds are comparable beside other work, wall
seconds on an idle machine.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from captum_mfv.cli import main


@dataclass
class Passes:
    """Wall and CPU seconds of the outermost calls of some functions."""

    wall: float = 0.0
    cpu: float = 0.0
    _depth: int = field(default=0, init=False)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if self._depth:
                return function(*args, **options)
            self._depth += 1
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*args, **options)
            finally:
                self._depth -= 1
                self.wall += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu

        return call


if __name__ == "__main__":
    passes = Passes()
    nn.Module.__call__ = passes.timed(nn.Module.__call__)  # type: ignore[method-assign]
    torch.autograd.grad = passes.timed(torch.autograd.grad)
    began, status = time.perf_counter(), 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    for name, inside, whole in (
        ("wall", passes.wall, time.perf_counter() - began),
        ("CPU", passes.cpu, time.process_time()),
    ):
        print(f"{name} seconds {whole:.0f}, in network passes {inside:.0f}: {inside / whole:.2f}", flush=True)
    sys.exit(status)
