"""The results of a comparison so far: returned by `compare`, and the source of tables and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pandas import DataFrame

from fedelta.comparison.cells import is_word, name_of
from fedelta.comparison.columns import NUM_CELLS, NUM_SEEDS, REASON, RUN, STATE, Column
from fedelta.comparison.frames import FAILED, FINISHED, WAITING, groups_frame, split
from fedelta.comparison.intervals import BySeed, by_seed, level
from fedelta.grid import SEED
from fedelta.record.numbers import bare
from fedelta.record.runlog import best_of
from fedelta.tasks.base import Measure

Record = Mapping[str, Any]  # Any: one row of a frame, by column; None for a missing figure


@dataclass(frozen=True)
class Comparison:
    """The cells of a grid and their results, as pandas frames.

    Figures are in the units of the records: fractions, bytes, seconds.

    Args:
        name: of the comparison.
        path: of its directory.
        cell_axes: names of the axes, including the seed if it is one.
        task_axes: those of them that change the data or their division.
        searched: the searched key, or None.
        primary: the measure by which cells are compared.
        measures: the columns of the primary measure, including those at exits if a model has exits, and of the
            fractions beside it.
        frame: a row for each cell, group by group: labels, searched value, figures, `state` ("finished",
            "failed" or "waiting"), `reason` (the error, or None) and `run` (its directory within `path`).
        trials: likewise for the search, with `is_best`; empty without a search.
        curves: a row for each evaluated round of each finished cell: labels, round, and the primary measure.
        citations: BibTeX of the finished cells, each text once.
        asked: the content of `compare.toml`.
    """

    name: str
    path: Path
    cell_axes: tuple[str, ...]
    task_axes: tuple[str, ...]
    searched: str | None
    primary: Measure
    measures: tuple[Column, ...]
    frame: DataFrame
    trials: DataFrame
    curves: DataFrame
    citations: frozenset[str]
    asked: str

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes but the seed: what distinguishes groups."""
        return tuple(name for name in self.cell_axes if name != SEED)

    @cached_property
    def groups(self) -> DataFrame:
        """One row per group of cells that differ only in their seed, in the order of the grid (`groups_frame`)."""
        return groups_frame(
            self.frame,
            self.axes,
            self.measures,
            searched=self.searched,
            task_axes=self.task_axes,
            higher_is_better=self.primary.higher_is_better,
        )

    @property
    def is_finished(self) -> bool:
        """Whether all cells have finished."""
        return bool((self.frame[STATE] == FINISHED).all())

    @property
    def failures(self) -> dict[str, str]:
        """Name of each failed cell to the text of its error."""
        failed = self.frame[self.frame[STATE] == FAILED]
        return {self._cell_name(row): row[REASON] for row in records(failed)}

    def _cell_name(self, row: Record) -> str:
        key = self.searched if row[RUN] else None
        return name_of({name: row[name] for name in self.cell_axes}, key, row[key] if key else None)

    def group_name(self, group: Record, *, without: Sequence[str] = ()) -> str:
        """The labels of a group, such as `lora, 8 of 64`; numbers with their key.

        Args:
            group: a row of `groups`.
            without: axes to leave out.
        """
        return ", ".join(short(name, group[name]) for name in self.axes if name not in without) or self.name


@dataclass(frozen=True)
class Pivot:
    """The primary measure with the first axis in rows and the combinations of the others in columns.

    Args:
        header: name of the first axis, and the name of each column.
        rows: a label and its cells.
        best: (row, column) of the best of each column, and of those that it does not beat by more than chance.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]]


def pivot(comparison: Comparison) -> Pivot | None:
    """The pivot of a comparison; None with fewer than two axes besides the seed."""
    if len(comparison.axes) < 2:
        return None
    first = comparison.axes[0]
    lines = [records(part) for part in split(comparison.groups, [first])]
    header = (first, *(comparison.group_name(group, without=(first,)) for group in lines[0]))
    rows = [(line[0][first], *(mean_and_deviation(group, comparison) for group in line)) for line in lines]
    best = {
        (row, column + 1)
        for column in range(len(lines[0]))
        for row in _outstanding(comparison, [line[column] for line in lines])
    }
    return Pivot(header, tuple(rows), frozenset(best))


def _outstanding(comparison: Comparison, groups: Sequence[Record]) -> set[int]:
    """The indices of the best of `groups` and of those that it does not beat; empty where that tells none apart."""
    primary, mean = comparison.primary, comparison.measures[0].in_groups[0]
    means = {place: group[mean] for place, group in enumerate(groups) if group[mean] is not None}
    highest = best_of(list(means.values()), primary)
    if highest is None:
        return set()
    # Compared as printed, so that means that look equal are both marked.
    equal = {place for place, value in means.items() if bare(value, primary) == bare(highest, primary)}
    first = next(place for place, value in means.items() if value == highest)
    seeds = {place: _seeds(comparison, groups[place]) for place in means}
    others = {place: seeds[place] for place in means.keys() - equal}
    marked = equal | level(seeds[first], others, higher_is_better=primary.higher_is_better)
    return marked if len(marked) < len(means) or not others else set()


def _seeds(comparison: Comparison, group: Record) -> BySeed:
    """The primary measure of a group by seed."""
    cells = comparison.frame
    for name in comparison.axes:
        cells = cells[cells[name] == group[name]]
    return by_seed(cells, comparison.measures[0].name)


def mean_and_deviation(group: Record, comparison: Comparison) -> str:
    """The primary measure, such as `97.1 ± 0.4`, without a deviation for a single seed; the state if there is none.

    If seeds are missing, their number follows.

    Args:
        group: a row of `comparison.groups`.
        comparison: with the group.
    """
    column = comparison.measures[0]
    mean, deviation = (group[name] for name in column.in_groups)
    if mean is None:
        return group[STATE] if group[STATE] in (FINISHED, FAILED, WAITING) else "unfinished"
    text = column.text(mean, deviation)
    return text if group[NUM_SEEDS] == group[NUM_CELLS] else f"{text} ({group[NUM_SEEDS]} of {group[NUM_CELLS]})"


def records(frame: DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame by column, with None for missing figures."""
    rows = frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None)
    return [dict(zip(frame.columns, row, strict=True)) for row in rows]


def short(name: str, label: str) -> str:
    """A label; a number, truth value or list with the last part of its key.

    >>> short("tuning.name", "lora"), short("tuning.r", "8")
    ('lora', 'r 8')
    """
    return label if is_word(label) else f"{name.rpartition('.')[2]} {label}"
