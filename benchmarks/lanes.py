"""Seconds a round with several lanes against one lane, for every tuning method, in turns in one process.

    .venv/bin/python benchmarks/lanes.py [--lanes 4 8] [--repeats 7] [--out docs/results/lanes.json]

A round is what a run pays for, evaluation left out; both sides take the same steps for the same clients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# As the command line does: on a busy machine threads that spin make every figure a lottery.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from fedelta.config import load_config
from fedelta.experiment import Experiment
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import Standing, federate

ROOT = Path(__file__).resolve().parents[1]
ALL_CONV = 'tuning.target_modules="all-conv"'
CASES = {
    "vit-micro": ("demo", dict.fromkeys(("head", "bias", "lora", "adapter", "prompt", "lora+bias"), ())),
    "resnet-micro": (
        "parallel-digits",
        {"head": (), "bias": (), "parallel": (), "lora": (ALL_CONV,), "parallel+lora": (ALL_CONV,)},
    ),
}
WARM_UP_ROUNDS = 2  # the first fills the cache of frozen features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write JSON, and a table in Markdown beside it")
    options = parser.parse_args()
    counts = [1, *options.lanes]
    rows = []
    for model, (recipe, methods) in CASES.items():
        for method, overrides in methods.items():
            seconds = interleaved(recipe, (f"tuning.name={method}", *overrides), counts, options.repeats)
            rows.append({"model": model, "method": method, "seconds": seconds})
            print(line(rows[-1]), flush=True)
    if options.out:
        facts = {"command": " ".join(sys.argv), "threads": torch.get_num_threads(), "rows": rows}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
        header = [f"{lanes} lanes / 1" for lanes in options.lanes]
        head = f"| model | method | 1 lane, s | {' | '.join(header)} |\n|---|---|---|{'---|' * len(header)}\n"
        options.out.with_suffix(".md").write_text(head + "".join(f"{line(row)}\n" for row in rows))


def interleaved(recipe: str, overrides: tuple[str, ...], counts: list[int], repeats: int) -> dict[int, list[float]]:
    """Seconds of `repeats` rounds for each number of lanes, taken in turns."""
    sides = {lanes: rounds(recipe, (*overrides, f"runtime.lanes={lanes}")) for lanes in counts}
    for _ in range(WARM_UP_ROUNDS):
        for side in sides.values():
            next(side)
    seconds: dict[int, list[float]] = {lanes: [] for lanes in counts}
    for _ in range(repeats):
        for lanes, side in sides.items():
            start = time.perf_counter()
            next(side)
            seconds[lanes].append(time.perf_counter() - start)
    return seconds


def rounds(recipe: str, overrides: tuple[str, ...]) -> Iterator[RoundOutcome]:
    """The rounds of a recipe at a learning rate that moves next to nothing, none of them evaluated."""
    never = ("strategy.num_rounds=1000000", "evaluate_every=1000000", "client.lr=1e-6")
    assembly = Experiment(load_config(ROOT / "recipes" / f"{recipe}.toml", (*overrides, *never))).assembly
    state = assembly.federation.strategy.init(assembly.params, assembly.spec)
    return federate(assembly.federation, Standing(assembly.params, state))


def line(row: dict) -> str:
    """One lane in seconds, and the median ratio over the pairs of rounds for each other number of lanes."""
    (_, one), *others = row["seconds"].items()
    ratios = [statistics.median(b / a for a, b in zip(one, other, strict=True)) for _, other in others]
    cells = [row["model"], row["method"], f"{statistics.median(one):.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
