"""Seconds of a round with 1, 2, 4, ... worker processes on the CPU: how far they are from linear.

    .venv/bin/python benchmarks/workers.py [--workers 1 2 4 8] [--cases W1 W2] [--repeats 5] [--out FILE]

The cohort is divided into the same packs for every number of workers, and the params of a round have the same bits,
which is checked. Sides take turns. The last column is the speed divided by that of one worker and by their number.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # workers are copies of this process, which a process with a GPU cannot have

sys.path.pop(0)  # the folder of this file, whose modules are in the package `benchmarks`
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import CASES, CNN, Case
from benchmarks.processes import timed

CLIENTS_PER_PLACE = 4
RUNS = {
    "W1": Case(
        "full fine-tuning, CNN of 1.63 M, 50 images a client, batch 10", **CNN | {"batch_size": 10}, hidden=1024
    ),
    "W2": replace(CASES["lora-32"], title="LoRA on vit-micro, 64 images a client, batch 32", local_epochs=1),
}
ROWS = {"W1": 50, "W2": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--cases", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write JSON")
    options = parser.parse_args()
    rows = [measure(name, options.workers, options.repeats) for name in options.cases]
    if options.out:
        options.out.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "rows": rows}, indent=1) + "\n")


def measure(name: str, counts: list[int], repeats: int) -> dict:
    """Seconds of the rounds of each number of workers, in turns."""
    import torch
    from benchmarks.sides import fedelta_side

    from fedelta.runtimes.processes import Processes, Workers
    from fedelta.runtimes.starting import copies

    places, runtimes = max(counts), []
    case = replace(RUNS[name], sizes=(ROWS[name],) * (CLIENTS_PER_PLACE * places))

    def on(number: int):
        def runtime(site):
            runtimes.append(Processes(site, Workers(number, copies, 0.0, asked_for=True)))
            return runtimes[-1]

        return runtime

    rounds = {number: fedelta_side(case, places, on(number)) for number in counts}
    seconds: dict[int, list[float]] = {number: [] for number in counts}
    with ExitStack() as stack:
        for runtime in runtimes:
            stack.enter_context(runtime.at_work())
        for repeat in range(repeats + 1):
            params = {number: timed(call, seconds[number]) for number, call in rounds.items()}
            first = params[counts[0]]
            assert all(torch.equal(first[key], other[key]) for other in params.values() for key in first), "other bits"
            if not repeat:  # caches are filled, and workers started
                seconds = {number: [] for number in counts}
    print(f"{case.title}, {len(case.sizes)} clients")
    for line in lines(seconds):
        print(line, flush=True)
    return {"case": name, "clients": len(case.sizes), "seconds": seconds}


def lines(seconds: dict[int, list[float]]) -> list[str]:
    """The rows of a table: workers, median seconds and their range, share of linear."""
    fewest = min(seconds)
    base = fewest * statistics.median(seconds[fewest])
    return [
        f"  {number:3} workers {statistics.median(times):7.3f} s ({min(times):.3f} to {max(times):.3f}), "
        f"{base / (number * statistics.median(times)):.2f} of linear"
        for number, times in seconds.items()
    ]


if __name__ == "__main__":
    main()
