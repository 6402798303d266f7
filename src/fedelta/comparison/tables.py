"""The tables of a comparison as CSV, for programs, and as Markdown, for papers and pull requests."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from fedelta.comparison.outcomes import CellState, Group
from fedelta.comparison.result import Comparison, Pivot, mean_and_deviation, pivot
from fedelta.grid import label_of
from fedelta.record.neutral import cell, markdown
from fedelta.record.numbers import MIB, UNKNOWN, bare, capitalised, count, duration, headed, in_unit, mebibytes, unit
from fedelta.tasks.base import Measure

_FIGURES = (
    "tuned_parameters",
    "mib_per_client_and_round_both_directions",
    "mib_total",
    "relative_cost",
    "wall_seconds",
)
_MAX_REASON = 300
_NOTE = (
    "{measure} after the last round, on the test set unless `data.evaluate_on` says otherwise: mean ± sample "
    "standard deviation over the seeds. MiB per client and round are those down and up together. Time is that of the "
    "rounds, with one arithmetic thread, and for orientation only: it is measured beside other cells, of which as many "
    "run side by side as the machine has cores, or one on a GPU, unless told otherwise. Front: no other row of the "
    "same task has as good a mean for fewer MiB in total, or a better one for as many."
)


def note(comparison: Comparison) -> str:
    """What stands below the table of the groups."""
    primary, in_what = comparison.primary, unit(comparison.primary)
    name = capitalised(primary.label)
    return _NOTE.format(measure=f"{name} in {in_what}" if in_what else name)


def table_csv(comparison: Comparison) -> str:
    """One row for each group; plain numbers, empty where there is none."""
    name = comparison.primary.name
    figures = [f"{name}_mean", f"{name}_deviation"]
    figures += [*_at_exits(comparison), f"mean_exit_{name}_deviation"] if comparison.has_exits else []
    header = [*comparison.axes, *_searched(comparison), *_columns(comparison, figures)]
    header += ["num_seeds", *_FIGURES, "on_pareto_front", "state", "reason"]
    return _csv([header, *(_group_row(comparison, group) for group in comparison.groups)])


def cells_csv(comparison: Comparison) -> str:
    """One row for each cell."""
    axes = list(comparison.cells[0].labels)
    figures = _columns(comparison, [comparison.primary.name, *_at_exits(comparison)])
    header = [*axes, *_searched(comparison), *figures, *_FIGURES, "state", "reason", "run"]
    rows = [[*_cell_row(comparison, cell), cell.state, one_line(cell.failure), cell.run] for cell in comparison.cells]
    return _csv([header, *rows])


def search_csv(comparison: Comparison) -> str:
    """One row for each trial of the search."""
    axes = list(comparison.trials[0].cell.labels)
    figures = _columns(comparison, [f"validation_{comparison.primary.name}", *_at_exits(comparison)])
    header = [*axes, *_searched(comparison), *figures, *_FIGURES, "is_best", "state", "reason", "run"]
    rows = [
        [*_cell_row(comparison, cell), _truth(trial.is_best), cell.state, one_line(cell.failure), cell.run]
        for trial in comparison.trials
        for cell in [trial.cell]
    ]
    return _csv([header, *rows])


def table_md(comparison: Comparison) -> str:
    """The table of the groups and, with two axes or more, the pivot; then what failed."""
    header, rows = group_table(comparison)
    parts = [
        f"# {markdown(comparison.name)}",
        _markdown(header, [map(markdown, row) for row in rows], numbers_from=first_figure(comparison)),
        note(comparison),
    ]
    if (table := pivot(comparison)) is not None:
        parts.append(_markdown(table.header, _bold(table), numbers_from=1))
    if comparison.failures:
        parts += [
            "## Failed",
            "\n".join(f"- {markdown(name)}: {markdown(one_line(text))}" for name, text in comparison.failures.items()),
        ]
    return "\n\n".join(parts) + "\n"


def group_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    primary = comparison.primary
    labels = [primary.label, *(("at the first exit", "mean over exits") if comparison.has_exits else ())]
    header = [*comparison.axes, *_searched(comparison), *(headed(label, primary) for label in labels)]
    header += ["seeds", "tuned parameters"]
    header += ["MiB per client and round, down and up", "MiB in total"]
    cheaper = any(group.relative_cost is not None and group.relative_cost < 1 for group in comparison.groups)
    header += [*(["relative cost, %"] if cheaper else []), "time", "front"]
    rows = [
        [
            *group.labels.values(),
            *([UNKNOWN if group.value is None else label_of(group.value)] if comparison.searched else []),
            mean_and_deviation(group, primary),
            *(_exit_texts(group, primary) if comparison.has_exits else []),
            str(group.num_seeds),
            count(group.tuned_parameters),
            mebibytes(group.bytes_per_client),
            mebibytes(group.total_bytes),
            *([_percent(group.relative_cost)] if cheaper else []),
            UNKNOWN if group.wall_seconds is None else duration(group.wall_seconds),
            "front" if group.on_front else "",
        ]
        for group in comparison.groups
    ]
    return header, rows


def one_line(text: str | None) -> str:
    """The error without its hint and traceback, for a field of a table."""
    if text is None:
        return ""
    message = text.strip().partition("\n\n")[0].partition("\nhint:")[0]
    line = " ".join(part.strip() for part in message.splitlines())
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}…"


def _group_row(comparison: Comparison, group: Group) -> list[str]:
    states = [cell.state for cell in group.cells]
    finished = states.count("finished")
    state = states[0] if len(set(states)) == 1 else f"{finished} of {len(states)} finished"
    return [
        *group.labels.values(),
        *_value(comparison, group.value),
        *(_value_of(each, comparison) for each in (group.mean, group.deviation)),
        *(_exit_numbers(comparison, group) if comparison.has_exits else []),
        str(group.num_seeds),
        _number(group.tuned_parameters),
        _number(group.bytes_per_client, 1 / MIB),
        _number(group.total_bytes, 1 / MIB),
        _number(group.relative_cost),
        _number(group.wall_seconds),
        _truth(group.on_front),
        state,
        "; ".join(map(one_line, group.failures)),
    ]


def _cell_row(comparison: Comparison, cell: CellState) -> list[str]:
    """Labels, searched value and figures of a cell; empty fields while it is not finished."""
    labels, done = [*cell.labels.values(), *_value(comparison, cell.value)], cell.outcome
    if done is None:
        return labels + [""] * (1 + len(_at_exits(comparison)) + len(_FIGURES))
    at_exits = (done.first_exit, done.mean_exit) if comparison.has_exits else ()
    return [
        *labels,
        *(_value_of(each, comparison) for each in (done.final, *at_exits)),
        _number(done.tuned_parameters),
        _number(done.bytes_per_client, 1 / MIB),
        _number(done.total_bytes, 1 / MIB),
        _number(done.relative_cost),
        _number(done.wall_seconds),
    ]


def _at_exits(comparison: Comparison) -> tuple[str, ...]:
    name = comparison.primary.name
    return (f"first_exit_{name}", f"mean_exit_{name}") if comparison.has_exits else ()


def _exit_numbers(comparison: Comparison, group: Group) -> list[str]:
    values = (group.first_exit, group.mean_exit, group.mean_exit_deviation)
    return [_value_of(each, comparison) for each in values]


def _exit_texts(group: Group, primary: Measure) -> list[str]:
    return [bare(group.first_exit, primary), bare(group.mean_exit, primary, group.mean_exit_deviation)]


def _columns(comparison: Comparison, names: Iterable[str]) -> list[str]:
    """Columns of the primary measure; the name of a measure ends with its unit, but a fraction is in percent here."""
    return [f"{name}_percent" if comparison.primary.is_fraction else name for name in names]


def _value_of(value: float | None, comparison: Comparison) -> str:
    return _number(value, in_unit(1, comparison.primary))


def _searched(comparison: Comparison) -> list[str]:
    return [] if comparison.searched is None else [comparison.searched]


def _value(comparison: Comparison, value: object) -> list[str]:
    return [] if comparison.searched is None else ["" if value is None else label_of(value)]


def _percent(fraction: float | None) -> str:
    return UNKNOWN if fraction is None else f"{100 * fraction:.1f}"


def _number(value: float | None, factor: float = 1) -> str:
    """Six decimals at most: a digit more says nothing, and files of equal runs are equal."""
    return "" if value is None else f"{round(value * factor, 6):.15g}"


def _truth(value: bool) -> str:
    return "true" if value else "false"


def first_figure(comparison: Comparison) -> int:
    """The place of the first column of `group_table` that is a figure."""
    return len(comparison.axes) + len(_searched(comparison))


def _bold(table: Pivot) -> list[list[str]]:
    return [
        [
            f"**{markdown(text)}**" if (row, column) in table.best else markdown(text)
            for column, text in enumerate(texts)
        ]
        for row, texts in enumerate(table.rows)
    ]


def _csv(rows: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([cell(text) for text in row] for row in rows)
    return buffer.getvalue()


def _markdown(header: Sequence[str], rows: Iterable[Iterable[str]], *, numbers_from: int) -> str:
    """A table; `rows` are Markdown, the header is text."""
    rule = ["---" if column < numbers_from else "--:" for column in range(len(header))]
    lines = [map(markdown, header), rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
