"""Runs one experiment undisturbed, then kills it at many points, resumes it, and prints how the results differ.

A child process is killed with SIGKILL in the middle of its n-th call of `os.fsync` or `os.replace`: those are the
moments at which something has been written and something else has not. Children are forked from a process that
has imported everything, has read the digits and has computed nothing, so that each costs half a second and not five.

    python -m tests.resume.kill_and_resume CONFIG FOLDER NUM_POINTS
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import datasets  # noqa: F401 imported here, once, for all children
import flwr_datasets.partitioner  # noqa: F401
import sklearn.datasets  # noqa: F401
import sklearn.model_selection  # noqa: F401
import torch
from tests.resume.children import in_child
from transformers import AutoConfig, AutoModelForImageClassification, ViTForImageClassification  # noqa: F401

from fedelta.data.files import EMBEDDED, load_splits
from fedelta.experiment import Experiment
from fedelta.record.checkpoint import load

torch.set_num_threads(1)
# A process that is killed loses nothing that it has written, on the disk or not: counted, and not waited for.
os.fsync = os.fstat
load_splits(EMBEDDED, None)

COMPARED = ("rounds.jsonl", "ledger.jsonl", "config.toml", "adapter/adapter_model.safetensors")


def count_calls(counts: dict[str, int], on_call: Callable[[str, int], None]) -> None:
    """From now on every `os.fsync` and `os.replace` is counted and announced before it happens."""
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def counted(*args: object, name: str = name, original: Callable[..., object] = original) -> object:
            counts[name] = counts.get(name, 0) + 1
            on_call(name, counts[name])
            return original(*args)

        setattr(os, name, counted)


def differences(left: Path, right: Path) -> list[str]:
    """What is not the same, to the bit, in two run directories."""
    results = [name for name in COMPARED if (left / name).read_bytes() != (right / name).read_bytes()]
    ours, theirs = (load(path / "checkpoint" / "state.safetensors") for path in (left, right))
    same = ours.round == theirs.round and list(ours.params) == list(theirs.params)
    if not same or not all(torch.equal(ours.params[name], theirs.params[name]) for name in ours.params):
        results.append("parameters")
    return results


def main(config: Path, folder: Path, num_points: int) -> None:
    undisturbed, calls = folder / "undisturbed", folder / "calls.json"

    def run_and_count() -> None:
        counts: dict[str, int] = {}
        count_calls(counts, lambda name, count: None)
        Experiment.from_toml(config).run(undisturbed)
        calls.write_text(json.dumps(counts))

    assert in_child(run_and_count) == 0
    totals = json.loads(calls.read_text())
    points = [
        (name, 1 + index * (total - 1) // max(1, num_points - 1))
        for name, total in sorted(totals.items())
        for index in range(num_points)
    ]
    for index, (name, count) in enumerate(points):
        out = folder / f"killed-{index}"

        def killed(name: str = name, count: int = count, out: Path = out) -> None:
            def on_call(called: str, number: int) -> None:
                if (called, number) == (name, count):
                    os.kill(os.getpid(), signal.SIGKILL)

            count_calls({}, on_call)
            Experiment.from_toml(config).run(out)

        def resumed(out: Path = out) -> None:
            if out.exists():
                Experiment.from_run(out).resume(out)
            else:
                Experiment.from_toml(config).run(out)

        rounds = 0
        status = in_child(killed)
        if out.exists():
            rounds = len((out / "rounds.jsonl").read_text().splitlines())
        again = in_child(resumed)
        record = {
            "point": f"{name} {count}",
            "killed": status == -signal.SIGKILL,
            "rounds_written": rounds,
            "resumed": again == 0,
            "differences": differences(undisturbed, out) if again == 0 else ["not resumed"],
        }
        sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
