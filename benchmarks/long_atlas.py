#!/usr/bin/env python
"""Watch a long atlas: python benchmarks/long_atlas.py --out ATLAS [OPTION …]

Runs `captum-mfv atlas` with these options in one process and looks at it every ten seconds, through /proc: memory, open
files, threads, units that are done and CPU seconds. Prints, for each quarter of the time after the scan: units, CPU
seconds per unit and per facet (other work on the machine hardly changes these), and medians of the rest; and the share
of network passes (`network_time.py`). Ctrl-C ends the atlas, and the table is of what it did until then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

_NETWORK_TIME = Path(__file__).with_name("network_time.py")
_SECONDS = 10
_INTERRUPTED = 130  # the command's exit status after Ctrl-C
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """What a process holds, and what it has done."""

    units: int
    facets: int
    cpu_seconds: float
    memory: float  # MiB
    files: int
    threads: int

    @classmethod
    def read(cls, process: int, out: Path) -> Sample:
        """Read /proc and the atlas."""
        folder = Path(f"/proc/{process}")
        status = (folder / "status").read_text()
        memory, threads = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "Threads"))
        ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        rows = [json.loads(path.read_text())["row"] for path in out.glob("units/**/*.json")]
        facets = sum(row.get("n_facets", 0) for row in rows)
        files = len(list((folder / "fd").iterdir()))
        return cls(len(rows), facets, sum(map(int, ticks)) / _TICKS, memory / 1024, files, threads)


def main() -> None:
    """Run the atlas and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    args, options = parser.parse_known_args()
    samples = []
    command = [sys.executable, str(_NETWORK_TIME), "atlas", "--out", str(args.out), "--quiet", *options]
    with subprocess.Popen(command) as atlas:
        began = time.monotonic()
        with suppress(OSError, IndexError, KeyboardInterrupt):  # the process has just ended
            while atlas.poll() is None:
                time.sleep(_SECONDS)
                samples.append(Sample.read(atlas.pid, args.out))
    if atlas.returncode not in (0, _INTERRUPTED):
        raise SystemExit(atlas.returncode)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes, peak memory {max(one.memory for one in samples):.0f} MiB\n")
    print("| quarter | units | CPU seconds per unit | per facet | memory, MiB | open files | threads |")
    print("|---|---|---|---|---|---|---|")
    after = [one for one in samples if one.units]
    for quarter in range(4):
        part = after[quarter * len(after) // 4 : (quarter + 1) * len(after) // 4 + 1]
        units, facets, cpu, *_ = (end - start for start, end in zip(astuple(part[0]), astuple(part[-1]), strict=True))
        memory, files, threads = (median(getattr(one, name) for one in part) for name in ("memory", "files", "threads"))
        rate = f"{cpu / units:.1f} | {cpu / facets:.1f}"
        print(f"| {quarter + 1} | {units} | {rate} | {memory:.0f} | {files:.0f} | {threads:.0f} |", flush=True)


if __name__ == "__main__":
    main()
