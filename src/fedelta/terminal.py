"""Progress bars of the command line.

Slow imports are inside functions, so that `fedelta --help` starts quickly.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

    from fedelta.config import Config
    from fedelta.federation.records import RoundOutcome
    from fedelta.personalization import OnResult
    from fedelta.record.ledger import Ledger
    from fedelta.running import OnRound
    from fedelta.tasks.base import Measure


def escape_unprintable() -> None:
    """Writes letters that the terminal's encoding lacks, such as those in names of classes, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook replaces them
            stream.reconfigure(errors="backslashreplace")


class Stages:
    """Shows the current stage of a command, and measures how long each stage takes.

    Args:
        console: shows the current stage, if it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measures the time of this context as that of stage `name`."""
        begin = time.perf_counter()
        with self._console.status(f"{name} ..."):
            yield
        self._seconds[name] = time.perf_counter() - begin

    def __str__(self) -> str:
        """The time of all stages, the longest first."""
        longest = sorted(self._seconds.items(), key=lambda stage: -stage[1])
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in longest)
        return f"{sum(self._seconds.values()):.1f} s: {parts}"


class Rounds:
    """A progress bar of the rounds of a run.

    Args:
        progress: shows the bar.
        primary: measure of the run.
        num_rounds: how many there will be at most; None if unknown.
    """

    def __init__(self, progress: Progress, primary: Measure, num_rounds: int | None) -> None:
        self._progress, self._primary = progress, primary
        measure = f"{primary.label} ..."
        self._task = progress.add_task("round", total=num_rounds, measure=measure, epsilon="", sent="0 B", note="")

    def show(
        self, round: int, measures: Mapping[str, float] | None, num_bytes: int, epsilon: float | None = None
    ) -> None:
        """Shows a finished round.

        Args:
            round: its number.
            measures: after it; None if it was not evaluated.
            num_bytes: sent so far.
            epsilon: of all rounds so far; None without privacy.
        """
        from fedelta.privacy.shown import shown_epsilon
        from fedelta.record.numbers import shown, size

        self._progress.update(self._task, completed=round, sent=size(num_bytes))
        if epsilon is not None:
            self._progress.update(self._task, epsilon=f"epsilon {shown_epsilon(epsilon)}")
        if measures is not None:
            value = shown(measures[self._primary.name], self._primary)
            self._progress.update(self._task, measure=f"{self._primary.label} {value}")

    def note(self, text: str) -> None:
        """Shows a text behind the bar until the next one; on no terminal as a line."""
        if text and not self._progress.console.is_terminal:
            self._progress.console.print(text, soft_wrap=True)
        self._progress.update(self._task, note=text)


@contextmanager
def rounds_of(console: Console, primary: Measure, num_rounds: int | None) -> Iterator[Rounds]:
    """Yields the progress bar of a run."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[measure]}", markup=False),
        TextColumn("{task.fields[epsilon]}"),
        TextColumn("sent {task.fields[sent]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield Rounds(progress, primary, num_rounds)


@contextmanager
def round_bar(console: Console, config: Config, quiet: bool) -> Iterator[OnRound | None]:
    """Yields a callback that shows round, primary measure and bytes in a progress bar; None if quiet."""
    if quiet:
        yield None
        return
    from fedelta.record.privacy import reported

    with rounds_of(console, config.task.primary, config.strategy.num_rounds) as rounds:

        def on_round(outcome: RoundOutcome, ledger: Ledger) -> None:
            measures = None if outcome.evaluation is None else outcome.evaluation.measures
            rounds.show(outcome.round, measures, ledger.total_bytes, reported(outcome, config.privacy))

        yield on_round


@contextmanager
def deployment_bar(console: Console, run: Path, quiet: bool) -> Iterator[Callable[[], None]]:
    """Yields what shows how far a deployed run is, whenever it is called; the run is in another process.

    Args:
        console: for the bar, and for who is waited for.
        run: its directory, with a configuration at least.
        quiet: shows nothing.
    """
    if quiet:
        yield lambda: None
        return
    from fedelta.config import read_table
    from fedelta.record.rundir import RunDirectory
    from fedelta.record.status import read_status
    from fedelta.tasks.choice import task_of

    directory, said = RunDirectory(run), ""
    table = read_table(directory.config)
    with rounds_of(console, task_of(table).primary, table["strategy"].get("num_rounds")) as rounds:

        def look() -> None:
            nonlocal said
            if records := directory.rounds.read():
                measured = next((record["measures"] for record in reversed(records) if record["measures"]), None)
                last = records[-1]
                rounds.show(last["round"], measured, last["cumulative_bytes"], last.get("epsilon"))
            status = read_status(run)
            text = "" if status is None or status.state == "failed" else status.text
            # How long it will still wait changes all the time: said once where every text is a line of its own.
            gist = text.partition(" (")[0]
            if text != said if console.is_terminal else gist != said:
                rounds.note(text)
                said = text if console.is_terminal else gist

        yield look


@contextmanager
def client_bar(console: Console, quiet: bool) -> Iterator[OnResult | None]:
    """Yields a callback that shows client and scope in a progress bar; None if quiet."""
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fedelta.federation.fine_tuning import Personalized

    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("...", total=None)

        def on_result(result: Personalized, total: int) -> None:
            progress.update(task, total=total, advance=1, description=f"{result.called}, {result.scope}")

        yield on_result
