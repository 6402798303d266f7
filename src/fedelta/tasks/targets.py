"""The targets of a data set, and the column that a task reads them from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Targets(Protocol):
    """One target per row. They are fetched in batches, as inputs are, so that rows may differ in length."""

    def __len__(self) -> int:
        """Number of rows."""

    def fetch(self, rows: Tensor) -> Tensor:
        """The targets of `rows` (int64, one axis), batch first; padded if rows differ in length."""

    def select(self, rows: Tensor) -> Targets:
        """The targets of `rows` (int64, one axis) alone, in that order."""

    @property
    def strata(self) -> Tensor | None:
        """The stratum of each row, int64 of shape [N]: sampling and partitioners use it; None if there are none."""


@dataclass(frozen=True)
class TargetColumn:
    """A column of a data set, unchanged, or several columns side by side.

    Args:
        name: of the column; of several, their names with commas between them.
        what: name of the data set in messages, such as "test set".
        values: one per row; None where the value is missing. Of several columns each value is a list with one entry per
            column.
        class_names: of a column of class labels, or of lists of them, whose values are numbers; None for any other
            column.
        parts: the names of several columns; empty for one column.
    """

    name: str
    what: str
    values: Sequence[object]
    class_names: tuple[str, ...] | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadTargets:
    """The targets that a task has read from a training and a test set.

    Args:
        train: of the training set; not to be used if there are problems.
        test: of the test set; None without one.
        class_names: of the outputs: classes in label order, or the names of several numbers; empty for one number.
        strata_names: in the order of the strata's numbers.
        problems: messages about everything that prevents the columns from being used.
        notes: messages about usable values that look like mistakes.
    """

    train: Targets
    test: Targets | None
    class_names: tuple[str, ...]
    strata_names: tuple[str, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def strata_of(targets: Targets) -> Tensor:
    """The stratum of each row, int64 of shape [N]; all 0 if the targets have no strata."""
    return torch.zeros(len(targets), dtype=torch.int64) if targets.strata is None else targets.strata
