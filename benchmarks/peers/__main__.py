"""fedelta and other frameworks on the same work, in turns: `make bench-peers`, or

    .venv/bin/python -m benchmarks.peers [--works W1 W2b] [--sides fedelta blazefl] [--repeats 7] [--quick]

Environments are made first (environments.py). A side whose parameters differ from the bare loop's has no times.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

# fedelta prepares the works in this process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.peers.measure import Plan, measure  # noqa: E402
from benchmarks.peers.prepare import prepare  # noqa: E402
from benchmarks.peers.side import ROOT, SIDES, interpreter  # noqa: E402
from benchmarks.peers.works import WORKS  # noqa: E402


def main() -> None:
    """Measures, and writes the results."""
    options = parsed()
    started = time.monotonic()
    present = [name for name in options.sides if interpreter(SIDES[name], options.cache).exists()]
    logs = options.cache / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    figures = {}
    for name in options.works:
        work = WORKS[name]
        tell(started, f"{name}: {work.title}")
        folder = prepare(work, options.cache / "works")
        plan = Plan(folder, options.cache, present, options.repeats, options.warm_up, logs, options.workers)
        figures[name] = measure(work, plan, lambda text: tell(started, text))
        for side in present:
            one = figures[name][side]
            print(
                f"  {side:10} {one.error or f'{one.median:8.3f} s  {one.peak_mib:6.0f} MiB  {one.seconds}'}", flush=True
            )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        records = {work: {side: one.as_record() for side, one in sides.items()} for work, sides in figures.items()}
        options.out.write_text(json.dumps({"command": " ".join(sys.argv), "works": records}, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each side")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them")
    parser.add_argument("--workers", type=int, help="of fedelta, instead of 'auto'")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PEERS", ROOT / ".peers")))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "peers.json")
    return parser.parse_args()


def tell(started: float, text: str) -> None:
    """Prints it with the seconds since the start."""
    print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    main()
