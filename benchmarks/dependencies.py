"""What each dependency costs: megabytes on disk and seconds of import; for docs/install.md.

python benchmarks/dependencies.py [EXTRA …]

Measures the environment in which it runs; a fresh one has nothing else in it. *own* is the size of the distribution's
files, *with* that of all that it requires, and *saved* what would not be installed without it. Seconds are the CPU time
of importing the modules that this package uses, after PyTorch, the median of three forked processes.
"""

from __future__ import annotations

import importlib
import os
import statistics
import sys
import time
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MODULES = {
    "captum": "captum.attr",
    "matplotlib": "matplotlib.figure",
    "pillow": "PIL.Image",
    "scikit-learn": "sklearn.cluster, sklearn.decomposition, sklearn.manifold",
    "scipy": "scipy.stats, scipy.cluster.hierarchy",
    "safetensors": "safetensors.torch",
    "torch-lucent": "lucent.optvis.render",
}
"""Modules that this package imports, where they aren't named like the distribution."""

DISTRIBUTION = "captum-mfv"
REPEATS = 3


@cache
def found(name: str) -> Distribution | None:
    """Return an installed distribution."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def required(name: str, extra: str = "") -> list[str]:
    """Return the names of the distributions that one requires here, with an extra of it."""
    lines = map(Requirement, (found(name) and found(name).requires) or ())
    wanted = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]
    own = [canonicalize_name(line.name) for line in wanted]
    return own + [other for line in wanted for one in line.extras for other in required(line.name, one)]


def installed(roots: list[str]) -> set[str]:
    """Return the distributions that are installed because of some."""
    reached, left = set[str](), [canonicalize_name(name) for name in roots]
    while left:
        if (name := left.pop()) not in reached and found(name):
            reached.add(name)
            left += required(name)
    return reached


@cache
def megabytes(name: str) -> float:
    """Return the size of a distribution's files, without compiled Python."""
    files = [file for file in found(name).files or () if file.suffix != ".pyc"]
    return sum(path.stat().st_size for file in files if (path := file.locate()).is_file()) / 1e6


def total(names: set[str]) -> float:
    """Return the size of some distributions."""
    return sum(map(megabytes, names))


def seconds(modules: str) -> float:
    """Return the CPU time of importing modules, in forks of this process."""
    times = []
    for _ in range(REPEATS):
        reader, writer = os.pipe()
        if os.fork() == 0:
            began = time.process_time()
            for module in modules.split(", "):
                importlib.import_module(module)
            os.write(writer, str(time.process_time() - began).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            times.append(float(file.read()))
        os.wait()
    return statistics.median(times)


def main() -> None:
    """Print the tables."""
    roots = required(DISTRIBUTION)
    everything = installed(roots)
    print(f"{len(everything)} distributions, {total(everything):,.0f} MB")
    print(f"PyTorch: {seconds('torch'):.2f} s\n")
    importlib.import_module("torch")
    print("| dependency | own, MB | with, MB | saved, MB | seconds |\n|---|---|---|---|---|")
    for name in sorted(roots, key=megabytes, reverse=True):
        without = installed([other for other in roots if other != name])
        modules = MODULES.get(name, name.replace("-", "_"))
        print(
            f"| `{name}` | {megabytes(name):.1f} | {total(installed([name])):.1f} | {total(everything - without):.1f} "
            f"| {seconds(modules):.2f} |",
            flush=True,
        )
    for extra in sys.argv[1:]:
        added = installed(sorted({*required(DISTRIBUTION, extra)})) - everything
        print(f"{extra}: {len(added)} distributions, {total(added):,.0f} MB: {', '.join(sorted(added)[:60])}")


if __name__ == "__main__":
    main()
