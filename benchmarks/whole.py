"""Seconds and memory of whole commands, `fedelta run RECIPE`, here and in another work tree, in turns.

    .venv/bin/python -m benchmarks.whole --before TREE [--recipes demo] [--repeats 5]

From the start of the interpreter to its end, so that imports, data, workers, evaluation and the files of a run count.
Memory is as in benchmarks/peers/memory.py, from one more run of each that is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers.memory import MIB, Watch
from benchmarks.peers.side import ROOT

PROGRAM = "from fedelta.cli import main; main()"


def main() -> None:
    """Prints a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a work tree of another commit")
    parser.add_argument("--recipes", nargs="+", default=["demo"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    trees = {"before": options.before.resolve(), "now": ROOT}
    for recipe in options.recipes:
        memory = {name: run(tree, recipe, is_watched=True) for name, tree in trees.items()}
        runs = [{name: run(tree, recipe) for name, tree in trees.items()} for _ in range(options.repeats)]
        seconds = {name: [one[name]["seconds"] for one in runs] for name in trees}
        ratio = statistics.median(seconds["now"]) / statistics.median(seconds["before"])
        print(f"{recipe}: {ratio:.2f} of the seconds before")
        for name in trees:
            low, middle, high = min(seconds[name]), statistics.median(seconds[name]), max(seconds[name])
            print(
                f"  {name:6} {middle:.1f} s ({low:.1f} to {high:.1f}), {memory[name]['mib']:,.0f} MiB, "
                f"{memory[name]['measures']}",
                flush=True,
            )


def run(tree: Path, recipe: str, *, is_watched: bool = False) -> dict[str, object]:
    """Seconds of the command with the code of `tree`, its measures, and its memory if that is asked for."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        command = [sys.executable, "-c", PROGRAM, "run", str(ROOT / "recipes" / f"{recipe}.toml"), "--out", str(out)]
        environment = os.environ | {"PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1"}
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if is_watched:
            with Watch(process.pid) as watch:
                errors = process.communicate()[1]
        else:
            errors = process.communicate()[1]
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(errors.decode())
        measures = json.loads((out / "summary.json").read_text())["measures"]
    return {"seconds": seconds, "measures": measures, "mib": watch.peak_bytes / MIB if is_watched else None}


if __name__ == "__main__":
    main()
