"""Engines: joblib on this machine, on a Dask cluster or on a Ray cluster; results come back as they are ready."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from captum_mfv.errors import RunError
from captum_mfv.runs.settings import AtlasOptions

__all__ = ["Run", "WorkerDied", "connect", "in_process", "threads_of", "worker_device"]

T = TypeVar("T")

_PATIENCE = 60  # seconds in which a Dask scheduler and a first worker must answer
Run: TypeAlias = Callable[[Callable[..., T], Sequence[tuple[Any, ...]]], Iterator[T]]
"""Runs a function on tuples of arguments; yields results in any order."""

WorkerDied = TerminatedWorkerError
"""Raised where the system has killed a process of joblib's."""


def threads_of(options: AtlasOptions) -> int | None:
    """Return how many threads a process uses, so that all together use the cores; None: PyTorch's default."""
    if options.threads is not None or in_process(options):
        return options.threads
    return max(1, _n_cores() // options.jobs)


def in_process(options: AtlasOptions) -> bool:
    """Return whether the work is done in this process."""
    return options.jobs == 1 and options.engine == "processes"


def worker_device(device: str | None) -> str | None:
    """Return this worker process's own GPU where it sees several and none is named, else the device.

    joblib and local Dask clusters number their workers; a worker without a number uses the first GPU. Where a cluster
    shows each worker one GPU, as Slurm, Kubernetes and dask-cuda do, that is the one.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device not in (None, "cuda") or n_gpus < 2:
        return device
    name = multiprocessing.current_process().name  # LokyProcess-1, …
    if (distributed := sys.modules.get("distributed")) is not None and name.startswith("Dask"):
        name = str(distributed.get_worker().name)  # 0, …
    number = re.search(r"\d+$", name)
    return f"cuda:{int(number[0]) % n_gpus if number else 0}"


@contextmanager
def connect(options: AtlasOptions) -> Iterator[Run[Any]]:
    """Start or connect to an engine.

    Raises:
        RunError: if its library is not installed or the address doesn't answer.
    """
    if in_process(options):
        yield lambda function, tasks: (function(*task) for task in tasks)
        return
    with ExitStack() as stack:
        backend = {"processes": _start_processes, "dask": _start_dask, "ray": _start_ray}[options.engine]
        stack.enter_context(backend(options))
        yield _in_waves if options.engine == "ray" else _as_ready


def _as_ready(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    found: Iterator[T] = Parallel(return_as="generator_unordered", pre_dispatch="2*n_jobs", batch_size=1)(
        delayed(function)(*task) for task in tasks
    )
    return found


def _in_waves(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """Run as many tasks as there are processes, and then the next ones: Ray's joblib backend returns lists only."""
    parallel = Parallel(batch_size=1)
    n_jobs = parallel._effective_n_jobs()
    for first in range(0, len(tasks), n_jobs):
        yield from parallel(delayed(function)(*task) for task in tasks[first : first + n_jobs])


@contextmanager
def _start_processes(options: AtlasOptions) -> Iterator[None]:
    with parallel_config("loky", n_jobs=options.jobs, inner_max_num_threads=threads_of(options)):
        try:
            yield
        except BaseException:  # do not wait for running tasks
            get_reusable_executor(reuse=True, kill_workers=True).shutdown(wait=True, kill_workers=True)
            raise
        get_reusable_executor(reuse=True).shutdown(wait=True)


@contextmanager
def _start_dask(options: AtlasOptions) -> Iterator[None]:
    distributed = _library("distributed", "dask")
    with ExitStack() as stack:
        address: Any = options.address
        if address is None:
            local = {"n_workers": options.jobs, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
            address = stack.enter_context(distributed.LocalCluster(processes=True, **local))
        try:
            client = stack.enter_context(distributed.Client(address, timeout=_PATIENCE))
            client.wait_for_workers(1, timeout=_PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            raise RunError(f"--address {options.address}: no Dask scheduler with workers answers: {error}") from error
        stack.enter_context(parallel_config("dask"))
        yield


@contextmanager
def _start_ray(options: AtlasOptions) -> Iterator[None]:
    ray = _library("ray", "ray")
    own = {"num_cpus": options.jobs, "include_dashboard": False} if options.address is None else {}
    try:
        ray.init(address=options.address, log_to_driver=False, ignore_reinit_error=True, **own)
    except ConnectionError as error:
        raise RunError(f"--address {options.address}: no Ray cluster answers: {error}") from error
    _library("ray.util.joblib", "ray").register_ray()
    try:
        with parallel_config("ray", n_jobs=options.jobs if options.address is None else -1):
            yield
    finally:
        ray.shutdown()


def _library(module: str, extra: str) -> Any:
    """Import an engine's module; RunError that names the extra if it isn't installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(f'--engine {extra} needs {extra}: pip install "captum-mfv[{extra}]"') from error


def _n_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
