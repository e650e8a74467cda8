"""Fuzz for any length of time: count inputs that are accepted, that raise an `MFVError`, and that reveal a bug.

The tests do the same for a few seconds. Run from the repository's root: ``python benchmarks/fuzz.py --seconds 300``.
With ``--guided TARGET``, atheris (``pip install atheris``) searches for inputs that reach new lines of this package.
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
    """Outcomes of a target's inputs; raises `KeyboardInterrupt` when the target's time is over."""

    def __init__(self, target: Target, seconds: float) -> None:
        self.target = target
        self.end = monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.bugs: dict[str, str] = {}

    def __call__(self, value: object) -> None:
        """Run the target on one input, and count the outcome."""
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
        """Return a hypothesis test that runs the target on 500 inputs."""
        options = settings(
            max_examples=500,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        return seed(begin)(options(given(self.target.inputs)(lambda value: self(value))))

    def summarize(self) -> bool:
        """Print a row of counts, and the bugs to stderr; return whether there are bugs."""
        print(f"{self.target.name:24}", *(f"{self.counts[column]:9}" for column in _COLUMNS), flush=True)
        for bug, trace in self.bugs.items():
            print(bug, trace, sep="\n", file=sys.stderr)
        return bool(self.bugs)


def fuzz(tally: Tally, begin: int) -> bool:
    with suppress(KeyboardInterrupt):
        while True:
            tally.test(begin)()
            begin += 1
    return tally.summarize()


def guide(tally: Tally, begin: int, folder: str) -> None:
    """Fuzz with inputs guided by coverage; ends the process, as libFuzzer does."""
    test = tally.test(begin)

    def once(content: bytes) -> None:
        try:
            test.hypothesis.fuzz_one_input(content)
        except KeyboardInterrupt:
            failed = tally.summarize()
            shutil.rmtree(folder)
            os._exit(failed)

    atheris.Setup([sys.argv[0], "-max_len=8192", "-len_control=0", "-rss_limit_mb=0", f"-seed={begin + 1}"], once)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="seconds for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="prefix of the targets' names")
    parser.add_argument("--guided", metavar="TARGET", help="fuzz one target with atheris")
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
