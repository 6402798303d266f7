"""Reads columns in which a row has any number of labels, also none.

A row is a list of labels, a list of 0 and 1 with one entry for each label, a text with a separator between labels, or
the 0 and 1 of several columns, which then are the labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedelta.errors import listed
from fedelta.tasks.targets import ReadTargets, TargetColumn

NO_LABEL = "no label"


@dataclass(frozen=True)
class LabelSets:
    """The labels of each row.

    Args:
        values: whether a row has a label, bool of shape [N, C].
        strata: the label of the row that the fewest rows of the training set have, C if it has none; int64 of shape
            [N].
    """

    values: Tensor
    strata: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        """1 where a row has a label, else 0; float32 of shape [R, C]."""
        return self.values[rows].float()

    def select(self, rows: Tensor) -> LabelSets:
        """The labels of `rows` alone."""
        return LabelSets(self.values[rows], self.strata[rows])


_NUM_SHOWN = 5
_EMPTY = LabelSets(torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))


def read_label_sets(train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
    """The labels of both sets, which are those of the training set; the columns are `in_lists`.

    Labels sort by value; class labels, and the columns or entries of 0 and 1, keep their order.
    """
    columns = [train] if test is None else [train, test]
    if problems := [problem for column in columns for problem in _problems(column)]:
        return ReadTargets(_EMPTY, None, (), (), tuple(problems))
    names = train.class_names or tuple(map(str, sorted({label for row in _labels(train) for label in row})))
    if len(names) < 2:
        problem = f"label column {train.name!r} has {len(names)} labels, expected 2 or more"
        return ReadTargets(_EMPTY, None, (), (), (problem,))
    tables, foreign = zip(*(_table(column, names) for column in columns), strict=True)
    counts = tables[0].sum(0)
    targets = [LabelSets(table, _rarest(table, counts)) for table in tables]
    has_empty = any(bool((each.strata == len(names)).any()) for each in targets)
    return ReadTargets(
        targets[0], targets[1] if test is not None else None, names, (*names, *([NO_LABEL] if has_empty else [])),
        tuple(filter(None, foreign)), _notes(train, names, counts.tolist()),
    )  # fmt: skip


def in_lists(column: TargetColumn, separator: str | None = None) -> TargetColumn:
    """The column with a list of labels in each row; what cannot be read as such stays as it is.

    Args:
        column: as in the data.
        separator: between the labels in a text; an empty text or cell then has no label.
    """
    values = list(column.values)
    if separator is not None and not column.parts:
        texts = ["" if value is None else value for value in values]
        return replace(column, values=[_split(text, separator) for text in texts])
    if not column.parts and not _are_vectors(column):
        return column
    names = column.parts or tuple(map(str, range(max(len(row) for row in values if isinstance(row, list)))))
    rows = [_places(row, len(names)) for row in values]
    return replace(column, values=rows, class_names=names, parts=())


def _split(value: object, separator: str) -> object:
    if not isinstance(value, str):
        return value
    return [label.strip() for label in value.split(separator) if label.strip()]


def _are_vectors(column: TargetColumn) -> bool:
    """Whether rows hold 0 and 1 for every label, and not numbers of labels: of these none is there twice."""
    rows = [value for value in column.values if isinstance(value, list)]
    lengths = {len(row) for row in rows}
    if column.class_names is not None or len(lengths) != 1 or min(lengths) < 2:
        return False
    items = [item for row in rows for item in row]
    return all(isinstance(item, int | float) and item in {0, 1} for item in items)


def _places(row: object, width: int) -> object:
    """The places of the ones among 0 and 1; None for a gap, a tuple if there is something else."""
    if not isinstance(row, list) or len(row) != width:
        return row
    if any(item is None or (isinstance(item, float) and math.isnan(item)) for item in row):
        return None
    if any(not isinstance(item, int | float) or item not in {0, 1} for item in row):
        return tuple(row)
    return [place for place, item in enumerate(row) if item == 1]


def _labels(column: TargetColumn) -> list[list[Any]]:
    """The labels of the rows that have a list; Any: integers or texts, all of one type."""
    return [value for value in column.values if isinstance(value, list)]


def _problems(column: TargetColumn) -> list[str]:
    what = f"{column.what}: label column {column.name!r}"
    present = [value for value in column.values if value is not None]
    if vectors := [value for value in present if isinstance(value, tuple)]:
        items = [item for value in vectors for item in value if item not in (0, 1)]
        wrong = ", ".join(sorted(set(map(repr, items)))[:_NUM_SHOWN])
        are_numbers = all(isinstance(item, int | float) for item in items)
        advice = '; to predict several numbers, set `task.name` = "regression"' if are_numbers else ""
        return [f"{column.what}: label columns {column.name!r} hold {wrong}, expected 0 or 1{advice}"]
    others = sorted({type(value).__name__ for value in present if not isinstance(value, list)})
    if others or not present:
        return [f"{what} holds {listed(others) or 'no values'}, expected a list of labels in each row{_advice(others)}"]
    kinds = sorted({type(label).__name__ for row in _labels(column) for label in row})
    if len(kinds) > 1 or not set(kinds) <= {"int", "str"}:
        advice = '; to predict several numbers, set `task.name` = "regression"' if "float" in kinds else ""
        return [f"{what} holds lists of {listed(kinds)}, expected lists of integers, of texts, or of 0 and 1{advice}"]
    if missing := [row for row, value in enumerate(column.values) if value is None]:
        advice = "label them (an empty list is no label), or move them to another file"
        return [f"{what} holds nothing in {len(missing)} rows: rows {listed(missing)}; {advice}"]
    return []


def _advice(kinds: Sequence[str]) -> str:
    if kinds == ["str"]:
        return (
            "; if a text holds several labels, set `task.separator`; if it is one label, set `task.name` = "
            '"classification"'
        )
    if kinds == ["float"]:
        return '; to predict numbers, set `task.name` = "regression"'
    return '; to predict one label, set `task.name` = "classification"' if kinds else ""


def _table(column: TargetColumn, names: Sequence[str]) -> tuple[Tensor, str | None]:
    """The labels as bool [N, C], and the problem with those that are not among `names`."""
    place_of = {name: place for place, name in enumerate(names)}
    table, foreign = torch.zeros(len(column.values), len(names), dtype=torch.bool), dict[str, int]()
    own = column.class_names
    for row, labels in enumerate(_labels(column)):
        for label in labels:
            is_place = own is not None and isinstance(label, int) and 0 <= label < len(own)
            name = own[label] if own is not None and is_place else str(label)
            if name in place_of:
                table[row, place_of[name]] = True
            else:
                foreign.setdefault(name, row)
    if not foreign:
        return table, None
    shown, expected = listed(sorted(foreign)), listed(list(names))
    rows = listed(sorted(foreign.values()))
    return (
        table,
        f"{column.what}: labels {shown} are not among the {len(names)} labels {expected}; first in rows {rows}",
    )


def _rarest(table: Tensor, counts: Tensor) -> Tensor:
    """The label of each row with the smallest of `counts` [C]; C for rows without a label."""
    num_labels = table.shape[1]
    ranked = torch.where(table, counts, torch.iinfo(torch.int64).max)
    return torch.where(table.any(1), ranked.min(1).indices, num_labels)


def _notes(column: TargetColumn, names: Sequence[str], counts: Sequence[int]) -> tuple[str, ...]:
    absent = [name for name, count in zip(names, counts, strict=True) if count == 0]
    constant = [name for name, count in zip(names, counts, strict=True) if count == len(column.values)]
    notes = [
        f"label column {column.name!r}: no training row has {listed(absent)}" if absent else "",
        f"label column {column.name!r}: every training row has {listed(constant)}" if constant else "",
    ]
    if 2 * len(names) > len(column.values) and len(names) > 20:
        notes.append(
            f"label column {column.name!r} has {len(names)} labels in {len(column.values)} rows; for the words of a "
            'text and a tag for each, set `task.name` = "tokens"'
        )
    return tuple(filter(None, notes))
