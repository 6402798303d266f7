"""A round of a deployed fedelta against one of stock Flower, on the same work, in turns: `benchmarks/README.md`.

    .venv/bin/python -m benchmarks.deployment --sites 2 --turns 3 --rounds 6

Both sides run over TLS with node authentication on loopback; a relay between sites and server counts the bytes of each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

# Before torch is imported, and for all that is started from here: one arithmetic thread for each process.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")

from benchmarks.our_side import Ours
from benchmarks.stock_side import Stock, Timed, prepare

from fedelta.assembly.run import assemble
from fedelta.config import load_config

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.toml"
LARGEST_RATIO = 0.5
LARGEST_OVERHEAD = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2, help="runs of each side")
    parser.add_argument("--rounds", type=int, default=5, help="of a run; the first does not count")
    parser.add_argument("--codec", default="float32", help="of fedelta; stock Flower sends float32")
    parser.add_argument("--stock-evaluates", action="store_true", help="stock Flower also evaluates on its nodes")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    choice = parser.parse_args()
    settings = [f"codec.name={choice.codec}", f"strategy.num_rounds={choice.rounds}"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedelta-bench-")))
        prepare(assemble(load_config(RECIPE, settings)), folder / "task", choice.sites)
        ours = stack.enter_context(Ours(folder / "ours", RECIPE.read_text(), settings, choice.sites))
        stock = stack.enter_context(Stock(folder / "stock", folder / "task", choice.sites))
        runs: dict[str, list[Timed]] = {"fedelta": [], "stock": []}
        for turn in range(choice.turns):
            for side in ("fedelta", "stock"):
                timed = ours.run(turn) if side == "fedelta" else stock.run(choice.rounds, float(choice.stock_evaluates))
                runs[side].append(timed)
                print(f"turn {turn + 1}, {side}: {[round(second, 2) for second in timed.seconds]}", flush=True)
    print("\n".join(table(runs, choice.sites, choice.rounds)))
    if choice.out is not None:
        choice.out.write_text(json.dumps({side: [asdict(run) for run in of] for side, of in runs.items()}, indent=1))


def table(runs: dict[str, Sequence[Timed]], num_sites: int, num_rounds: int) -> list[str]:
    """What the runs say, line by line."""
    median = {side: statistics.median(s for run in of for s in run.seconds) for side, of in runs.items()}
    ratios = [
        statistics.median(ours.seconds) / statistics.median(stock.seconds)
        for ours, stock in zip(runs["fedelta"], runs["stock"], strict=True)
    ]
    lines = [f"{num_sites} sites, {num_rounds} rounds a run, the first not counted"]
    for side, of in runs.items():
        wire = statistics.mean(run.wire_bytes / num_rounds for run in of)
        lines.append(
            f"{side}: {median[side]:.2f} s a round, {wire:,.0f} wire bytes a round, accuracy {of[-1].accuracy:.4f}"
        )
        peaks = {kind: max(run.peak_mib.get(kind, 0) for run in of) for run in of for kind in run.peak_mib}
        lines.extend(f"    peak {peak:5.0f} MiB  {kind}" for kind, peak in sorted(peaks.items()))
    last = runs["fedelta"][-1]
    overhead = last.wire_bytes / last.payload_bytes
    lines.append(f"fedelta / stock, seconds a round: {statistics.median(ratios):.2f} of at most {LARGEST_RATIO}")
    lines.append(f"fedelta, wire bytes / payload bytes of the ledger: {overhead:.3f} of at most {LARGEST_OVERHEAD}")
    return lines


if __name__ == "__main__":
    main()
