"""How far a comparison is, on standard error: bars on a terminal, a line for each ended cell elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedelta.comparison.compare import Tally
from fedelta.comparison.pool import Event
from fedelta.comparison.tables import one_line
from fedelta.results.numbers import percent


class Display:
    """A context in which events are shown.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._whole = self._progress.add_task("all rounds", total=None, note="")
        self._running: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running.values():
            self._progress.remove_task(task)
        self._progress.stop()

    def show(self, event: Event, tally: Tally) -> None:
        """See `compare`'s `on_event`."""
        name, rounds = event.job.cell.name, event.job.cell.config.strategy.num_rounds
        note = f"{tally.num_ended} of {tally.num_cells} cells"
        self._progress.update(self._whole, total=tally.num_rounds, completed=tally.rounds_done, note=note)
        if event.kind in ("finished", "failed"):
            if name in self._running:
                self._progress.remove_task(self._running.pop(name))
            if event.kind == "failed" or not self._console.is_terminal:
                self._console.print(
                    f"{tally.num_ended}/{tally.num_cells} {_end(event)}", markup=False, highlight=False, soft_wrap=True
                )
            return
        if name not in self._running:
            self._running[name] = self._progress.add_task(name, total=rounds, note="")
        accuracy = "" if event.accuracy is None else percent(event.accuracy)
        self._progress.update(self._running[name], completed=event.round, note=accuracy)


def _end(event: Event) -> str:
    if event.kind == "failed":
        return f"{event.job.cell.name}: failed: {one_line(event.job.reason())}"
    return f"{event.job.cell.name}: {percent(event.accuracy)}"
