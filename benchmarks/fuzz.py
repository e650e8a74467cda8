"""Fuzzing for as long as one likes: what is accepted, refused by name, and, of which there must be none, anything else.

The tests do the same for seconds. Run from the repository's root: ``python benchmarks/fuzz.py --seconds 300``. With
``--guided TARGET``, atheris (``pip install atheris``) looks for inputs that reach lines of this package not reached
yet.
"""

import argparse
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

if "--guided" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["captum_mfv"]):
        from fuzz_targets import targets
        from fuzz_watch import ReadOutside, Target
else:
    from fuzz_targets import targets
    from fuzz_watch import ReadOutside, Target

_COLUMNS = ("inputs", "accepted", "refused", "uncaught", "outside")


class Tally:
    """What became of a target's inputs until its time is over, which is a `KeyboardInterrupt`."""

    def __init__(self, target: Target, seconds: float) -> None:
        self.target = target
        self.end = monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.bugs: dict[str, str] = {}

    def __call__(self, value: object) -> None:
        """Use one input, and count it."""
        if monotonic() > self.end:
            raise KeyboardInterrupt
        self.counts["inputs"] += 1
        try:
            self.counts["accepted" if self.target.accepts(value) else "refused"] += 1
        except ReadOutside as error:
            self.counts["outside"] += 1
            self.bugs[str(error)] = ""
        except Exception as error:
            self.counts["uncaught"] += 1
            trace = traceback.format_exc(limit=-4) + repr(value)[:600]
            self.bugs[f"{type(error).__name__}: {str(error)[:200]}"] = trace

    def test(self, begin: int) -> Callable[[], None]:
        """All of it as a test of hypothesis, of 500 inputs, which doesn't use its last parameter."""
        options = settings(
            max_examples=500,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        return seed(begin)(options(given(self.target.inputs)(lambda value: self(value))))

    def tell(self) -> bool:
        """Print a line, and what went wrong; whether anything did."""
        print(f"{self.target.name:24}", *(f"{self.counts[column]:9}" for column in _COLUMNS), flush=True)
        for bug, trace in self.bugs.items():
            print(bug, trace, sep="\n", file=sys.stderr)
        return bool(self.bugs)


def fuzz(tally: Tally, begin: int) -> bool:
    with suppress(KeyboardInterrupt):
        while True:
            tally.test(begin)()
            begin += 1
    return tally.tell()


def guide(tally: Tally, begin: int, folder: str) -> None:
    """The same, on inputs that coverage leads to; ends the process, as libFuzzer does."""
    test = tally.test(begin)

    def once(content: bytes) -> None:
        try:
            test.hypothesis.fuzz_one_input(content)
        except KeyboardInterrupt:
            failed = tally.tell()
            shutil.rmtree(folder)
            os._exit(failed)

    atheris.Setup([sys.argv[0], "-max_len=8192", "-len_control=0", "-rss_limit_mb=0", f"-seed={begin + 1}"], once)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose names begin so")
    parser.add_argument("--guided", metavar="TARGET", help="one target, by atheris")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        chosen = [target for target in targets(Path(folder)) if target.name.startswith(options.only)]
        print(f"{'target':24}", *(f"{column:>9}" for column in _COLUMNS), flush=True)
        if options.guided:
            (target,) = (target for target in chosen if target.name == options.guided)
            guide(Tally(target, options.seconds), options.seed, folder)
        each = options.seconds / len(chosen)
        sys.exit(sum(fuzz(Tally(target, each), options.seed) for target in chosen) > 0)


if __name__ == "__main__":
    main()
