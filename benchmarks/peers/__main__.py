"""fedelta and other frameworks on the same work, in turns: `make bench-peers`, or

    .venv/bin/python -m benchmarks.peers [--works W1 W2b] [--sides fedelta blazefl] [--repeats 7] [--quick]

A side whose parameters differ from the bare loop's has no times. Works that are not measured keep what
benchmarks/results/peers.json has of them; docs/results/peers.md is written from it. `--quick` takes 3 minutes, and writes
to benchmarks/results/ only.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
import time
from pathlib import Path

# fedelta prepares the works in this process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from benchmarks.peers.environments import REASONS, REQUIREMENTS
from benchmarks.peers.measure import COMPARED_ROUNDS, Plan, measure
from benchmarks.peers.page import PAGE, RESULTS, page
from benchmarks.peers.prepare import prepare
from benchmarks.peers.side import ROOT, SIDES, interpreter
from benchmarks.peers.works import WORKS

from fedelta.record.environment import machine

QUICK = {"works": ["W1"], "sides": ["bare", "fedelta", "pfl", "flower", "blazefl"], "repeats": 2, "warm_up": 1}
PACKAGES = ("pfl", "flwr", "ray", "blazefl", "transformers", "peft", "numpy")


def main() -> None:
    """Measures, and writes results and page after each work."""
    options = parsed()
    started = time.monotonic()
    missing = {name: "there is no environment" for name in options.sides if not _is_there(name, options.cache)}
    sides = [name for name in options.sides if name not in missing]
    logs = options.cache / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for name in options.works:
        tell(started, f"{name}: {WORKS[name].title}")
        folder = prepare(WORKS[name], options.cache / "works")
        plan = Plan(folder, options.cache, sides, options.repeats, options.warm_up, logs, options.workers)
        figures = measure(WORKS[name], plan, lambda text: tell(started, text))
        record = {
            "title": WORKS[name].title,
            "repeats": options.repeats,
            "date": dt.date.today().isoformat(),
            "sides": {side: one.as_record() for side, one in figures.items()},
        }
        results = merged(options.out, name, record, left_out(options.cache, missing))
        options.page.write_text(page(results))
        for side, one in figures.items():
            print(f"  {side:8} {one.error or f'{one.median:8.3f} s {one.peak_mib:6.0f} MiB'}", flush=True)
    tell(started, f"{options.page} is written")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each side")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them")
    parser.add_argument("--workers", type=int, help="of fedelta, instead of 'auto'")
    parser.add_argument("--quick", action="store_true", help="W1 with few rounds")
    parser.add_argument("--cache", type=Path, default=ROOT / ".peers", help="environments and prepared works")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK, out=RESULTS.with_stem("peers-quick"), page=RESULTS.with_name("peers-quick.md"))
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


def merged(path: Path, name: str, record: dict, reasons: dict[str, str]) -> dict:
    """Writes and returns the results at `path` with those of one more work."""
    works = json.loads(path.read_text())["works"] if path.exists() else {}
    growth = json.loads(path.read_text()).get("growth", []) if path.exists() else []
    results = {
        "command": "make bench-peers" + (f' PEERS_ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else ""),
        "date": dt.date.today().isoformat(),
        "machine": {**machine(torch.device("cpu")), "python": platform.python_version()},
        "versions": versions(),
        "left_out": reasons,
        "compared_rounds": COMPARED_ROUNDS,
        "works": {key: value for key, value in (works | {name: record}).items() if key in WORKS},
        "growth": growth,
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    return results


def left_out(cache: Path, missing: dict[str, str]) -> dict[str, str]:
    """Sides that are not measured, with the reason: what was found when environments were made, if that was it."""
    path = cache / REASONS
    reasons = json.loads(path.read_text()) if path.exists() else {}
    return {SIDES[name].title: reasons.get(SIDES[name].environment, reason) for name, reason in missing.items()}


def versions() -> list[str]:
    """Packages of the peers' environments, as pinned."""
    pins = {pin for path in sorted(REQUIREMENTS.glob("*.txt")) for pin in path.read_text().split()}
    return [" ".join(pin.split("==")) for pin in sorted(pins) if pin.partition("==")[0] in PACKAGES]


def _is_there(name: str, cache: Path) -> bool:
    return interpreter(SIDES[name], cache).exists()


def tell(started: float, text: str) -> None:
    """Prints it with the seconds since the start."""
    print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    main()
