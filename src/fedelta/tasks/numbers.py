"""Reads the targets of a regression: a column of numbers, one of lists of numbers, or several columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedelta.errors import listed
from fedelta.tasks.targets import ReadTargets, TargetColumn

_NUM_RANGES = 10  # strata of targets, with equally many rows of the training set
_FEW_VALUES = 20  # as many different whole numbers may be classes


@dataclass(frozen=True)
class Numbers:
    """The target numbers of each row.

    Args:
        values: as in the data, float64 of shape [N, K].
        strata: number of the range that the first target is in, int64 of shape [N].
    """

    values: Tensor
    strata: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        """The targets of `rows`, [R, K]."""
        return self.values[rows]

    def select(self, rows: Tensor) -> Numbers:
        """The targets of `rows` alone."""
        return Numbers(self.values[rows], self.strata[rows])


def read_numbers(train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
    """The numbers of both sets, in ranges of the first number that hold equally many rows of the training set."""
    columns = [train] if test is None else [train, test]
    problems = [problem for column in columns for problem in _problems(column)]
    tables = [] if problems else [np.array(_rows(column), dtype=np.float64) for column in columns]
    if len({table.shape[1] for table in tables}) > 1:
        problems.append(f"{columns[1].what}: {tables[1].shape[1]} numbers a row, expected {tables[0].shape[1]}")
    problems += [] if problems else _constant(train, tables[0])
    if problems:
        empty = Numbers(torch.zeros(0, 1, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
        return ReadTargets(empty, None, (), (), tuple(problems))
    edges = np.unique(np.quantile(tables[0][:, 0], np.arange(1, _NUM_RANGES) / _NUM_RANGES))
    numbers = [Numbers(torch.from_numpy(t), torch.from_numpy(np.digitize(t[:, 0], edges))) for t in tables]
    names = _names(train, tables[0])
    return ReadTargets(
        numbers[0], numbers[1] if test is not None else None, names, _range_names(edges), notes=_notes(train)
    )


def _rows(column: TargetColumn) -> list[list[object]]:
    return [list(value) if isinstance(value, list) else [value] for value in column.values]


def _names(column: TargetColumn, table: NDArray[np.float64]) -> tuple[str, ...]:
    """The names of several numbers: those of their columns, or their places in the lists; empty for one number."""
    is_one = not column.parts and not any(isinstance(value, list) for value in column.values)
    return column.parts or (() if is_one else tuple(map(str, range(table.shape[1]))))


def _constant(column: TargetColumn, table: NDArray[np.float64]) -> list[str]:
    names = _names(column, table)
    return [
        f"target column {names[place] if names else column.name!r} holds {table[0, place]!s} in every row, expected "
        "several values"
        for place in range(table.shape[1])
        if (table[:, place] == table[0, place]).all()
    ]


def _notes(column: TargetColumn) -> tuple[str, ...]:
    numbers = {value for row in _rows(column) for value in row}
    if len(numbers) > _FEW_VALUES or not all(isinstance(value, int) for value in numbers):
        return ()
    what = f"target column {column.name!r} holds {len(numbers)} different whole numbers"
    return (f'{what}; if they are classes, set `task.name` = "classification"',)


def _problems(column: TargetColumn) -> list[str]:
    what = f"{column.what}: target column {column.name!r}"
    classes = '; to predict classes, set `task.name` = "classification"'
    if column.class_names is not None:
        return [f"{what} holds class labels, expected numbers{classes}"]
    rows = _rows(column)
    lengths = {len(row) for row in rows if row != [None]}
    if len(lengths) > 1 or lengths == {0}:
        return [f"{what} holds lists of {min(lengths)} to {max(lengths)} numbers, expected equally many in each row"]
    values = [value for row in rows for value in row]
    kinds = sorted({type(value).__name__ for value in values if value is not None})
    words = [row for row, each in enumerate(rows) if any(isinstance(v, str) and not _is_number(v) for v in each)]
    if "str" in kinds and 0 < 2 * len(words) < len(rows):
        texts = [value for value in rows[words[0]] if isinstance(value, str) and not _is_number(value)]
        example, numbers = repr(texts[0]), listed(words)
        return [
            f"{what} holds text such as {example} in {len(words)} rows: rows {numbers}; expected a number in each row"
        ]
    if not kinds or not set(kinds) <= {"int", "float"}:
        texts = [value for value in values if isinstance(value, str) and _is_number(value.replace(",", ".", 1))]
        commas = [text for text in texts if "," in text]
        advice = f"; write {commas[0]!r} with a decimal point" if commas else "; store them as numbers"
        advice = advice if texts and len(texts) == len(values) else classes
        return [f"{what} holds {listed(kinds) or 'no values'}, expected numbers{advice}"]
    missing = [row for row, each in enumerate(rows) if None in each]
    infinite = [
        row for row, each in enumerate(rows) if any(isinstance(v, float) and not math.isfinite(v) for v in each)
    ]
    broken = {"no number": missing, "NaN or infinity": infinite}
    return [f"{what} holds {kind} in {len(rows)} rows: rows {listed(rows)}" for kind, rows in broken.items() if rows]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _range_names(edges: NDArray[np.float64]) -> tuple[str, ...]:
    shown = [f"{edge:.4g}" for edge in edges]
    between = (f"{low} to {high}" for low, high in pairwise(shown))
    return (f"below {shown[0]}", *between, f"from {shown[-1]}")
