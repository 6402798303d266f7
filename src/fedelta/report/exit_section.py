"""The section "Exits": the primary measure at each exit, its cost, its course over the rounds, and the tiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.record.history import History
from fedelta.record.numbers import UNKNOWN, capitalised, count, percent, shown, size, three_digits
from fedelta.report.elements import Line, Picture, Table, legend, picture
from fedelta.report.exit_plots import exits_by_round, measure_by_cost
from fedelta.report.exits import Exits, read_exits
from fedelta.report.plots import measured

_AREA = (
    "Area: trapezoids under {label} against FLOPs, or milliseconds, from the first exit to the last, divided by that "
    "range: the mean {label} over the budgets in it, with straight lines between exits."
)
_MEAN_COLUMNS = ("Mean over exits", "Area over FLOPs", "Area over ms")
_TIER_COLUMNS = (
    "Depth in blocks",
    "Clients",
    "Share of clients",
    "Down, per client and round",
    "Up, per client and round",
)


@dataclass(frozen=True)
class TierTable:
    """The tiers of a run, or the reason why they are unknown."""

    title: str
    table: Table | None
    problem: str


@dataclass(frozen=True)
class ExitSection:
    """The content of exit_section.html.

    Args:
        lines: of the runs with exits, if the page is about several runs.
        pictures: one below the other.
        small: beside each other, below them.
        table: one row per run.
        area: explanation of the areas in the table; empty if there are none.
        tiers: of each run with tiers.
    """

    template: ClassVar[str] = "exit_section.html"
    lines: Sequence[Line]
    pictures: Sequence[Picture]
    small: Sequence[Picture]
    table: Table
    area: str
    tiers: Sequence[TierTable]


def section(runs: Sequence[History]) -> ExitSection | None:
    """The section for those of `runs` that have exits; None if none has."""
    exits_of = {index: exits for index, run in enumerate(runs) if (exits := read_exits(run)) is not None}
    if not exits_of:
        return None
    lines = legend([run.name for run in runs], exits_of) if len(runs) > 1 else []
    pictures, small = _pictures(runs, exits_of)
    tiers = [
        _tiers(exits, f"Tiers of {runs[index].name}" if len(runs) > 1 else "Tiers")
        for index, exits in exits_of.items()
        if exits.problem or exits.tiers
    ]
    return ExitSection(lines, pictures, small, _table(runs, exits_of), _area(runs, exits_of), tiers)


def _pictures(runs: Sequence[History], exits_of: Mapping[int, Exits]) -> tuple[list[Picture], list[Picture]]:
    """The large and the small pictures: measure by cost, and measure over the rounds of each run."""
    has_costs = any(exits.compute.flops or exits.compute.milliseconds for exits in exits_of.values())
    is_alone = len(runs) == 1
    by_cost = _by_cost(runs, exits_of, is_wide=has_costs)
    by_round = [
        _by_round(runs[index], exits, f"e{index}", is_alone=is_alone, is_wide=is_alone and has_costs)
        for index, exits in exits_of.items()
    ]
    if not is_alone:
        return [by_cost], by_round
    return ([by_cost, *by_round], []) if has_costs else ([], [by_cost, *by_round])


def _by_cost(runs: Sequence[History], exits_of: Mapping[int, Exits], *, is_wide: bool) -> Picture:
    name = capitalised(runs[0].primary.label)
    title = f"{name} against exit, milliseconds and FLOPs" if is_wide else f"{name} against exit"
    figure = measure_by_cost(
        exits_of, {index: run.name for index, run in enumerate(runs)}, measured([runs[index] for index in exits_of])
    )
    says = f"{title}, in the last evaluated round"
    return picture(figure, "e", title, says=says, note=_note(runs, exits_of), is_wide=is_wide)


def _by_round(run: History, exits: Exits, prefix: str, *, is_alone: bool, is_wide: bool) -> Picture:
    name = capitalised(run.primary.label)
    title = f"{name} of each exit against rounds"
    figure = exits_by_round(exits, measured([run]), wide=is_wide)
    says = f"{name} of each exit by round"
    return picture(figure, prefix, title if is_alone else f"{title}: {run.name}", says=says, is_wide=is_wide)


def _note(runs: Sequence[History], exits_of: Mapping[int, Exits]) -> str:
    """The note of a figure: examples, rounds, and the machine on which milliseconds were measured."""
    rounds = {max(exits.by_round) for exits in exits_of.values()}
    when = f"after round {rounds.pop()}" if len(rounds) == 1 else "after the last evaluated round of each run"
    sentences = [f"On {', '.join(sorted({runs[index].measured_on for index in exits_of}))} examples, {when}."]
    machine_of = {
        runs[index].name: exits.compute.machine for index, exits in exits_of.items() if exits.compute.milliseconds
    }
    machines = {machine for machine in machine_of.values() if machine}
    if machines:
        by_run = "; ".join(f"{name}: {machine or UNKNOWN}" for name, machine in machine_of.items())
        sentences.append(f"Milliseconds measured on: {by_run if len(machines) > 1 else machines.pop()}.")
    missing = [runs[index].name for index, exits in exits_of.items() if exits.compute.flops is None]
    if missing and len(missing) < len(exits_of):
        sentences.append(f"Cost not known: {', '.join(missing)}.")
    elif missing:
        sentences.append("What an answer from each exit costs is not known.")
    return " ".join(sentences)


def _table(runs: Sequence[History], exits_of: Mapping[int, Exits]) -> Table:
    """One row per run; for a single run also the costs of its exits."""
    num_exits = max(len(exits.last) for exits in exits_of.values())
    is_alone = len(runs) == 1
    names = {
        index: capitalised(exits.measure.label) if is_alone else runs[index].name for index, exits in exits_of.items()
    }
    rows = [_row(names[index], runs[index], exits, num_exits) for index, exits in exits_of.items()]
    if is_alone:
        compute = exits_of[0].compute
        rows += [
            [name, *(three_digits(cost / unit) for cost in costs), "", "", ""]
            for name, costs, unit in (("Milliseconds", compute.milliseconds, 1), ("MFLOPs", compute.flops, 1e6))
            if costs
        ]
    header = ["" if is_alone else "Run", *(f"Exit {number}" for number in range(1, num_exits + 1)), *_MEAN_COLUMNS]
    if not _has_areas(exits_of):
        header, rows = header[:-2], [row[:-2] for row in rows]
    return Table(header, rows, numbers_from=1)


def _row(name: str, run: History, exits: Exits, num_exits: int) -> list[str]:
    """The measure at each of up to `num_exits` exits, and its means."""
    means = (run.mean_over_exits, exits.flops_area, exits.milliseconds_area)
    missing = [UNKNOWN] * (num_exits - len(exits.last))
    measure = exits.measure
    return [
        name,
        *(shown(value, measure) for value in exits.last),
        *missing,
        *(shown(value, measure) for value in means),
    ]


def _has_areas(exits_of: Mapping[int, Exits]) -> bool:
    return any(exits.flops_area is not None or exits.milliseconds_area is not None for exits in exits_of.values())


def _area(runs: Sequence[History], exits_of: Mapping[int, Exits]) -> str:
    if not _has_areas(exits_of):
        return ""
    ranges = " Each over the range of its run." if len(exits_of) > 1 else ""
    return f"{_AREA.format(label=runs[0].primary.label)}{ranges}"


def _tiers(exits: Exits, title: str) -> TierTable:
    """The clients, the share and the traffic of each tier."""
    if exits.problem:
        return TierTable(title, None, exits.problem)
    num_clients = sum(tier.num_clients for tier in exits.tiers)
    rows = [
        [
            f"{tier.depth}",
            count(tier.num_clients),
            percent(tier.num_clients / num_clients),
            size(tier.downlink_bytes),
            size(tier.uplink_bytes),
        ]
        for tier in exits.tiers
    ]
    return TierTable(title, Table(_TIER_COLUMNS, rows, numbers_from=0), "")
