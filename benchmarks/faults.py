#!/usr/bin/env python
"""Interrupt a run at every point and resume it: python benchmarks/faults.py [--points N] [--kinds KIND …] [--json FILE]

A small run, or an atlas, is completed once. Then it is interrupted at N evenly spaced points: before and after each
fsync and rename, and at the start and end of each stage; by kill -9, by a full disk, and by Ctrl-C. After each
interruption, every file in the folder must be complete; then the same command resumes the work, and the folder must be
byte-identical to that of the completed run, except for the manifest's timings. Prints a table. Needs a system with
fork.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from captum_mfv import jobs
from captum_mfv.datasets import digits
from captum_mfv.jobs import atlas
from captum_mfv.runs.writer import RunWriter
from captum_mfv.storage import files

_MODEL = """
import torch
from torch import nn
from captum_mfv import InputSpec

def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3)), InputSpec(32, (0.5,), (0.5,))
"""


for _name in ("captum.attr", "captum_mfv.figures", "torch._dynamo"):  # once, rather than late in each forked process
    importlib.import_module(_name)

KINDS = ("crops", "whole", "atlas")
"""A run on crops of a hidden unit's peaks, a run on whole images, an atlas."""


def prepare(folder: Path, kind: str = "crops") -> jobs.RunSettings | atlas.AtlasSettings:
    """Write a model file and images; return the settings of a job of one of the kinds."""
    (folder / "images").mkdir()
    for i, image in enumerate(digits()[0][:48]):
        Image.fromarray((image[0] * 255).byte().numpy()).save(folder / "images" / f"{i:02}.png")
    (folder / "net.py").write_text(_MODEL)
    if kind == "atlas":
        job = {"units": "2:0-3,0:1", "images": "images", "top_k": 12, "facets": 2, "steps": 2, "batch": 2}
        return atlas.AtlasSettings("net.py:make", **job)
    # enough images for two batches of the collection
    return jobs.RunSettings("net.py:make", "2:3", "images", top_k=36 if kind == "crops" else None, facets=3, steps=8)


def kill() -> None:
    """End the process at once, as kill -9, the kernel's out-of-memory killer or a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    """Raise the error of a write to a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt() -> None:
    """Raise the error of Ctrl-C."""
    raise KeyboardInterrupt


FAULTS: dict[str, Callable[[], None]] = {"kill -9": kill, "full disk": fill_disk, "Ctrl-C": interrupt}


class Points:
    """Counts the points that a run passes, and calls the fault at one of them."""

    def __init__(self, at: int | None = None, fault: Callable[[], None] = kill) -> None:
        self.n = 0
        self._at = at
        self._fault = fault

    def passed(self) -> None:
        """Count a point."""
        self.n += 1
        if self.n == self._at:
            self._fault()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a point before and after each call."""

        def wrapped(*args: Any, **options: Any) -> Any:
            self.passed()
            found = call(*args, **options)
            self.passed()
            return found

        return wrapped

    def stage(self, stage: Callable[..., Any]) -> Callable[..., Any]:
        """Return `RunWriter.stage` with a point at the start and end of the stage."""

        @contextmanager
        def wrapped(folder: RunWriter, name: str) -> Iterator[None]:
            self.passed()
            with stage(folder, name):
                yield
            self.passed()

        return wrapped


def attempt(job: jobs.RunSettings | atlas.AtlasSettings, points: Points, report: Path) -> None:
    """Run the job in a separate process with patched functions; the process writes its number of points to a file."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.fsync = points.around(os.fsync)
            Path.replace = points.around(Path.replace)  # type: ignore[method-assign]
            RunWriter.stage = points.stage(RunWriter.stage)  # type: ignore[method-assign]
            files.Checkpoint.due = True  # type: ignore[assignment, method-assign]  # save after every step
            torch.set_num_threads(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                jobs.run(job, "run") if isinstance(job, jobs.RunSettings) else atlas.run(job, "run")
            code = 0
        except (OSError, KeyboardInterrupt):
            code = 2
        except BaseException as error:  # any error must reach the parent
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            report.write_text(json.dumps(points.n))
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
        raise RuntimeError("the run failed without a fault")


def broken(folder: Path) -> list[str]:
    """Return the folder's incomplete files, except hidden ones, which are temporary files of writes."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        try:
            if not hidden:
                _READ.get(path.suffix, Path.read_bytes)(path)
        except Exception as error:  # any error: the file is incomplete
            found.append(f"{path.relative_to(folder)}: {error}")
    return found


def _tensors(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            file.get_tensor(name)


def _picture(path: Path) -> None:
    with Image.open(path) as image:
        np.asarray(image)


_READ: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".png": _picture,
    ".webp": _picture,
    ".safetensors": _tensors,
}


def content(folder: Path) -> dict[str, Any]:
    """Return each file's bytes by path, temporary files included; of a run's timings the names, of an atlas's none."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    manifest = json.loads(found["manifest.json"])
    manifest["timings"] = sorted(manifest["timings"]) if "stages" in manifest else []
    return {**found, "manifest.json": manifest}


def stop_everywhere(n_points: int | None, faults: list[str], kind: str) -> dict[str, Any]:
    """Return the counts of each fault, from runs in a temporary folder."""
    with tempfile.TemporaryDirectory() as place:
        before = Path.cwd()
        os.chdir(place)
        try:
            return _stop_everywhere(prepare(Path(), kind), n_points, faults)
        finally:
            os.chdir(before)


def _stop_everywhere(
    job: jobs.RunSettings | atlas.AtlasSettings, n_points: int | None, faults: list[str]
) -> dict[str, Any]:
    run, report = Path("run"), Path("report.json")
    attempt(job, Points(), report)
    total, wanted = json.loads(report.read_text()), content(run)
    shutil.rmtree(run)
    chosen = np.unique(np.linspace(1, total, n_points or total).round().astype(int)).tolist()
    found: dict[str, Any] = {"points in the run": total}
    for fault in faults:
        counts = {"stopped": 0, "half-written": 0, "different": 0}
        for at in chosen:
            report.unlink(missing_ok=True)
            attempt(job, Points(at, FAULTS[fault]), report)
            counts["stopped"] += not report.exists() or json.loads(report.read_text()) < total
            counts["half-written"] += bool(broken(run)) if run.exists() else 0
            attempt(job, Points(), report)
            there = content(run)
            if there != wanted:
                names = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
                sys.stderr.write(f"{fault} at point {at} of {total}: {', '.join(names)} differ\n")
                counts["different"] += 1
            shutil.rmtree(run)
        found[fault] = counts
    return found


def main() -> None:
    """Interrupt, resume and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, help="number of points; by default all points")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["crops"], help="crops by default")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    args = parser.parse_args()
    found = {}
    for kind in args.kinds:
        began = time.perf_counter()
        counts = found[kind] = stop_everywhere(args.points, args.faults, kind)
        print(f"{kind}: {counts['points in the run']} points in the run; {time.perf_counter() - began:.0f} s\n")
        print("| fault | interrupted | runs with incomplete files | resumed runs that differ |\n|---|---|---|---|")
        for fault in args.faults:
            one = counts[fault]
            print(f"| {fault} | {one['stopped']} | {one['half-written']} | {one['different']} |")
    if args.json:
        files.write_whole(args.json, json.dumps(found).encode())


if __name__ == "__main__":
    main()
