"""What is predicted, by row, and how a task reads it from a column of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Targets(Protocol):
    """What is predicted, by row: fetched like inputs, so that rows may differ in length."""

    def __len__(self) -> int:
        """Number of rows."""

    def fetch(self, rows: Tensor) -> Tensor:
        """The targets of `rows` (int64, one axis), the batch first; padded where rows differ in length."""

    def select(self, rows: Tensor) -> Targets:
        """Those of `rows` (int64, one axis), in that order."""

    @property
    def strata(self) -> Tensor | None:
        """A kind for each row, int64 of shape [N]: rows are drawn in equal shares of each and divided by them."""


@dataclass(frozen=True)
class TargetColumn:
    """A column of a data set as it stands there.

    Args:
        name: of the column.
        what: names the data set in problems, such as "test set".
        values: one for each row; None where there is none.
        class_names: of a column of class labels, whose values are numbers; None for any other column.
    """

    name: str
    what: str
    values: Sequence[object]
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ReadTargets:
    """What a task has read from the columns of a training and a test set.

    Args:
        train: of the training set; of no use where there are problems.
        test: of the test set; None where there is none.
        class_names: one for each class, in label order; nothing where the task has no classes.
        strata_names: one for each kind of row, in the order of their numbers.
        problems: all that keeps the columns from being used.
        notes: what can be used and looks odd, in words.
    """

    train: Targets
    test: Targets | None
    class_names: tuple[str, ...]
    strata_names: tuple[str, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def strata_of(targets: Targets) -> Tensor:
    """The kind of each row, int64 of shape [N]; one kind of all where the task knows none."""
    return torch.zeros(len(targets), dtype=torch.int64) if targets.strata is None else targets.strata
