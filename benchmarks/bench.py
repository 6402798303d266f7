"""Seconds a round and peak memory of fedelta against a bare PyTorch loop that does the same steps.

    .venv/bin/python benchmarks/bench.py [--cases lora-8 head] [--repeats 9] [--out]

Every case runs in new processes: one that times both sides in turns, and one per side for its memory. This
process imports no torch, because a child's peak memory starts at what its parent holds.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cases import CASES, Case  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MEMORY_ROUNDS = 2
COLUMNS = ("case", "bare ms", "fedelta ms", "ratio", "quartiles", "target", "bare MiB", "fedelta MiB")


def main() -> None:
    options = parse()
    rows = []
    for name in options.cases:
        row = measure(name, options.repeats, options.threads)
        if not rows:
            print_machine(row["machine"], options.repeats)
            print_line(COLUMNS)
        rows.append(row)
        print_line(cells(CASES[name], row))
    for model in dict.fromkeys(f"{row['model']}: {', '.join(names_on(row, rows))}" for row in rows):
        print(model)
    if options.out:
        save(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="fedelta against a bare PyTorch loop that does the same steps")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds of each side (default 9)")
    parser.add_argument("--threads", type=int, help="arithmetic threads (default: torch's own choice)")
    parser.add_argument("--out", action="store_true", help="also write JSON to benchmarks/results/")
    return parser.parse_args()


def measure(name: str, repeats: int, threads: int | None) -> dict:
    timed = run_worker(threads, "time", name, repeats)
    bare, fedelta = timed["seconds"]["bare"], timed["seconds"]["fedelta"]
    low, middle, high = statistics.quantiles([ours / theirs for theirs, ours in zip(bare, fedelta, strict=True)])
    return {
        "case": name,
        **timed,
        "bare_seconds": statistics.median(bare),
        "fedelta_seconds": statistics.median(fedelta),
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "target": CASES[name].target,
        "peak_memory_bytes": {
            side: run_worker(threads, side, name, MEMORY_ROUNDS)["peak_memory_bytes"] for side in timed["seconds"]
        },
    }


def run_worker(threads: int | None, task: str, name: str, count: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.worker", task, name, str(count)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def cells(case: Case, row: dict) -> tuple[str, ...]:
    low, high = row["ratio_quartiles"]
    mebibytes = {side: f"{size / 2**20:.0f}" for side, size in row["peak_memory_bytes"].items()}
    if case.target is None:
        verdict = ""
    else:
        verdict = f"{case.target:g} {'met' if row['ratio'] <= case.target else 'MISSED'}"
    return (
        case.title,
        f"{row['bare_seconds'] * 1e3:.1f}",
        f"{row['fedelta_seconds'] * 1e3:.1f}",
        f"{row['ratio']:.3f}",
        f"{low:.3f}..{high:.3f}",
        verdict,
        mebibytes["bare"],
        mebibytes["fedelta"],
    )


def print_line(cells: tuple[str, ...]) -> None:
    widths = (36, 9, 10, 7, 14, 12, 8, 11)
    first, *rest = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    print(first, *rest, sep="  ", flush=True)


def print_machine(machine: dict, repeats: int) -> None:
    waiting = f", OMP_WAIT_POLICY={policy}" if (policy := os.environ.get("OMP_WAIT_POLICY")) else ""
    print(
        f"{machine['cpu']}, {machine['num_cpus']} CPUs, {machine['num_threads']} threads{waiting}; "
        f"python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}\n"
        f"milliseconds a round: median of {repeats}, the two sides in turns; ratio: median of the pairs\n"
    )


def names_on(row: dict, rows: list[dict]) -> list[str]:
    return [other["case"] for other in rows if other["model"] == row["model"]]


def save(rows: list[dict]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H%M%SZ}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
