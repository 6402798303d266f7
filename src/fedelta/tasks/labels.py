"""Labels of a classification as they stand in a data set: which classes there are, and the class of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedelta.errors import listed
from fedelta.tasks.targets import ReadTargets, TargetColumn


@dataclass(frozen=True)
class Labels:
    """A class for each row.

    Args:
        values: int64 of shape [N], from 0.
    """

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        """The classes of `rows`."""
        return self.values[rows]

    def select(self, rows: Tensor) -> Labels:
        """Those of `rows` alone."""
        return Labels(self.values[rows])

    @property
    def strata(self) -> Tensor:
        """The classes themselves."""
        return self.values


_NONE = Labels(torch.zeros(0, dtype=torch.int64))


def read_labels(train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
    """The labels of both sets as numbers of the classes of the training set.

    Integers and texts sort by value, texts that are all whole numbers as numbers; class labels keep their own order and
    names.
    """
    classes, names, problem = _classes(train)
    if problem is not None:
        return ReadTargets(_NONE, None, (), (), (problem,))
    labels, problems = _numbers(train, classes)
    test_labels = None
    if test is not None and None not in (train.class_names, test.class_names) and train.class_names != test.class_names:
        # The numbers of two such columns mean different classes.
        ours, theirs = list(train.class_names or ()), list(test.class_names or ())
        problems.append(f"{test.what}: classes {listed(theirs)} differ from the {train.what}'s {listed(ours)}")
    elif test is not None:
        numbers, more = _numbers(test, classes)
        test_labels, problems = Labels(numbers), problems + more
    return ReadTargets(Labels(labels), test_labels, names, names, tuple(problems))


def _classes(column: TargetColumn) -> tuple[list[object], tuple[str, ...], str | None]:
    """The classes in label order: as they stand in the column, and as names; and what is wrong with them."""
    values = {value for value in column.values if value is not None}
    kinds = sorted({type(value).__name__ for value in values})
    if kinds not in (["int"], ["str"], ["bool"]):
        advice = '; numbers are predicted with `task.name` = "regression"' if kinds == ["float"] else ""
        held = listed(kinds) or "nothing"
        return [], (), f"label column {column.name!r} holds {held}, expected integers or texts{advice}"
    classes = list(range(len(column.class_names))) if column.class_names is not None else _sorted(values)
    names = column.class_names or tuple(str(value) for value in classes)
    if len(classes) < 2:
        return [], (), f"label column {column.name!r} has one class only, {names[0]!r}, expected 2 or more"
    return list(classes), names, None


def _sorted(values: set[Any]) -> list[object]:
    """In ascending order; Any: integers, truth values or texts, all of one type."""
    if all(isinstance(value, str) and value.isascii() and value.isdigit() for value in values):
        # The text itself last: "1" and "01" are two classes.
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def _numbers(column: TargetColumn, classes: Sequence[object]) -> tuple[Tensor, list[str]]:
    """Labels as numbers in 0..len(classes)-1, int64 of shape [N], and problems."""
    number_of = {value: number for number, value in enumerate(classes)}
    missing = [row for row, value in enumerate(column.values) if value is None]
    foreign = [row for row, value in enumerate(column.values) if value is not None and value not in number_of]
    problems = []
    if missing:
        rows = f"{len(missing)} rows without a label in column {column.name!r}: rows {listed(missing)}"
        problems.append(f"{column.what}: {rows}")
    if foreign:
        strange = sorted({str(column.values[row]) for row in foreign})
        problems.append(
            f"{column.what}: {len(foreign)} rows with labels outside the {len(classes)} classes: "
            f"labels {listed(strange)}, rows {listed(foreign)}; expected {listed(list(classes))}"
        )
    return torch.tensor([number_of.get(value, -1) for value in column.values], dtype=torch.int64), problems
