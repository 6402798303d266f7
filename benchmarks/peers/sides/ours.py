"""fedelta: `Experiment.run`, which `fedelta run` calls, with a run directory, checkpoints, ledger and records."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

# As the command line does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json

from benchmarks.peers.prepare import experiment_of
from benchmarks.peers.talk import options
from benchmarks.peers.works import Work

MANY_ROUNDS = 1_000_000


class _EndError(Exception):
    """No further round is wanted."""


def main() -> None:
    folder, workers, _, talk = options()
    work = Work(**json.loads((folder / "work.json").read_text()))
    experiment = experiment_of(work, MANY_ROUNDS, workers or "auto")
    _ = experiment.assembly
    if not talk.wait():
        return

    def on_round(outcome, _ledger) -> None:
        if not talk.wait(lambda: outcome.params):
            raise _EndError

    with tempfile.TemporaryDirectory() as place, suppress(_EndError):
        experiment.run(Path(place) / "run", on_round=on_round)


if __name__ == "__main__":
    main()
