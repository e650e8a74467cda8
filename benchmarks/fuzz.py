"""Fuzzing for as long as one likes: what is accepted, refused by name, and, of which there must be none, anything else.

The tests do the same for seconds. Run from the repository's root: ``python benchmarks/fuzz.py --seconds 300``.
"""

import argparse
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzz_targets import ReadOutside, Target, targets


def fuzz(target: Target, seconds: float, begin: int) -> tuple[Counter[str], dict[str, str]]:
    counts: Counter[str] = Counter()
    bugs: dict[str, str] = {}
    end = monotonic() + seconds

    def once(value: object) -> None:
        if monotonic() > end:
            raise KeyboardInterrupt
        counts["inputs"] += 1
        try:
            counts["accepted" if target.accepts(value) else "refused"] += 1
        except ReadOutside as error:
            counts["outside"] += 1
            bugs[str(error)] = ""
        except Exception as error:
            counts["uncaught"] += 1
            bugs[f"{type(error).__name__}: {str(error)[:200]}"] = traceback.format_exc(limit=-4) + repr(value)[:600]

    options = settings(
        max_examples=500, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    with suppress(KeyboardInterrupt):
        while True:
            seed(begin)(options(given(target.inputs)(once)))()
            begin += 1
    return counts, bugs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose names begin so")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        chosen = [target for target in targets(Path(folder)) if target.name.startswith(options.only)]
        print(f"{'target':24}{'inputs':>9}{'accepted':>10}{'refused':>9}{'uncaught':>10}{'outside':>9}", flush=True)
        for target in chosen:
            counts, bugs = fuzz(target, options.seconds / len(chosen), options.seed)
            cells = f"{counts['inputs']:9}{counts['accepted']:10}{counts['refused']:9}"
            print(f"{target.name:24}{cells}{counts['uncaught']:10}{counts['outside']:9}", flush=True)
            for bug, trace in bugs.items():
                failed = True
                print(bug, trace, sep="\n", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
