"""The command `fedelta audit`: trials of what a run's privacy gives away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedelta.cli.base import Plugins, RunPath, err_console, loading, out_console
from fedelta.errors import FedeltaError

if TYPE_CHECKING:
    from fedelta.record.files import Record


def audit(  # noqa: PLR0917 the command line's, all options
    directory: RunPath,
    trials: Annotated[int, typer.Option(help="number of trials, half of them with a canary")] = 1600,
    confidence: Annotated[float, typer.Option(help="probability with which the measured bound holds")] = 0.95,
    without_noise: Annotated[
        bool, typer.Option("--without-noise", help="switch the noise off: the trials should notice")
    ] = False,
    seed: Annotated[int, typer.Option(help="of the trials")] = 0,
    plugin: Plugins = None,
) -> None:
    """Try to find out who took part, and hold the result against the run's epsilon; writes RUN/audit.json."""
    with loading(plugin):
        from fedelta.auditing.audit import audit as try_out

    with err_console.status("trials: about a minute"):
        record = try_out(directory, num_trials=trials, confidence=confidence, without_noise=without_noise, seed=seed)
    for note in record["notes"]:
        err_console.print(f"note: {note}", soft_wrap=True)
    out_console.print(table_of_audit(str(directory), record))
    if record["exceeds"]:
        raise FedeltaError(record["sentence"])
    out_console.print(record["sentence"], soft_wrap=True)
    if without_noise:
        out_console.print("The noise was off, and the trials did not notice: give more `--trials`.", soft_wrap=True)


def table_of_audit(title: str, record: Record) -> Table:
    """What was accounted for, what was tried, and what was found."""
    table = Table("", "epsilon", title=title)
    run, measured = record["run_epsilon"], record["measured"]
    table.add_row(f"accounted for, the whole run, delta {record['delta']:g}", "-" if run is None else f"{run:.3f}")
    table.add_row("accounted for, what was tried", f"{record['tried']['epsilon']:.3f}")
    noise = "" if record["noise"] == "on" else ", without noise"
    table.add_row(f"measured{noise}, at least", f"{measured['epsilon']:.3f}")
    table.add_row("  whatever the mechanism is, at least", f"{measured['epsilon_of_any_mechanism']:.3f}")
    table.add_section()
    table.add_row("tried", record["tried"]["in_words"])
    table.add_row("trials, confidence", f"{record['num_trials']:,}, {record['confidence']:.0%}")
    return table
