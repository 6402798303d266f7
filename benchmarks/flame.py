"""Where the time of a round goes: `make profile`, or

    .venv/bin/python -m benchmarks.flame [W1 | W2 | W2b | W3 | W5 | demo] [--out build/profile]

Runs four rounds in this process, without workers: two to warm up, one under pyinstrument, which writes a page to click
through (its "Timeline" is a flame graph), and one under torch's profiler. Prints the seconds of each kind of
operation and of each package of fedelta.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.peers.prepare import experiment_of
from benchmarks.peers.side import ROOT
from benchmarks.peers.works import WORKS

import fedelta
from fedelta.experiment import Experiment

PACKAGE = Path(fedelta.__file__).parent
DEMO = "demo"
MANY_ROUNDS = 1_000_000
# The first kind of which a part is in the operation's name.
KINDS = {
    "matrix products, attention, convolutions": (
        "mm",
        "linear",
        "matmul",
        "conv",
        "attention",
        "dot_product",
        "einsum",
    ),
    "optimizer": ("_fused_", "_foreach_", "sgd", "adam"),
    "copies and gathers": ("copy", "clone", "contiguous", "cat", "index", "gather", "_to_", "stack", "fill", "zero"),
}
OTHER_OPERATIONS = "elementwise, norms, reductions, other"
PYTHON = "Python and waiting"


class _EndError(Exception):
    """All rounds are measured."""


def main() -> None:
    """Profiles, writes the page and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", choices=[*WORKS, DEMO], default=DEMO)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "profile")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stacks, operations, seconds = profiled(experiment(options.work))
    path = options.out / f"{options.work}.html"
    path.write_text(stacks.output_html())
    print(table("operations", by_kind(operations, seconds[1])))
    print()
    print(table("package", by_package(stacks.last_session.root_frame(trim_stem=False))))
    print(f"\nunder pyinstrument {seconds[0]:.3f} s, under torch's profiler {seconds[1]:.3f} s; {path} is written")


def experiment(name: str) -> Experiment:
    """The run that is profiled, in one process."""
    if name == DEMO:
        return Experiment.from_toml(ROOT / "recipes" / "demo.toml", ["runtime.name=simulation"])
    return experiment_of(WORKS[name], MANY_ROUNDS, workers=None)


def profiled(run: Experiment) -> tuple[object, object, list[float]]:
    """The two profilers after a round each, and the seconds of these rounds."""
    import torch
    from pyinstrument import Profiler

    stacks = Profiler(interval=0.001)
    operations = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    seconds: list[float] = []

    def on_round(outcome, _ledger) -> None:
        if outcome.round == 2:
            stacks.start()
        elif outcome.round == 3:
            seconds.append(time.perf_counter() - started[0])
            stacks.stop()
            operations.start()
        elif outcome.round == 4:
            seconds.append(time.perf_counter() - started[0])
            operations.stop()
            raise _EndError
        started[0] = time.perf_counter()

    started = [0.0]
    with tempfile.TemporaryDirectory() as place, suppress(_EndError):
        run.run(Path(place) / "run", on_round=on_round)
    return stacks, operations, seconds


def by_kind(operations, seconds: float) -> Counter[str]:
    """Seconds of each kind of operation; what is left of the round is Python's."""
    times: Counter[str] = Counter()
    for event in operations.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    times[PYTHON] = seconds - times.total()
    return times


def kind_of(operation: str) -> str:
    """The kind of an operation of torch, by its name.

    >>> kind_of("aten::addmm"), kind_of("aten::copy_"), kind_of("aten::gelu")
    ('matrix products, attention, convolutions', 'copies and gathers', 'elementwise, norms, reductions, other')
    """
    name = operation.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER_OPERATIONS)


def by_package(frame, package: str = "outside of fedelta") -> Counter[str]:
    """Seconds of each package of fedelta: all time counts for the innermost of its functions on the stack."""
    package = package_of(frame.file_path or "") or package
    times: Counter[str] = Counter({package: frame.time - sum(child.time for child in frame.children)})
    for child in frame.children:
        times += by_package(child, package)
    return times


def package_of(path: str) -> str | None:
    """The package of fedelta that the file belongs to; None for a file of something else.

    >>> package_of(str(PACKAGE / "engine" / "lanes.py")), package_of(str(PACKAGE / "running.py"))
    ('fedelta/engine', 'fedelta')
    >>> package_of(str(ROOT / ".venv" / "torch" / "nn.py"))
    """
    if not Path(path).is_relative_to(PACKAGE):
        return None
    return str(Path(path).parent.relative_to(PACKAGE.parent))


def table(what: str, times: Counter[str]) -> str:
    """Most time first."""
    total = times.total()
    lines = [f"| {what} | seconds | share |", "| --- | --: | --: |"]
    return "\n".join(lines + [f"| {name} | {time:.3f} | {time / total:.0%} |" for name, time in times.most_common()])


if __name__ == "__main__":
    main()
