"""The section "Exits" of the report, as HTML; nothing where no run has exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from fedelta.record.history import History
from fedelta.record.numbers import UNKNOWN, capitalised, count, percent, shown, size, three_digits
from fedelta.report.drawing import to_svg
from fedelta.report.elements import figure, legend, table
from fedelta.report.exit_plots import exits_by_round, measure_by_cost
from fedelta.report.exits import Exits, read_exits
from fedelta.report.plots import measured

_AREA = (
    "Area: trapezoids under {label} against FLOPs, or milliseconds, from the first exit to the last, divided by that "
    "range: the mean {label} over the budgets in it, with straight lines between exits."
)
_MEAN_COLUMNS = ("Mean over exits", "Area over FLOPs", "Area over ms")


def section(runs: Sequence[History]) -> str:
    """The primary measure at the exits of all runs, what it costs and how it grew; and the tiers of the clients."""
    found = {index: exits for index, run in enumerate(runs) if (exits := read_exits(run)) is not None}
    if not found:
        return ""
    several = len(runs) > 1
    names = legend([run.name for run in runs], shown=found) if several else ""
    parts = [f"<h2>Exits</h2>\n{names}{_figures(runs, found)}", _table(runs, found)]
    for index, exits in found.items():
        parts.append(_tiers(exits, f"Tiers of {runs[index].name}" if several else "Tiers"))
    return "\n".join(part for part in parts if part)


def _figures(runs: Sequence[History], found: Mapping[int, Exits]) -> str:
    """What exits reach and cost, and the lines of each run over its rounds."""
    has_costs = any(exits.compute.flops or exits.compute.milliseconds for exits in found.values())
    label = measured([runs[index] for index in found])
    name = capitalised(runs[0].primary.label)
    what = f"{name} against exit, milliseconds and FLOPs" if has_costs else f"{name} against exit"
    svg = to_svg(measure_by_cost(found, label), "e", escape(f"{what}, in the last evaluated round"))
    costs = figure(f'<div class="wide">{svg}</div>' if has_costs else svg, what, _note(runs, found))
    alone = len(runs) == 1
    wide = alone and has_costs
    by_round = []
    for index, exits in found.items():
        drawn = exits_by_round(exits, measured([runs[index]]), wide=wide)
        svg = to_svg(drawn, f"e{index}", escape(f"{name} of each exit by round"))
        title = f"{name} of each exit against rounds"
        title = title if alone else f"{title}: {runs[index].name}"
        by_round.append(figure(f'<div class="wide">{svg}</div>' if wide else svg, title))
    if wide:
        return f"{costs}\n{by_round[0]}"
    if alone:
        return f'<div class="figures">{costs}{by_round[0]}</div>'
    return f'{costs}\n<div class="figures">{"".join(by_round)}</div>'


def _note(runs: Sequence[History], found: Mapping[int, Exits]) -> str:
    """Of what the figure shows, and on what the milliseconds were measured."""
    rounds = {max(exits.by_round) for exits in found.values()}
    when = f"after round {rounds.pop()}" if len(rounds) == 1 else "after the last evaluated round of each run"
    parts = [f"On {', '.join(sorted({runs[index].measured_on for index in found}))} examples, {when}."]
    told = {runs[index].name: exits.compute.machine for index, exits in found.items() if exits.compute.milliseconds}
    machines = {machine for machine in told.values() if machine}
    if machines:
        each = "; ".join(f"{name}: {machine or UNKNOWN}" for name, machine in told.items())
        parts.append(f"Milliseconds measured on: {each if len(machines) > 1 else machines.pop()}.")
    missing = [runs[index].name for index, exits in found.items() if exits.compute.flops is None]
    if missing and len(missing) < len(found):
        parts.append(f"Cost not known: {', '.join(missing)}.")
    elif missing:
        parts.append("What an answer from each exit costs is not known.")
    return " ".join(parts)


def _table(runs: Sequence[History], found: Mapping[int, Exits]) -> str:
    """A row for each run; of a single one what its exits cost too."""
    most = max(len(exits.last) for exits in found.values())
    alone = len(runs) == 1
    rows = [
        [
            capitalised(exits.measure.label) if alone else runs[index].name,
            *(shown(value, exits.measure) for value in exits.last),
            *[UNKNOWN] * (most - len(exits.last)),
            *(shown(value, exits.measure) for value in means),
        ]
        for index, exits in found.items()
        for means in [(runs[index].mean_over_exits, exits.flops_area, exits.milliseconds_area)]
    ]
    if alone:
        compute = found[0].compute
        rows += [
            [name, *(three_digits(each / unit) for each in costs), "", "", ""]
            for name, costs, unit in (("Milliseconds", compute.milliseconds, 1), ("MFLOPs", compute.flops, 1e6))
            if costs
        ]
    header = ["" if alone else "Run", *(f"Exit {number}" for number in range(1, most + 1)), *_MEAN_COLUMNS]
    has_area = any(_has_area(exits) for exits in found.values())
    if not has_area:
        header, rows = header[:-2], [row[:-2] for row in rows]
    own = " Each over the range of its own run." if has_area and len(found) > 1 else ""
    area = _AREA.format(label=runs[0].primary.label)
    note = f'\n<p class="note">{escape(area)}{own}</p>' if has_area else ""
    return f"{table(header, rows, numbers_from=1)}{note}"


def _has_area(exits: Exits) -> bool:
    return exits.flops_area is not None or exits.milliseconds_area is not None


def _tiers(exits: Exits, title: str) -> str:
    """How many clients run how much, and what they send; nothing where all run the whole model."""
    if exits.problem:
        return (
            f'<h3>{escape(title)}</h3>\n<p class="note">Depths of clients are not known: {escape(exits.problem)}.</p>'
        )
    if not exits.tiers:
        return ""
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
    header = [
        "Depth in blocks",
        "Clients",
        "Share of clients",
        "Down, per client and round",
        "Up, per client and round",
    ]
    note = "A client runs, receives, trains and sends what belongs to its blocks, and nothing above."
    return f'<h3>{escape(title)}</h3>\n{table(header, rows, numbers_from=0)}\n<p class="note">{note}</p>'
