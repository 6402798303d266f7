"""Seconds of a round: two worker processes against one process, the same packs with the same bits.

    .venv/bin/python benchmarks/processes.py [--cases lora-8 full] [--repeats 7] [--before TREE] [--out FILE]

Both sides are in one process and take turns: one trains the packs itself, with one arithmetic thread each, the other
hands them to two workers. The params after each round are compared bit by bit. `--before` adds a third side, in a
process of its own, with the code of another work tree: it trains the cohort at once, with as many threads as there are
cores. Its column gives the ratios of one process and of two workers to it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

# As the command line does: on a busy machine threads that spin make every figure a lottery.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(os.environ.get("FEDELTA_BENCHMARKS", Path(__file__).resolve().parents[1]))
sys.path.pop(0)  # the folder of this file, whose modules are in the package `benchmarks`
sys.path.insert(0, str(ROOT))

from benchmarks.cases import CASES, CNN, DEMO_SIZES, Case  # noqa: E402

WORKERS = 2
FLOOR = 0.62
RUNS = {
    "lora-8": replace(CASES["lora-8"], title="LoRA on vit-micro, batch 8", local_epochs=2),
    "lora-32": replace(
        CASES["lora-32"],
        title="LoRA on vit-micro, batch 32",
        local_epochs=1,
        sizes=tuple(3 * size for size in DEMO_SIZES),
    ),
    "full": Case("full fine-tuning, CNN of 1.6 M, batch 32", **CNN, hidden=1000),
}
COLUMNS = ("case", "one process s", "two workers s", "ratio", "quartiles", "floor", "to before", "MiB", "workers MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--before", type=Path, help="a work tree of another commit, to compare with")
    parser.add_argument("--out", type=Path, help="also write JSON")
    parser.add_argument("--side", choices=RUNS, help=argparse.SUPPRESS)  # the other side of `--before`
    options = parser.parse_args()
    if options.side:
        serve(options.side)
        return
    print(" | ".join(COLUMNS))
    rows = [measure(name, options.repeats, options.before) for name in options.cases]
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def measure(name: str, repeats: int, before: Path | None) -> dict:
    import torch
    from benchmarks.sides import fedelta_side

    from fedelta.record.environment import peak_memory_bytes
    from fedelta.runtimes.processes import Processes, Workers
    from fedelta.runtimes.starting import copies

    made = []

    def on_workers(site):
        made.append(Processes(site, Workers(WORKERS, copies, 0.0, asked_for=True)))
        return made[0]

    one, two = fedelta_side(RUNS[name], WORKERS), fedelta_side(RUNS[name], WORKERS, on_workers)
    seconds: dict[str, list[float]] = {"one": [], "two": [], "before": []}
    # Workers are copies that hold the other side's input open: they have to end before it is waited for.
    with other_commit(name, before) as other, made[0].at_work() as peaks:
        for repeat in range(repeats + 1):
            params = {side: timed(call, seconds[side]) for side, call in (("one", one), ("two", two))}
            assert all(map(torch.equal, params["one"].values(), params["two"].values())), "the bits differ"
            seconds["before"].append(other())
            if not repeat:  # caches are filled, and workers started
                seconds = {side: [] for side in seconds}
        memory = {"peak_memory_bytes": peak_memory_bytes(), "worker_peak_memory_bytes": list(peaks())}
    row = {"case": name, "seconds": seconds, "quartiles": quartiles(seconds["two"], seconds["one"]), **memory}
    if before is not None:
        row["of_before"] = {side: quartiles(seconds[side], seconds["before"]) for side in ("one", "two")}
    print(" | ".join(cells(name, row)), flush=True)
    return row


def timed(call: Callable, seconds: list[float]) -> dict:
    """What `call` gives; its seconds are added to `seconds`."""
    started = time.perf_counter()
    value = call()
    seconds.append(time.perf_counter() - started)
    return value


def quartiles(some: list[float], others: list[float]) -> list[float]:
    """Of the ratios of two sides."""
    return statistics.quantiles([one / other for one, other in zip(some, others, strict=True)], n=4)


def cells(name: str, row: dict) -> tuple[str, ...]:
    low, middle, high = row["quartiles"]
    peaks = row["worker_peak_memory_bytes"]
    of_before = row.get("of_before")
    return (
        RUNS[name].title,
        f"{statistics.median(row['seconds']['one']):.3f}",
        f"{statistics.median(row['seconds']['two']):.3f}",
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{FLOOR}",
        f"{of_before['one'][1]:.2f}, {of_before['two'][1]:.2f}" if of_before else "-",
        f"{row['peak_memory_bytes'] / 2**20:.0f}",
        ", ".join(f"{peak / 2**20:.0f}" for peak in peaks),
    )


@contextmanager
def other_commit(name: str, tree: Path | None) -> Iterator[Callable[[], float]]:
    """Gives a function that runs a round of the code in `tree` and returns its seconds; nan without a tree."""
    if tree is None:
        yield lambda: math.nan
        return
    environment = os.environ | {"PYTHONPATH": f"{tree / 'src'}", "FEDELTA_BENCHMARKS": str(tree)}
    command = [sys.executable, __file__, "--side", name]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as side:

        def ask() -> float:
            side.stdin.write("\n")
            side.stdin.flush()
            return float(side.stdout.readline())

        yield ask
        side.stdin.close()


def serve(name: str) -> None:
    """Answers every line with the seconds of a round, all clients at once."""
    from benchmarks.sides import fedelta_side

    call, seconds = fedelta_side(RUNS[name]), []
    for _ in sys.stdin:
        timed(call, seconds)
        print(seconds[-1], flush=True)


if __name__ == "__main__":
    main()
