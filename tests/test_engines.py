"""Which threads and which GPU a worker process uses."""

import multiprocessing
import sys
from types import SimpleNamespace

import pytest
import torch

from captum_mfv.jobs.atlas import engines
from captum_mfv.runs.settings import AtlasOptions


@pytest.mark.parametrize(
    ("n_gpus", "process", "device", "own"),
    [
        (0, "LokyProcess-2", None, None),
        (1, "LokyProcess-2", None, None),
        (4, "LokyProcess-3", None, "cuda:3"),
        (4, "LokyProcess-6", "cuda", "cuda:2"),
        (4, "LokyProcess-3", "cuda:1", "cuda:1"),
        (4, "LokyProcess-3", "cpu", "cpu"),
        (4, "Dask Worker process (from Nanny)", None, "cuda:1"),
        (4, "MainProcess", None, "cuda:0"),
    ],
)
def test_each_process_has_one_of_several_gpus_unless_one_is_named(n_gpus, process, device, own, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(name=process))
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(get_worker=lambda: SimpleNamespace(name=1)))
    assert engines.worker_device(device) == own


@pytest.mark.parametrize(
    ("options", "threads"),
    [({}, None), ({"jobs": 2}, 4), ({"jobs": 3}, 2), ({"jobs": 20}, 1), ({"engine": "dask"}, 8)],
)
def test_processes_share_the_cores(options, threads, monkeypatch):
    monkeypatch.setattr(engines, "_n_cores", lambda: 8)
    assert engines.threads_of(AtlasOptions(out="out", **options)) == threads
