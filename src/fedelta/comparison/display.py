"""Shows a comparison in a terminal: its progress, and its table at the end."""

from __future__ import annotations

from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedelta.comparison.cells import Plan
from fedelta.comparison.compare import Tally
from fedelta.comparison.frames import one_line
from fedelta.comparison.pool import Event
from fedelta.comparison.result import Comparison
from fedelta.comparison.tables import group_table
from fedelta.errors import FedeltaError
from fedelta.record.numbers import shown

_WIDEST = 1000


class Display:
    """A context that shows events: as bars on a terminal, otherwise as one line per ended cell.

    Args:
        console: shows them.
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
        """Shows an event; the `on_event` of `compare`."""
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
        note = "" if event.final is None else _final(event)
        self._progress.update(self._running[name], completed=event.round, note=note)


def print_table(comparison: Comparison, console: Console) -> None:
    """Prints the table of the groups and the paths of the files."""
    groups = group_table(comparison)
    caption = "± deviation over seeds; MiB/round: of one client, down and up; *: Pareto front, ~: within noise"
    table = Table(title=comparison.name, caption=caption, box=box.SIMPLE_HEAD)
    for place, name in enumerate(groups.short):
        table.add_column(escape(name), justify="left" if place < groups.num_labels else "right", no_wrap=True)
    for row in groups.rows:
        table.add_row(*map(escape, row[:-1]), {"front": "*", "": ""}.get(row[-1], "~"))
    # Wider than a narrow terminal if needed, so that no row is broken into two lines.
    natural = Measurement.get(console, console.options.update(width=_WIDEST), table).maximum
    Console(file=console.file, width=max(console.width, natural)).print(table)
    for name in ("table.md", "table.csv", "table.tex", "report.html"):
        console.print(f"{comparison.path / name}", markup=False, soft_wrap=True)


def failure_of(comparison: Comparison) -> FedeltaError:
    """The error for a comparison with failed cells: their number, the first reason, and what to do."""
    failures = comparison.failures
    name, reason = next(iter(failures.items()))
    searched = all(reason.startswith("SearchError") for reason in failures.values())
    others = (
        "" if len(failures) == len(comparison.frame) else f"; the others are in {str(comparison.path / 'table.md')!r}"
    )
    return FedeltaError(
        f"{len(failures)} of {len(comparison.frame)} cells failed{others}. First {name!r}: {one_line(reason)}",
        hint="widen `compare.search.values`."
        if searched
        else f"{comparison.path / 'failures'} holds the errors; the same command tries these cells again.",
    )


def announcement(plan: Plan) -> str:
    """The number of cells and trials, such as `144 cells after 18 trials of the search`."""
    return f"{len(plan.points)} cells" + (f" after {len(plan.trials)} trials of the search" if plan.trials else "")


def _end(event: Event) -> str:
    if event.kind == "failed":
        return f"{event.job.cell.name}: failed: {one_line(event.job.reason())}"
    return f"{event.job.cell.name}: {_final(event)}"


def _final(event: Event) -> str:
    return shown(event.final, event.job.cell.config.task.primary)
