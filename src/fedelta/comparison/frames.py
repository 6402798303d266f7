"""The frames of a comparison: one row for each cell, and one for each group of cells that differ in their seed only.

Columns are the axes, the searched key if there is one, and the figures of columns.py. Labels and searched values are
Python objects. An unknown figure is missing (`isna`); no measure of a finished run is NaN.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from pandas import DataFrame, Series, concat

from fedelta.comparison.columns import (
    COSTS,
    IS_BEST,
    IS_CLEAR,
    NUM_CELLS,
    NUM_SEEDS,
    ON_FRONT,
    REASON,
    ROUND,
    RUN,
    STATE,
    TOTAL_BYTES,
    Column,
)
from fedelta.comparison.intervals import BySeed, by_seed, is_better

Row = Mapping[str, object]

FINISHED, FAILED, WAITING = "finished", "failed", "waiting"
_MAX_REASON = 300


def cells_frame(
    rows: Sequence[Row], keys: Iterable[str], measures: Iterable[Column], axes: Sequence[str] = ()
) -> DataFrame:
    """One row per cell, group by group.

    Args:
        rows: name of a column to its value; absent figures are missing in the frame.
        keys: the axes, and the searched key if there is one.
        measures: the columns before those of the costs.
        axes: those that distinguish groups, which come in the order of their first cells.
    """
    figures = {column.name: column.dtype for column in (*measures, *COSTS)}
    frame = _frame(rows, dict.fromkeys(keys, "object") | figures | dict.fromkeys((STATE, REASON, RUN), "object"))
    return concat(split(frame, axes), ignore_index=True)


def trials_frame(rows: Sequence[Row], keys: Iterable[str], measures: Iterable[Column]) -> DataFrame:
    """Like `cells_frame`, for the trials of a search; `is_best` marks the chosen values."""
    trials = cells_frame(rows, keys, measures)
    trials.insert(trials.columns.tolist().index(STATE), IS_BEST, Series([row[IS_BEST] for row in rows], dtype="bool"))
    return trials


def curves_frame(
    curves: Iterable[tuple[Row, Sequence[tuple[int, float]]]], axes: Iterable[str], name: str
) -> DataFrame:
    """One row per evaluated round of each finished cell: its labels, the round, and the primary measure.

    Args:
        curves: labels of a cell, and its rounds with the measure.
        axes: all of them.
        name: of the primary measure.
    """
    rows = [{**labels, ROUND: round, name: value} for labels, curve in curves for round, value in curve]
    return _frame(rows, dict.fromkeys(axes, "object") | {ROUND: "int64", name: "float64"})


def groups_frame(
    cells: DataFrame,
    axes: Sequence[str],
    measures: Sequence[Column],
    *,
    searched: str | None = None,
    task_axes: Sequence[str] = (),
    higher_is_better: bool = True,
) -> DataFrame:
    """One row per group, in the order of their first cells.

    Figures are means over the finished cells; deviations are those of a sample (n - 1), missing with one seed.

    Args:
        cells: a frame made by `cells_frame`.
        axes: all axes except the seed.
        measures: the columns before those of the costs, that of the primary measure first.
        searched: the searched key, or None.
        task_axes: those of `axes` that change the data or their division. Each task has its own Pareto front, because
            measures of different tasks cannot be compared.
        higher_is_better: of the primary measure.

    A member of the front is clear if it is better by more than chance (`intervals.py`) than every row of its task that
    sends no more.
    """
    keys = [*axes, *([] if searched is None else [searched])]
    rows = [_group(members, keys, (*measures, *COSTS)) for members in split(cells, axes)]
    dtypes = dict.fromkeys(keys, "object") | dict.fromkeys(_names(measures), "float64")
    dtypes |= {NUM_SEEDS: "int64", NUM_CELLS: "int64"}
    dtypes |= {column.name: column.dtype if column.of_seeds == "first" else "float64" for column in COSTS}
    groups = _frame(rows, dtypes | dict.fromkeys((STATE, REASON), "object"))
    front = _on_front(groups, measures[0].in_groups[0], task_axes, higher_is_better=higher_is_better)
    groups.insert(groups.columns.tolist().index(STATE), ON_FRONT, front)
    seeds = [by_seed(members, measures[0].name) for members in split(cells, axes)]
    clear = _is_clear(groups, seeds, task_axes, higher_is_better=higher_is_better)
    groups.insert(groups.columns.tolist().index(STATE), IS_CLEAR, clear)
    return groups


def split(frame: DataFrame, names: Sequence[str]) -> list[DataFrame]:
    """Groups of rows that are equal in the columns `names`, in order of appearance; without names, one group."""
    return [part for _, part in frame.groupby(list(names), sort=False)] if names else [frame]


def mean_curve(curves: DataFrame, labels: Row, num_cells: int) -> list[tuple[int, float, float | None]]:
    """Round, mean and deviation of the primary measure over a group's finished cells, for rounds that all evaluated.

    Args:
        curves: a frame made by `curves_frame`.
        labels: of the group.
        num_cells: number of finished cells of the group.
    """
    members = curves[(curves[list(labels)] == Series(labels, dtype="object")).all(axis=1)]
    by_round: dict[int, list[float]] = {}
    for round, value in zip(members[ROUND].tolist(), members[curves.columns[-1]].tolist(), strict=True):
        by_round.setdefault(round, []).append(value)
    return [
        (round, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
        for round, values in sorted(by_round.items())
        if len(values) == num_cells
    ]


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool = True) -> list[bool]:
    """Whether each (bytes, value) is on the Pareto front: no other point is as good in both and better in one.

    >>> pareto_front([(1, 0.5), (2, 0.9), (3, 0.9), (4, 0.95)])
    [True, True, False, True]
    >>> pareto_front([(1, 0.5), (2, 0.9), (3, 0.3)], higher_is_better=False)
    [True, False, True]
    """
    sign = 1 if higher_is_better else -1

    def is_beaten(point: tuple[float, float]) -> bool:
        return any(other[0] <= point[0] and sign * (other[1] - point[1]) >= 0 and other != point for other in points)

    return [not is_beaten(point) for point in points]


def one_line(text: str | None) -> str:
    """An error message on one line, without hint and traceback, for a table."""
    if text is None:
        return ""
    message = text.strip().partition("\n\n")[0].partition("\nhint:")[0]
    line = " ".join(part.strip() for part in message.splitlines())
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}…"


def _frame(rows: Sequence[Row], dtypes: Mapping[str, str]) -> DataFrame:
    # Each column with its type: from whole rows, pandas would make floats of integers and NaN of None.
    return DataFrame({name: Series([row.get(name) for row in rows], dtype=dtype) for name, dtype in dtypes.items()})


def _names(columns: Iterable[Column]) -> list[str]:
    return [name for column in columns for name in column.in_groups]


def _group(cells: DataFrame, keys: Sequence[str], columns: Sequence[Column]) -> Row:
    row: dict[str, object] = {key: cells[key].iloc[0] for key in keys}
    for column in columns:
        row |= dict(zip(column.in_groups, _over_seeds(column, cells[column.name].dropna().tolist()), strict=False))
    states, reasons = cells[STATE].tolist(), dict.fromkeys(cells[REASON].dropna())
    is_uniform = len(set(states)) == 1
    return row | {
        NUM_SEEDS: int(cells[columns[0].name].count()),
        NUM_CELLS: len(cells),
        STATE: states[0] if is_uniform else f"{states.count(FINISHED)} of {len(states)} finished",
        REASON: "; ".join(map(one_line, reasons)) or None,
    }


def _over_seeds(column: Column, values: list[float]) -> tuple[float | None, float | None]:
    """The mean of the known values, the largest or the first of them, and their deviation."""
    if not values:
        return None, None
    of_all = {"mean": statistics.fmean(values), "largest": max(values), "first": values[0]}[column.of_seeds]
    return of_all, statistics.stdev(values) if len(values) > 1 else None


def _on_front(groups: DataFrame, mean: str, task_axes: Sequence[str], *, higher_is_better: bool) -> Series[bool]:
    on_front: dict[int, bool] = {}
    for task in split(groups[groups[mean].notna()], task_axes):
        points = list(zip(task[TOTAL_BYTES].tolist(), task[mean].tolist(), strict=True))
        on_front |= zip(task.index, pareto_front(points, higher_is_better=higher_is_better), strict=True)
    return Series([on_front.get(place, False) for place in groups.index], dtype="bool")


def _is_clear(
    groups: DataFrame, seeds: Sequence[BySeed], task_axes: Sequence[str], *, higher_is_better: bool
) -> Series[bool]:
    clear = dict.fromkeys(range(len(groups)), False)
    on_front, sent = groups[ON_FRONT].tolist(), groups[TOTAL_BYTES].tolist()
    for task in split(groups[groups[TOTAL_BYTES].notna()], task_axes):
        places = task.index.tolist()
        for place in places:
            rivals = [other for other in places if other != place and sent[other] <= sent[place]]
            clear[place] = on_front[place] and all(
                is_better(seeds[place], seeds[other], higher_is_better=higher_is_better) for other in rivals
            )
    return Series([clear[place] for place in groups.index], dtype="bool")
