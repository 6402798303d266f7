"""Result tables of the command line.

Slow imports are inside functions, so that `fedelta --help` starts quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.table import Table

from fedelta.errors import RunError
from fedelta.record.numbers import bare, count, duration, percent, shown, size, times, unit

if TYPE_CHECKING:
    from fedelta.inspection import Inspection
    from fedelta.record.files import Record
    from fedelta.record.ledger import Ledger
    from fedelta.tasks.base import Measure


def table_of_sizes(title: str, sizes: Inspection) -> Table:
    """What would be tuned and sent: by group, in all, and for clients of each depth."""
    table = Table("group", "tuned parameters", title=title)
    for group, num in sizes.groups.items():
        table.add_row(group, count(num))
    table.add_section()
    table.add_row("tuned", _tuned(sizes.tuned_parameters, sizes.total_parameters))
    if sizes.running_statistics:
        table.add_row("running statistics", count(sizes.running_statistics))
    if sizes.change_bytes is None:
        table.add_row("per client and round", _both_ways(sizes.download_bytes, sizes.payload_bytes))
    else:
        table.add_row("per client, first download", size(sizes.download_bytes))
        table.add_row("per client and round, later", _both_ways(sizes.change_bytes, sizes.payload_bytes))
    if sizes.largest_download_bytes is not None:
        length = size(sizes.largest_download_bytes)
        table.add_row("per client, down, in the last round", length)
    table.add_row("full model in float32", size(sizes.full_model_bytes))
    for tier in sizes.tiers:
        table.add_row(
            f"a client of depth {tier.depth}", f"{count(tier.tuned_parameters)}, {size(tier.payload_bytes)} up"
        )
    for of_rank in sizes.ranks:
        table.add_row(f"a client of rank {of_rank.rank}", _both_ways(of_rank.download_bytes, of_rank.payload_bytes))
    return table


def _tuned(tuned: int, total: int) -> str:
    return f"{count(tuned)} of {count(total)} ({percent(tuned / total, 2)})"


def _both_ways(down: float, up: float) -> str:
    """The bytes of both directions, and of each."""
    return f"{size(down + up)}: {size(down)} down, {size(up)} up"


class HasResults(Protocol):
    """What is left of a finished run: a `Result`, or a `Finished` of another process."""

    @property
    def path(self) -> Path:
        """Of the run directory."""

    @property
    def ledger(self) -> Ledger:
        """The size of every payload."""

    @property
    def summary(self) -> Record:
        """The content of `summary.json`."""


@dataclass(frozen=True)
class Finished:
    """The results of a run that another process has finished."""

    path: Path
    ledger: Ledger
    summary: Record

    @classmethod
    def read(cls, run: Path) -> Finished:
        """The results in a run directory.

        Raises:
            RunError: the run is not finished, or its files cannot be read.
        """
        from fedelta.record.files import read_json
        from fedelta.record.ledger import Ledger
        from fedelta.record.rundir import RunDirectory

        directory = RunDirectory.open(run)
        if not directory.summary.is_file():
            raise RunError(f"run {str(run)!r} is not finished.", hint=f"see what it is doing: `fedelta attach {run}`.")
        return cls(run, Ledger.read(directory.ledger), read_json(directory.summary))


def table_of_run(result: HasResults, primary: Measure, report: Path) -> Table:
    """The results of a finished run: measures, privacy, sizes, bytes, time; first, whether sites were missing."""
    from fedelta.record.privacy import STOPPED
    from fedelta.record.sites import TOO_FEW

    summary, ledger = result.summary, result.ledger
    table = Table(show_header=False, title=str(result.path))
    if too_few := summary.get(TOO_FEW):
        table.add_row("too few sites", too_few, style="bold red")
    if void := summary["void_rounds"]:
        table.add_row("rounds that did not count", f"{void} of {summary['rounds']}, for too few replies")
    for row in _measured(summary, primary):
        table.add_row(*row)
    if privacy := summary.get("privacy"):
        table.add_row("privacy", privacy)
    if stopped := summary.get(STOPPED):
        table.add_row("ended early", stopped, style="bold red")
    for row in _of_sites(summary, primary):
        table.add_row(*row)
    table.add_row("tuned parameters", _tuned(summary["tuned_parameters"], summary["total_parameters"]))
    for row in _sent(summary, ledger):
        table.add_row(*row)
    if (seconds := summary["wall_seconds"]) is not None:
        table.add_row("time", duration(seconds))
    table.add_row("report", str(report))
    return table


def mean_over_clients(part: Record, primary: Measure) -> str:
    """The mean over clients, and the deviation if there are several."""
    mean, deviation = part[f"mean_{primary.name}"], part[f"std_{primary.name}"]
    return f"{bare(mean, primary, deviation)} {unit(primary)}".rstrip()


def worst_client_of(part: Record, primary: Measure) -> str:
    """The measure and the name of the worst client."""
    from fedelta.report.personal_section import worst_client

    return f"{shown(part[f'worst_{primary.name}'], primary)}, {worst_client(part)}"


def _measured(summary: Record, primary: Measure) -> Iterator[tuple[str, str]]:
    """Yields rows for the primary measure, over all and by exit, and for examples that were left out."""
    name = primary.name
    best = shown(summary[f"best_{name}"], primary)
    yield primary.label, f"{shown(summary[f'final_{name}'], primary)} (best {best})"
    if by_exit := summary[f"{name}_by_exit"]:
        yield f"{primary.label} by exit", f"{', '.join(bare(value, primary) for value in by_exit)} {unit(primary)}"
        yield "mean over exits", shown(summary[f"mean_exit_{name}"], primary)
    if skipped := summary.get("num_skipped"):
        where = "each site's own `skipped.csv` lists its" if "sites" in summary else "`skipped.csv` lists them"
        yield "examples left out", f"{count(skipped)} that cannot be read; {where}"


def _sent(summary: Record, ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Yields rows for what was sent, and what it compares with; without those that mean nothing if nothing was."""
    sent = ledger.total_bytes
    if all(ledger.transfers.values()):
        both = _both_ways(ledger.bytes_of_payload("down"), ledger.bytes_of_payload("up"))
        yield "sent per client and round", both
    yield "sent in all", _both_ways(ledger.downlink_bytes, ledger.uplink_bytes)
    if "sites" in summary and sent:
        on_the_wire = summary["wire_downlink_bytes"] + summary["wire_uplink_bytes"]
        yield "messages with sites", f"{size(on_the_wire)}, {times(on_the_wire / sent)} the payloads"
    if (cost := summary["relative_cost"]) is not None and cost < 1:
        yield "layers averaged, against all in every round", percent(cost)
    if sent:
        full = summary["full_model_bytes"]
        yield "full fine-tuning would have sent", f"{size(full)}, {times(full / sent)} as much"


def _of_sites(summary: Record, primary: Measure) -> Iterator[tuple[str, str]]:
    """Yields a row for each site of a deployment: the rounds that it took part in, and its own measure."""
    from fedelta.record.sites import AT_THE_END, PRESENT

    measured = summary.get(AT_THE_END, {})
    for name, site in summary.get("sites", {}).items():
        there = sum(site["rounds"].get(state, 0) for state in PRESENT)
        text = f"there in {there} of {summary['rounds']} rounds"
        if name in measured:
            text += f", {primary.label} {shown(measured[name]['measures'].get(primary.name), primary)} on its own data"
        yield f"site {name}", text


def table_of_personalization(title: str, record: Record, primary: Measure) -> Table:
    """The measures of the held-out clients before and after fine-tuning, by scope."""
    table = Table("tuned", "scalars", "before", "after", "worst before", "worst after", title=title)
    for scope, part in record["scopes"].items():
        sides = [part["before"], part["after"]]
        means, worst = ([tell(side, primary) for side in sides] for tell in (mean_over_clients, worst_client_of))
        table.add_row(scope, count(part["tuned_parameters"]), *means, *worst)
    return table
