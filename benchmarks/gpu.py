#!/usr/bin/env python
"""Measure rendering and collecting on a GPU: python benchmarks/gpu.py steps|collect|busy [OPTION …]

steps MODEL … [--batch N …] [--compile]
    Images and steps per second (row-steps) of the recipe `facet`, beside the bare model's forward pass and input
    gradient in the faster memory format, in float32 and under autocast to bfloat16; both launched kernel by kernel and
    as a CUDA graph. With --compile, also the bare model under `torch.compile`. MODEL is a name as of `captum-mfv run
    --model`; weights are random, except where the name is MODEL=WEIGHTS.
collect MODEL … [--batch N …]
    Images per second of `collect` from images in memory, beside the bare model's forward pass that reads them so too.
busy [--trace FILE] COMMAND …
    Run a captum-mfv command under `torch.profiler`; prints the share of the time in which a kernel runs, and the
    kernels that take longest.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn

from captum_mfv import FacetSet, InputSpec, Unit, find_facets, models
from captum_mfv.activations.codes import collect
from captum_mfv.optvis import cuda_graph
from captum_mfv.optvis.render import render_facets

_BEFORE, _STEPS = 6, 16  # steps before the clock starts, and measured steps
_N_REAL = 24  # random images in which two facets are found
_FORMATS = (torch.contiguous_format, torch.channels_last)


def launched(recorded: bool) -> AbstractContextManager[object]:
    """Record steps as CUDA graphs, or don't."""
    return nullcontext() if recorded else patch.object(cuda_graph.Recorded, "_record", lambda self, inputs: False)


def loaded(name: str) -> tuple[nn.Module, InputSpec]:
    """Return a model on the GPU, with random weights unless the name ends in =WEIGHTS."""
    model, _, weights = name.partition("=")
    torch.manual_seed(0)
    found, spec = models.load(model, weights or None, pretrained=False)
    return found.cuda().requires_grad_(False), spec


