"""Accuracy, tuned parameters and bytes of tuning methods, over seeds, with learning rates chosen on another seed.

    .venv/bin/python benchmarks/accuracy.py vit --out docs/results/digits-vit.json
    .venv/bin/python benchmarks/accuracy.py cnn --out docs/results/digits-resnet.json

Every cell is a run of a recipe of this repository with overrides. Its learning rate is the best of a grid by final
accuracy at seed 0, whose data split, partition and cohorts are others than those of the seeds that are reported. Runs
go side by side, one thread each; those that an earlier call finished are taken from `--runs` and not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUNING_SEED, SEEDS = 0, (1, 2, 3)


@dataclass(frozen=True)
class Cell:
    """One row of a table: a recipe with overrides, and the learning rates to choose from."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    lrs: tuple[float, ...]


def vit_cells() -> list[Cell]:
    """FedPEFT's methods on the demo: 64 clients, 8 a round, alpha 0.1."""
    lrs = {
        "full": (3e-4, 1e-3, 3e-3),
        "head": (3e-3, 1e-2, 3e-2),
        "bias": (1e-3, 3e-3, 1e-2),
        "lora": (1e-3, 3e-3, 1e-2),
        "adapter": (1e-3, 3e-3, 1e-2),
        "prompt": (3e-3, 1e-2, 3e-2),
    }
    return [
        Cell(name, "recipes/demo.toml", (f"tuning.name={name}", "evaluate_every=5"), grid) for name, grid in lrs.items()
    ]


def cnn_cells() -> list[Cell]:
    """Parallel adapters against the whole model: silos and devices, IID and alpha 0.1."""
    places = {
        "silo": ("partition.num_clients=10", "strategy.clients_per_round=10", "strategy.num_rounds=20"),
        "device": (
            "partition.num_clients=100", "strategy.clients_per_round=10", "strategy.num_rounds=60",
            "client.local_epochs=3",
        ),
    }  # fmt: skip
    divisions = {"IID": ("partition.name=iid",), "alpha 0.1": ("partition.name=dirichlet", "partition.alpha=0.1")}
    methods = {
        "full": ("tuning.name=full",),
        "parallel, He-normal start": ("tuning.init=he",),
        "parallel, zero start": ("tuning.init=zero",),
    }
    return [
        Cell(
            f"{place}, {division}: {method}",
            "recipes/parallel-digits.toml",
            (*overrides, *places[place], *divisions[division], "codec.name=float32", "evaluate_every=5"),
            (0.03, 0.1, 0.3),
        )
        for place in places
        for division in divisions
        for method, overrides in methods.items()
        if place == "silo" or "He" not in method
    ]


TABLES = {"vit": vit_cells, "cnn": cnn_cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write; a table in Markdown goes beside it")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="where run directories are kept")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    options = parser.parse_args()
    cells = TABLES[options.table]()
    with ThreadPoolExecutor(options.processes) as pool:
        runner = Runner(options.runs, pool)
        grid = runner.all((cell, lr, TUNING_SEED) for cell in cells for lr in cell.lrs)
        best = {
            cell: max(cell.lrs, key=lambda lr, cell=cell: grid[cell, lr, TUNING_SEED]["accuracy"]) for cell in cells
        }
        result = runner.all((cell, best[cell], seed) for cell in cells for seed in SEEDS)
    rows = [
        row_of(cell, best[cell], [result[cell, best[cell], seed] for seed in SEEDS])
        | {"grid": {str(lr): grid[cell, lr, TUNING_SEED]["accuracy"] for lr in cell.lrs}}
        for cell in cells
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(rows))
    print(markdown(rows))


@dataclass(frozen=True)
class Runner:
    """Runs the command line once for each job, and never twice for the same."""

    runs: Path
    pool: ThreadPoolExecutor

    def all(self, jobs: Iterable[tuple[Cell, float, int]]) -> dict[tuple[Cell, float, int], dict]:
        """Job to its result."""
        jobs = list(jobs)
        return dict(zip(jobs, self.pool.map(lambda job: self.one(*job), jobs), strict=True))

    def one(self, cell: Cell, lr: float, seed: int) -> dict:
        overrides = (*cell.overrides, f"client.lr={lr}", f"seed={seed}")
        # The recipe's text too: after an edit its runs are others. Code is not part of the name; empty `--runs` for it.
        recipe = (ROOT / cell.recipe).read_text()
        name = hashlib.sha256(repr((recipe, overrides)).encode()).hexdigest()[:12]
        path = self.runs / name
        if not (path / "summary.json").exists():
            verb = ["resume", path] if path.exists() else ["run", ROOT / cell.recipe, "--out", path]
            options = [] if path.exists() else [part for item in overrides for part in ("--set", item)]
            command = [Path(sys.executable).with_name("fedelta"), *verb, *options, "--quiet"]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        summary = json.loads((path / "summary.json").read_text())
        transfers = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()][1:]
        result = {
            "accuracy": summary["final_accuracy"],
            "tuned_parameters": summary["tuned_parameters"],
            "payload_bytes": max(item["payload_bytes"] for item in transfers),
            "total_bytes": summary["uplink_bytes"] + summary["downlink_bytes"],
            "seconds": summary["wall_seconds"],
        }
        print(f"{cell.name}, lr {lr:g}, seed {seed}: {result['accuracy']:.2%}, {result['seconds']:.0f} s", flush=True)
        return result


def row_of(cell: Cell, lr: float, results: list[dict]) -> dict:
    accuracies = [item["accuracy"] for item in results]
    return {
        "name": cell.name,
        "lr": lr,
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_deviation": statistics.stdev(accuracies),
        "accuracies": accuracies,
        "tuned_parameters": results[0]["tuned_parameters"],
        "payload_mib": results[0]["payload_bytes"] / 2**20,
        "total_mib": results[0]["total_bytes"] / 2**20,
        "seconds": statistics.mean(item["seconds"] for item in results),
    }


def markdown(rows: list[dict]) -> str:
    lines = [
        "| method | accuracy of 3 seeds | lr | tuned parameters | MiB a client and direction | MiB in all | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['accuracy_mean']:.1%} ± {100 * row['accuracy_deviation']:.1f} | {row['lr']:g} "
        f"| {row['tuned_parameters']:,} | {row['payload_mib']:.3f} | {row['total_mib']:.1f} | {row['seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
