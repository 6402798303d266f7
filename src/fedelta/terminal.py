"""Progress bars and result tables of the command line.

Slow imports are inside functions, so that `fedelta --help` starts quickly.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fedelta.config import Config
    from fedelta.experiment import OnRound, Result
    from fedelta.inspection import Inspection
    from fedelta.personalization import OnResult
    from fedelta.record.files import Record
    from fedelta.tasks.base import Measure

MIB = 2**20


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


@contextmanager
def round_bar(console: Console, config: Config, quiet: bool) -> Iterator[OnRound | None]:
    """Yields a callback that shows round, primary measure and bytes in a progress bar; None if quiet."""
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fedelta.federation.records import RoundOutcome
    from fedelta.record.ledger import Ledger
    from fedelta.record.numbers import shown

    primary = config.task.primary
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[measure]}", markup=False),
        TextColumn("sent {task.fields[sent]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        rounds = config.strategy.num_rounds
        task = progress.add_task("round", total=rounds, measure=f"{primary.label} ...", sent="0 MiB")

        def on_round(outcome: RoundOutcome, ledger: Ledger) -> None:
            progress.update(task, completed=outcome.round, sent=f"{ledger.total_bytes / MIB:.2f} MiB")
            if outcome.evaluation is not None:
                value = shown(outcome.evaluation.measures[primary.name], primary)
                progress.update(task, measure=f"{primary.label} {value}")

        yield on_round


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


def table_of_sizes(title: str, sizes: Inspection) -> Table:
    """What would be tuned and sent: by group, in all, and for clients of each depth."""
    table = Table("group", "tuned parameters", title=title)
    for group, count in sizes.groups.items():
        table.add_row(group, f"{count:,}")
    table.add_section()
    share = sizes.tuned_parameters / sizes.total_parameters
    table.add_row("tuned", f"{sizes.tuned_parameters:,} of {sizes.total_parameters:,} ({share:.2%})")
    if sizes.running_statistics:
        table.add_row("running statistics", f"{sizes.running_statistics:,}")
    if sizes.download_bytes == sizes.payload_bytes:
        table.add_row("per client and direction", f"{sizes.payload_bytes / MIB:.3f} MiB")
    else:
        table.add_row("per client, down", f"{sizes.download_bytes / MIB:.3f} MiB")
        table.add_row("per client, up", f"{sizes.payload_bytes / MIB:.3f} MiB")
    table.add_row("full model in float32", f"{sizes.full_model_bytes / MIB:.3f} MiB")
    for tier in sizes.tiers:
        row = f"{tier.tuned_parameters:,}, {tier.payload_bytes / MIB:.3f} MiB"
        table.add_row(f"a client of depth {tier.depth}", row)
    return table


def table_of_run(result: Result, primary: Measure, report: Path) -> Table:
    """The results of a finished run: measures, sizes, bytes, time."""
    summary, ledger = result.summary, result.ledger
    sent = ledger.total_bytes
    table = Table(show_header=False, title=str(result.path))
    if void := summary["void_rounds"]:
        table.add_row("rounds that did not count", f"{void} of {summary['rounds']}, for too few replies")
    for row in _measured(summary, primary):
        table.add_row(*row)
    share = summary["tuned_parameters"] / summary["total_parameters"]
    table.add_row(
        "tuned parameters",
        f"{summary['tuned_parameters']:,} of {summary['total_parameters']:,} ({share:.2%})",
    )
    per_payload = sent / ledger.num_transfers
    table.add_row("sent per client, round and direction", f"{per_payload / MIB:.3f} MiB")
    table.add_row("sent in all", f"{sent / MIB:.2f} MiB")
    if (cost := summary["relative_cost"]) is not None and cost < 1:
        table.add_row("layers averaged, against all in every round", f"{cost:.1%}")
    full = summary["full_model_bytes"]
    table.add_row("full fine-tuning would have sent", f"{full / MIB:.2f} MiB ({full / sent:.0f} times as much)")
    if (seconds := summary["wall_seconds"]) is not None:
        table.add_row("time", f"{seconds:.0f} s")
    table.add_row("report", str(report))
    return table


def mean_over_clients(part: Record, primary: Measure) -> str:
    """The mean over clients, and the deviation if there are several."""
    from fedelta.record.numbers import shown

    mean, deviation = part[f"mean_{primary.name}"], part[f"std_{primary.name}"]
    return shown(mean, primary, 2) + ("" if deviation is None else f" ± {shown(deviation, primary, 2)}")


def worst_client_of(part: Record, primary: Measure) -> str:
    """The measure and the name of the worst client."""
    from fedelta.record.numbers import shown
    from fedelta.report.personal_section import worst_client

    return f"{shown(part[f'worst_{primary.name}'], primary, 2)}, {worst_client(part)}"


def _measured(summary: Record, primary: Measure) -> Iterator[tuple[str, str]]:
    """Yields rows for the primary measure, over all and by exit."""
    from fedelta.record.numbers import bare, shown, unit

    name = primary.name
    best = shown(summary[f"best_{name}"], primary, 2)
    yield primary.label, f"{shown(summary[f'final_{name}'], primary, 2)} (best {best})"
    if by_exit := summary[f"{name}_by_exit"]:
        yield f"{primary.label} by exit", f"{', '.join(bare(value, primary) for value in by_exit)} {unit(primary)}"
        yield "mean over exits", shown(summary[f"mean_exit_{name}"], primary, 2)


def table_of_personalization(title: str, record: Record, primary: Measure) -> Table:
    """The measures of the held-out clients before and after fine-tuning, by scope."""
    table = Table("tuned", "scalars", "before", "after", "worst before", "worst after", title=title)
    for scope, part in record["scopes"].items():
        sides = [part["before"], part["after"]]
        means, worst = ([tell(side, primary) for side in sides] for tell in (mean_over_clients, worst_client_of))
        table.add_row(scope, f"{part['tuned_parameters']:,}", *means, *worst)
    return table
