"""A comparison as far as it has come: what `compare` returns, and what tables and page are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fedelta.comparison.cells import is_word, name_of
from fedelta.comparison.outcomes import CellState, Group, Trial
from fedelta.record.numbers import bare
from fedelta.record.runlog import best_of
from fedelta.tasks.base import Measure


@dataclass(frozen=True)
class Comparison:
    """Groups of cells, in the order of the grid, and the search.

    Args:
        name: of the comparison.
        path: of its directory.
        axes: names of the axes but the seed.
        task_axes: those of them that change the data or their division.
        searched: the key whose best value was searched, or None.
        groups: cells that differ in their seed only, each with its mean.
        trials: of the search; empty without one.
        asked: the content of `compare.toml`.
        primary: the measure that all cells share, by which they are compared.
    """

    name: str
    path: Path
    axes: tuple[str, ...]
    task_axes: tuple[str, ...]
    searched: str | None
    groups: tuple[Group, ...]
    trials: tuple[Trial, ...]
    asked: str
    primary: Measure

    @property
    def cells(self) -> list[CellState]:
        """Every cell, group by group."""
        return [cell for group in self.groups for cell in group.cells]

    @property
    def has_exits(self) -> bool:
        """Whether some cell, or trial, was measured at more exits than the last."""
        cells = [*self.cells, *(trial.cell for trial in self.trials)]
        return any(cell.outcome is not None and cell.outcome.mean_exit is not None for cell in cells)

    @property
    def is_finished(self) -> bool:
        """Whether every cell has been run to its end."""
        return all(cell.outcome is not None for cell in self.cells)

    @property
    def failures(self) -> dict[str, str]:
        """Name of each cell that failed to the text of its error."""
        return {
            name_of(cell.labels, self.searched if cell.run else None, cell.value): cell.failure
            for cell in self.cells
            if cell.failure is not None
        }

    def group_name(self, group: Group, *, without: Sequence[str] = ()) -> str:
        """The labels of a group, such as `lora, 8 of 64`; numbers have their key beside them.

        Args:
            group: one of `groups`.
            without: axes that are left out.
        """
        parts = [short(name, label) for name, label in group.labels.items() if name not in without]
        return ", ".join(parts) or self.name


@dataclass(frozen=True)
class Pivot:
    """The primary measure with the first axis downwards and the combinations of the others across.

    Args:
        header: name of the first axis, and the name of each column.
        rows: a label and its cells.
        best: places of the best mean of each column, (row, column) as in `rows`.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]]


def pivot(comparison: Comparison) -> Pivot | None:
    """The table as papers print it; None with fewer than two axes beside the seed."""
    if len(comparison.axes) < 2:
        return None
    first, groups = comparison.axes[0], comparison.groups
    columns = list(dict.fromkeys(comparison.group_name(group, without=(first,)) for group in groups))
    members = [(label, list(own)) for label, own in groupby(groups, lambda group: group.labels[first])]
    primary = comparison.primary
    rows = [(label, *(mean_and_deviation(group, primary) for group in own)) for label, own in members]
    best = set()
    for column in range(len(columns)):
        means = [own[column].mean for _, own in members]
        value = best_of([mean for mean in means if mean is not None], primary)
        # As they are printed: two that look the same are equally good.
        best |= {
            (row, column + 1)
            for row, mean in enumerate(means)
            if mean is not None and bare(mean, primary) == bare(value, primary)
        }
    return Pivot((first, *columns), tuple(rows), frozenset(best))


def mean_and_deviation(group: Group, primary: Measure) -> str:
    """The primary measure, such as `97.1 ± 0.4`; with one seed without a deviation; a word where there is none.

    The number of seeds stands behind it where some are missing.
    """
    if group.mean is None:
        return group.cells[0].state if len({cell.state for cell in group.cells}) == 1 else "unfinished"
    text = bare(group.mean, primary, group.deviation)
    return text if group.num_seeds == len(group.cells) else f"{text} ({group.num_seeds} of {len(group.cells)})"


def short(name: str, label: str) -> str:
    """A label with the end of its key where it is a number, a truth value or a list.

    >>> short("tuning.name", "lora"), short("tuning.r", "8")
    ('lora', 'r 8')
    """
    return label if is_word(label) else f"{name.rpartition('.')[2]} {label}"