def per_second(work: Callable[[], object], n: int, calls: int = 8) -> float:
    """Return how many of n things are done per second, the best of two rounds of calls."""
    best = 0.0
    for _ in range(2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
        best = max(best, calls * n / (time.perf_counter() - began))
    return best


def bare(model: nn.Module, batch: Tensor, dtype: torch.dtype | None, recorded: bool) -> float:
    """Return images and steps per second of the forward pass and the input gradient."""

    def step(images: Tensor) -> Tensor:
        images = images.detach().requires_grad_()
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            logits = model(images)
        return torch.autograd.grad(logits.float().sum(), images)[0]

    found = []
    for memory in _FORMATS:
        images, work = batch.contiguous(memory_format=memory), cuda_graph.Recorded(step)
        with launched(recorded):
            for _ in range(4):
                work(images)
            found.append(per_second(lambda images=images, work=work: work(images), len(batch)))
    return max(found)


def ours(
    model: nn.Module, facets: FacetSet, real: Tensor, spec: InputSpec, n: int, dtype: torch.dtype | None, recorded: bool
) -> tuple[float, float]:
    """Return images and steps per second of the recipe, and seconds of what precedes the clock."""
    times = [time.perf_counter()]

    def note(step: int, images: Tensor) -> None:
        if step in (_BEFORE, _BEFORE + _STEPS):
            torch.cuda.synchronize()
            times.append(time.perf_counter())

    options = {"steps": _BEFORE + _STEPS, "input_spec": spec, "dtype": dtype, "callback": note}
    with launched(recorded):
        render_facets(model, facets, real, seed=range(n // len(facets)), **options)
    began, first, last = times
    return n * _STEPS / (last - first), first - began


def prepared(model: nn.Module, spec: InputSpec) -> tuple[FacetSet, Tensor]:
    """Return two facets of the first class in random images."""
    real = torch.rand(_N_REAL, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
    layer = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    return find_facets(model, Unit(layer, 0), real, n_facets=2, input_spec=spec), real


def steps(names: Sequence[str], sizes: Sequence[int], compiled: bool) -> None:
    """Print a table of row-steps per second."""
    print("| model | batch | dtype | bare | bare, graph | step | step, graph | ÷ best bare | before, s | MiB |")
    print("|---" * 10 + "|")
    for name in names:
        model, spec = loaded(name)
        facets, real = prepared(model, spec)
        for n in sizes:
            batch = torch.rand(n, 3, spec.size, spec.size, device="cuda")
            for dtype in (None, torch.bfloat16):
                torch.cuda.reset_peak_memory_stats()
                bares = [bare(model, batch, dtype, recorded) for recorded in (False, True)]
                mine = [ours(model, facets, real, spec, n, dtype, recorded) for recorded in (False, True)]
                rates = [*bares, *(rate for rate, _ in mine)]
                peak = torch.cuda.max_memory_allocated() / 2**20
                print(
                    f"| {name.split('=')[0].split('/')[-1]} | {n} | {'float32' if dtype is None else 'bfloat16'} | "
                    f"{' | '.join(f'{rate:.0f}' for rate in rates)} | {rates[3] / max(bares):.2f} | "
                    f"{mine[0][1]:.1f}, {mine[1][1]:.1f} | {peak:.0f} |",
                    flush=True,
                )
                if compiled and n == sizes[len(sizes) // 2]:
                    began = time.perf_counter()
                    rate = bare(torch.compile(model), batch, dtype, False)
                    print(f"compiled bare model: {rate:.0f}; {time.perf_counter() - began:.0f} s", flush=True)
                    torch._dynamo.reset()


def collected(names: Sequence[str], sizes: Sequence[int]) -> None:
    """Print a table of images per second."""
    print("| model | batch | dtype | bare forward pass | collect |\n|---|---|---|---|---|")
    for name in names:
        for dtype in (torch.float32, torch.bfloat16):
            model, spec = loaded(name)
            facets, _ = prepared(model, spec)
            model = model.to(dtype)
            for n in sizes:
                images = torch.rand(8 * n, 3, spec.size, spec.size)
                rates = [
                    per_second(work, len(images), calls=1)
                    for work in (
                        partial(forward, model, images, spec, n),
                        partial(collect, model, facets.unit, images, code=facets.code, input_spec=spec, batch_size=n),
                    )
                ]
                print(f"| {name} | {n} | {str(dtype)[6:]} | {rates[0]:.0f} | {rates[1]:.0f} |", flush=True)


def forward(model: nn.Module, images: Tensor, spec: InputSpec, n: int) -> None:
    """Run the forward pass of images in batches of n."""
    feed = spec.feed(model)
    with torch.no_grad():
        for batch in images.split(n):
            model(feed(batch)).cpu()


def busy(command: Sequence[str], trace: str | None) -> None:
    """Print the share of the time in which a kernel runs."""
    from torch.profiler import ProfilerActivity, profile

    from captum_mfv.cli import main as run_command

    sys.argv = ["captum-mfv", *command]
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        try:
            run_command()
        except SystemExit as ended:
            if ended.code:
                raise
    whole = time.perf_counter() - began
    spans, names = [], Counter()
    for event in profiled.profiler.kineto_results.events():
        if str(event.device_type()).endswith("CUDA") and event.duration_ns() > 0:
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
            names[event.name()] += event.duration_ns()
    total, until = 0, 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, until))
        until = max(until, end)
    print(f"{whole:.1f} s, busy {total / 1e9:.2f} s: {total / 1e9 / whole:.2f}; {len(spans)} kernels and copies")
    for name, spent in names.most_common(12):
        print(f"  {spent / 1e9:6.2f} s  {name[:100]}")
    if trace:
        profiled.export_chrome_trace(trace)


def main() -> None:
    """Measure."""
    warnings.filterwarnings("ignore", message=".*gained nothing")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    for kind in ("steps", "collect"):
        options = kinds.add_parser(kind)
        options.add_argument("names", nargs="+")
        options.add_argument("--batch", type=int, nargs="+", default=[10, 64, 256])
        if kind == "steps":
            options.add_argument("--compile", action="store_true")
    options = kinds.add_parser("busy")
    options.add_argument("--trace")
    options.add_argument("command", nargs=argparse.REMAINDER)  # whose options may have the names of those above
    args = parser.parse_args()
    if args.what == "busy":
        busy(args.command, args.trace)
        return
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    if args.what == "steps":
        steps(args.names, args.batch, args.compile)
    else:
        collected(args.names, args.batch)


if __name__ == "__main__":
    main()
