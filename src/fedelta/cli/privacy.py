"""The command `fedelta privacy`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedelta.cli.base import ConfigPath, Overrides, Plugins, loading, out_console

if TYPE_CHECKING:
    from fedelta.forecast import Forecast


def privacy(
    config: ConfigPath,
    overrides: Overrides = None,
    all_rounds: Annotated[bool, typer.Option("--all", help="epsilon after every round")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Show the noise of a private run and its epsilon after each round, without training."""
    with loading(plugin):
        from fedelta.forecast import forecast

    result = forecast(config, overrides or (), all_rounds=all_rounds)
    if as_json:
        print(json.dumps(result.as_record(), indent=2))
        return
    out_console.print(result.sentence)
    out_console.print(_table_of_facts(result))
    if result.rounds:
        out_console.print(_table_of_rounds(result))
    if result.num_rounds < result.planned_rounds:
        out_console.print(
            f"The run would end after round {result.num_rounds} of {result.planned_rounds}: the next one would exceed "
            f"epsilon {result.promise.limit:g}."
        )


def _table_of_facts(result: Forecast) -> Table:
    table = Table(show_header=False)
    for name, text in result.facts.items():
        table.add_row(name, text)
    return table


def _table_of_rounds(result: Forecast) -> Table:
    from fedelta.privacy.shown import shown_epsilon

    who = "the least protected client" if result.median is not None else "every client"
    table = Table("after round", "epsilon, PLD", "epsilon, RDP", title=f"of {who}, at delta {result.promise.delta:g}")
    for column in table.columns:
        column.justify = "right"
    for round, both in result.rounds.items():
        table.add_row(f"{round:,}", shown_epsilon(both.pld), shown_epsilon(both.rdp))
    if result.median is not None:
        table.add_section()
        table.add_row(f"{result.num_rounds:,}, median client", *map(shown_epsilon, result.median))
    return table
