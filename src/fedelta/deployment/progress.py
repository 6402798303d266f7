"""What `fedelta deploy` and `attach` show while a deployment runs: one line for each thing that happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fedelta.deployment.submissions import Submission
from fedelta.record.rundir import ROUNDS
from fedelta.record.status import read_status


@contextmanager
def progress(console: Console, quiet: bool) -> Iterator[Callable[[Submission], None]]:
    """Yields what is to be called with each look at a deployment."""
    said = ""

    def show(submission: Submission) -> None:
        nonlocal said
        status = read_status(Path(submission.run))
        rounds = Path(submission.run) / ROUNDS
        num_rounds = rounds.read_bytes().count(b"\n") if rounds.is_file() else 0
        text = f": {status.text}" if status is not None and status.text else ""
        line = f"{submission.name} is {submission.state}{text}" + (f", round {num_rounds}" if num_rounds else "")
        if not quiet and line != said:
            console.print(line, soft_wrap=True, highlight=False)
        said = line

    yield show
