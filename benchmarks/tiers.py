"""What a local step costs a client of each depth: seconds, and memory beyond that of the loaded model.

    .venv/bin/python benchmarks/tiers.py recipes/anytime-digits.toml [--depths 1 2 4] [--steps 12] [--set KEY=VALUE]

Every depth runs in a new process with one arithmetic thread. Its client learns at its deepest exit, in one lane,
as on its own device; seconds are the median over single steps after two to warm up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20


def main() -> None:
    options = parse()
    if options.depth is not None:
        print(json.dumps(measure(options)))
        return
    print(f"{'depth':>5} {'tuned':>10} {'KiB sent':>9} {'ms a step':>10} {'MiB beyond the model':>21}")
    for tier in tiers(options):
        if options.depths and tier["depth"] not in options.depths:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--depth", str(tier["depth"])]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
        )
        content = json.loads(done.stdout)
        print(
            f"{tier['depth']:>5} {tier['tuned_parameters']:>10,} {tier['payload_bytes'] / 1024:>9.1f} "
            f"{1e3 * content['seconds']:>10.1f} {content['bytes'] / MIB:>21.1f}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="cost of a local step at each depth")
    parser.add_argument("config")
    parser.add_argument("--depths", nargs="+", type=int, help="default: all")
    parser.add_argument("--steps", type=int, default=12, help="timed steps (default 12)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--depth", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def tiers(options: argparse.Namespace) -> list[dict]:
    from fedelta.config import load_config
    from fedelta.inspection import inspect

    return [vars(tier) for tier in inspect(load_config(options.config, options.overrides)).tiers]


def measure(options: argparse.Namespace) -> dict:
    import torch

    from fedelta.engine.work import Job
    from fedelta.experiment import Experiment
    from fedelta.record.environment import peak_memory_bytes
    from fedelta.seeds import stream

    fixed = ["runtime.lanes=1", "exits.train=deepest", "client.local_epochs=", "client.local_steps=1"]
    assembly = Experiment.from_toml(options.config, [*options.overrides, *fixed]).assembly
    rows = torch.arange(assembly.config.client.batch_size)
    loaded, seconds = peak_memory_bytes(), []
    for number in range(options.steps + 2):
        job = Job(0, rows, assembly.params, iter([stream(0, number)]), stream(0, "noise"), depth=options.depth)
        started = time.perf_counter()
        list(assembly.engine.train([job], lr=1e-6))
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[2:]), "bytes": peak_memory_bytes() - loaded}


if __name__ == "__main__":
    main()
