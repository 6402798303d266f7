"""fedelta and other frameworks on the same work, in turns: `make bench-peers`, or

    .venv/bin/python -m benchmarks.peers [--works W1 W2b] [--sides fedelta blazefl] [--repeats 7] [--quick]

A side whose parameters differ from the bare loop's has no times. Works that are not measured keep what
benchmarks/results/peers.json has of them; docs/results/peers.md is written from it. W4 is the growth of fedelta alone.
`--quick` takes 3 minutes, and writes to benchmarks/results/ only.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path

# fedelta prepares the works in this process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from benchmarks.peers.environments import REASONS, REQUIREMENTS
from benchmarks.peers.growth import grow
from benchmarks.peers.measure import Plan, measure
from benchmarks.peers.page import PAGE, RESULTS, page
from benchmarks.peers.prepare import prepare
from benchmarks.peers.side import ROOT, SIDES, interpreter
from benchmarks.peers.works import WORKS

from fedelta.record.environment import git_commit, machine

QUICK = {
    "works": ["W1"],
    "sides": ["bare", "fedelta", "pfl", "flower", "blazefl"],
    "repeats": 2,
    "warm_up": 1,
    "compared": 1,
}
GROWTH = "W4"
PACKAGES = ("pfl", "flwr", "ray", "blazefl", "transformers", "peft", "numpy")


def main() -> None:
    """Measures, and writes results and page after each work."""
    options = parsed()
    started = time.monotonic()
    reasons = {name: why_not(name, options.cache) for name in options.sides}
    missing = {name: reason for name, reason in reasons.items() if reason}
    (options.cache / "logs").mkdir(parents=True, exist_ok=True)
    for name in options.works:
        record: dict[str, object]
        if name == GROWTH:
            tell(started, f"{GROWTH}: growth of fedelta")
            record = {"growth": grow(options.cache, options.repeats, partial(tell, started))}
        else:
            record = {"works": {name: measured(name, options, missing, started)}}
        results = merged(options, record, left_out(options.cache, missing))
        options.page.write_text(page(results))
    tell(started, f"{options.page} is written")


def measured(name: str, options: argparse.Namespace, missing: Collection[str], started: float) -> dict[str, object]:
    """The results of one work."""
    work = WORKS[name]
    tell(started, f"{name}: {work.title}")
    plan = Plan(
        folder=prepare(work, options.cache / "works"),
        environments=options.cache,
        sides=[side for side in options.sides if side in (work.sides or SIDES) and side not in missing],
        repeats=options.repeats,
        warm_up=options.warm_up,
        compared=options.compared,
        logs=options.cache / "logs",
        is_tiny=work.is_tiny,
        seconds=options.seconds,
        workers=options.workers,
    )
    figures = measure(work, plan, partial(tell, started))
    for side, one in figures.items():
        print(f"  {side:8} {one.error or f'{one.median:8.3f} s {one.peak_mib:6.0f} MiB'}", flush=True)
    sides = {side: one.as_record() for side, one in figures.items()}
    repeats = max((len(one.seconds) for one in figures.values()), default=0)
    record = {"title": work.title, "command": command(), "repeats": repeats, "date": _today(), "sides": sides}
    return {**record, "commit": git_commit()}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=[*WORKS, GROWTH], default=[*WORKS, GROWTH])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each side")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of a work: no turn begins later")
    parser.add_argument("--compared", type=int, default=2, help="rounds after which params are compared")
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


def merged(options: argparse.Namespace, record: dict[str, object], reasons: dict[str, str]) -> dict[str, object]:
    """Writes and returns the results with those of one more work; none of another machine stay."""
    before = json.loads(options.out.read_text()) if options.out.exists() else {}
    here = {**machine(torch.device("cpu")), "python": platform.python_version()}
    if any(before.get("machine", here)[key] != here[key] for key in ("processor", "cpu_count", "torch")):
        before = {}
    works = before.get("works", {}) | record.get("works", {})
    results = {
        "machine": here,
        "versions": versions(),
        "left_out": reasons,
        "works": {name: works[name] for name in WORKS if name in works},
        "growth": record.get("growth", before.get("growth", [])),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def command() -> str:
    """What was called."""
    words = sys.argv[1:]
    if "--cache" in words:  # a folder of whoever measures
        del words[words.index("--cache") : words.index("--cache") + 2]
    return " ".join(["python -m benchmarks.peers", *words])


def left_out(cache: Path, missing: dict[str, str]) -> dict[str, str]:
    """Sides that are not measured, with the reason: what was found when environments were made, if that was it."""
    path = cache / REASONS
    reasons = json.loads(path.read_text()) if path.exists() else {}
    return {SIDES[name].title: reasons.get(SIDES[name].environment, reason) for name, reason in missing.items()}


def versions() -> list[str]:
    """Packages of the peers' environments, as pinned."""
    pins = {pin for path in sorted(REQUIREMENTS.glob("*.txt")) for pin in path.read_text().split()}
    return [" ".join(pin.split("==")) for pin in sorted(pins) if pin.partition("==")[0] in PACKAGES]


def why_not(name: str, cache: Path) -> str:
    """Why a side cannot be measured here; nothing if it can."""
    side = SIDES[name]
    if side.is_alone and (tools := [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]):
        return f"there is no {' and no '.join(map(repr, tools))} to start it without a network"
    return "" if interpreter(side, cache).exists() else "there is no environment"


def _today() -> str:
    return dt.datetime.now(dt.UTC).date().isoformat()


def tell(started: float, text: str) -> None:
    """Prints it with the seconds since the start."""
    print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    main()
