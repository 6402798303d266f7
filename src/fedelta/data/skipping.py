"""Leaves out images and recordings that cannot be read, as `data.on_error = "skip"` asks for.

This happens before anything is drawn from the rows, so a run is, bit for bit, that of the data without these files.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedelta.data.columns import Columns
from fedelta.data.stored import StoredColumn
from fedelta.data.values import values_of
from fedelta.errors import listed, refuse
from fedelta.modalities.base import ExampleError
from fedelta.modalities.damage import CHECKS
from fedelta.modalities.settings import Preparation
from fedelta.modalities.stores import rows_of
from fedelta.tasks.base import Task

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("fedelta")
_HEADER = ("set", "row", "file", "reason")
RENUMBERED = "rows are counted from 0, without those that were left out"
_MEND = "repair or replace the files, or take out what has no others"


@dataclass(frozen=True)
class Skipped:
    """A row that was left out.

    Args:
        set: "training set" or "test set", as they were read: a test set that is split off comes later.
        row: its number, from 0.
        file: its path; empty if the data hold its bytes.
        reason: why it cannot be read.
    """

    set: str
    row: int
    file: str
    reason: str


@dataclass(frozen=True)
class Readable:
    """The rows of a data set that can be read.

    Args:
        dataset: these rows.
        numbers: int64, the number of each in the data set as it was read.
        skipped: the others.
    """

    dataset: Dataset
    numbers: Tensor
    skipped: tuple[Skipped, ...] = ()


def screened(
    train: Dataset, test: Dataset | None, columns: Columns, preparation: Preparation | None, task: Task
) -> tuple[Readable, Readable | None]:
    """The rows of both sets that can be read.

    Args:
        train: training set.
        test: test set, if there is one.
        columns: in use.
        preparation: how examples are read; None: nothing is left out, and nothing decoded.
        task: what is predicted.

    Raises:
        DataError: as for `readable`.
    """

    def rows_in(dataset: Dataset, what: str) -> Readable:
        if preparation is None or columns.input not in dataset.column_names:
            return Readable(dataset, torch.arange(len(dataset)))
        return readable(dataset, columns, what, preparation, has_classes=task.has_classes)

    return rows_in(train, "training set"), None if test is None else rows_in(test, "test set")


def readable(dataset: Dataset, columns: Columns, what: str, preparation: Preparation, *, has_classes: bool) -> Readable:
    """The rows whose example can be decoded; decodes all, and logs one line about the others.

    Args:
        dataset: N rows.
        columns: in use.
        what: "training set" or "test set".
        preparation: how much of a recording is used.
        has_classes: whether the targets are classes.

    Raises:
        DataError: the inputs are no files; or nothing is left of the set or, in the training set, of a client or class.
    """
    check = CHECKS.get(columns.modality.name)
    if check is None:
        problem = f'`data.on_error` is "skip", but column {columns.input!r} holds {columns.modality.plural}'
        refuse("section `[data]`", [problem], hint="leave it out: it is for images and recordings")
        raise AssertionError
    skipped: list[Skipped] = []
    for row, value in rows_of(StoredColumn.of(dataset, columns.input, origin=what)):
        try:
            check(value, preparation)
        except ExampleError as error:
            path = value.get("path") if isinstance(value, dict) else None
            skipped.append(Skipped(what, row, path or "", str(error)))
    if not skipped:
        return Readable(dataset, torch.arange(len(dataset)))
    is_kept = torch.ones(len(dataset), dtype=torch.bool)
    is_kept[[each.row for each in skipped]] = False
    numbers = is_kept.nonzero().flatten()
    kept = dataset.select(numbers.tolist())
    refuse(f"the {what}", _emptied(dataset, kept, columns, what, has_classes=has_classes), hint=_MEND)
    first = listed([f"{each.file or f'row {each.row}'}: {each.reason}" for each in skipped], 2)
    logger.warning("%s: left out %d of %d %s that cannot be read: %s", what, len(skipped), len(dataset),
                   columns.modality.plural, first)  # fmt: skip
    return Readable(kept, numbers, tuple(skipped))


def _emptied(dataset: Dataset, kept: Dataset, columns: Columns, what: str, *, has_classes: bool) -> list[str]:
    """Messages about what has lost all of its rows."""
    expected = f"expected one {columns.modality.singular} at least that can be read"
    if not len(kept):
        return [f"none of its {len(dataset)} {columns.modality.plural} can be read, {expected}"]
    if what == "test set":
        return []
    groups = {
        "client": columns.client,
        "class": columns.labels[0] if has_classes and len(columns.labels) == 1 else None,
    }
    problems = []
    for noun, column in groups.items():
        if column is not None and column in dataset.column_names:
            left = set(map(str, values_of(kept, column)))
            lost = sorted(set(map(str, values_of(dataset, column))) - left)
            problems += [f"nothing is left of {noun} {name!r} ({column!r}), {expected}" for name in lost]
    if len(kept) < 2:
        problems.append(f"{len(kept)} row is left, expected 2 or more")
    return problems


def as_csv(skipped: Sequence[Skipped]) -> str:
    """The content of `skipped.csv`: a row for each example that was left out, after a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows((each.set, each.row, each.file, each.reason) for each in skipped)
    return text.getvalue()
