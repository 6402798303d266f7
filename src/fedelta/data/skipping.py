"""Leaves out examples that cannot be read, as `data.on_error = "skip"` asks for: files, texts, rows of tables.

This happens before anything is drawn from the rows, so a run is, bit for bit, that of the data without them.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedelta.data.columns import Columns, unequal_rows
from fedelta.data.loading import quiet_datasets
from fedelta.data.stored import StoredColumn
from fedelta.data.values import values_of
from fedelta.errors import listed, refuse
from fedelta.modalities.base import ExampleError
from fedelta.modalities.damage import CHECKS, check_dialogue
from fedelta.modalities.settings import Preparation
from fedelta.modalities.stores import rows_of
from fedelta.tasks.base import Task, reads_dialogues

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("fedelta")
_HEADER = ("set", "row", "file", "reason")
RENUMBERED = "rows are counted from 0, without those that were left out"
_MEND = "repair or replace these files or rows, or take out what has no others"


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


@dataclass(frozen=True)
class Screening:
    """How it is found out what can be read.

    Args:
        preparation: how much of a recording is used.
        task: what is predicted.
        columns: in use.
    """

    preparation: Preparation
    task: Task
    columns: Columns

    def rows_in(self, dataset: Dataset, what: str, broken: Mapping[int, str]) -> Readable:
        """The rows whose example can be decoded and that have a label and a client; logs one line about the others.

        Args:
            dataset: N rows.
            what: "training set" or "test set".
            broken: rows whose line of the file was broken, with the reasons.

        Raises:
            DataError: nothing is left of the set or, in the training set, of a client or class.
        """
        columns = self.columns
        if columns.input not in dataset.column_names:  # refused later
            return Readable(dataset, torch.arange(len(dataset)))
        reasons, files = self._problems(dataset, what, broken)
        if not reasons:
            return Readable(dataset, torch.arange(len(dataset)))
        skipped = [Skipped(what, row, files.get(row, ""), reasons[row]) for row in sorted(reasons)]
        numbers = torch.tensor([row for row in range(len(dataset)) if row not in reasons], dtype=torch.int64)
        kept = _in_whole_numbers(dataset.select(numbers.tolist()), self._labels(dataset))
        has_classes = self.task.has_classes
        refuse(f"the {what}", _emptied(dataset, kept, columns, what, has_classes=has_classes), hint=_MEND)
        first = listed([f"{each.file or f'row {each.row}'}: {each.reason}" for each in skipped], 2)
        logger.warning("%s: left out %d of %d %s that cannot be read: %s", what, len(skipped), len(dataset),
                       columns.modality.plural, first)  # fmt: skip
        return Readable(kept, numbers, tuple(skipped))

    def _problems(
        self, dataset: Dataset, what: str, broken: Mapping[int, str]
    ) -> tuple[dict[int, str], dict[int, str]]:
        """Row to what is wrong with it, and row to its file; decodes all."""
        reasons, files = dict(broken), {}
        column = StoredColumn.of(dataset, self.columns.input, origin=what)
        check = check_dialogue if reads_dialogues(self.task) else CHECKS[self.columns.modality.name]
        for row, value in rows_of(column):
            if row in broken:
                continue
            try:
                check(value, self.preparation)
            except ExampleError as error:
                reasons[row] = str(error)
                files[row] = (value.get("path") if isinstance(value, dict) else None) or ""
        owner = [] if self.columns.client is None else [self.columns.client]
        nouns = {**dict.fromkeys(self._labels(dataset), "label"), **dict.fromkeys(owner, "client")}
        for name, noun in nouns.items():
            for row in _without_value(dataset, name):
                reasons.setdefault(row, f"it has no {noun} in column {name!r}")
        for row in unequal_rows(dataset, self.columns):
            reasons.setdefault(row, "it has another number of words than of tags")
        return reasons, files

    def _labels(self, dataset: Dataset) -> list[str]:
        columns = self.columns
        return [name for name in columns.labels if name in dataset.column_names and name != columns.input]


def screened(
    train: Dataset,
    test: Dataset | None,
    screening: Screening | None,
    broken: tuple[Mapping[int, str], Mapping[int, str]] = ({}, {}),
) -> tuple[Readable, Readable | None]:
    """The rows of both sets that can be read.

    Args:
        train: training set.
        test: test set, if there is one.
        screening: None: nothing is left out, and nothing decoded.
        broken: of both sets, rows whose line of the file was broken, with the reasons.

    Raises:
        DataError: as for `Screening.rows_in`.
    """

    def rows_in(dataset: Dataset, what: str, lines: Mapping[int, str]) -> Readable:
        if screening is None:
            return Readable(dataset, torch.arange(len(dataset)))
        return screening.rows_in(dataset, what, lines)

    of_test = None if test is None else rows_in(test, "test set", broken[1])
    return rows_in(train, "training set", broken[0]), of_test


def _without_value(dataset: Dataset, column: str) -> list[int]:
    """The rows that have nothing in a column, or something that is not finite."""
    from datasets import ClassLabel

    if column not in dataset.column_names:
        return []
    is_label = isinstance(dataset.features[column], ClassLabel)
    values = values_of(dataset, column)
    return [
        row
        for row, value in enumerate(values)
        if _is_missing(value) or (is_label and isinstance(value, int) and value < 0)
    ]


def _is_missing(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_is_missing, value))
    return value is None or (isinstance(value, str) and not value.strip()) or is_not_finite(value)


def is_not_finite(value: object) -> bool:
    """Whether a value is a float that is NaN or infinite."""
    return isinstance(value, float) and not math.isfinite(value)


def _in_whole_numbers(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """The data set with whole numbers where a missing value made floats of them, as pandas does."""
    from datasets import Value

    for name in columns:
        if dataset.features[name] == Value("float64"):
            values = values_of(dataset, name)
            if values and all(isinstance(value, float) and value.is_integer() for value in values):
                with quiet_datasets():
                    dataset = dataset.cast_column(name, Value("int64"))
    return dataset


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
            before = {
                _known(value)
                for value in values_of(dataset, column)
                if not (_is_missing(value) or isinstance(value, list))  # of several labels or tags one may be lost
            }
            lost = sorted(before - {_known(value) for value in values_of(kept, column)})
            problems += [f"nothing is left of {noun} {name!r} ({column!r}), {expected}" for name in lost]
    if len(kept) < 2:
        problems.append(f"{len(kept)} row is left, expected 2 or more")
    return problems


def _known(value: object) -> str:
    """The name of a client or class in messages."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_csv(skipped: Sequence[Skipped]) -> str:
    """The content of `skipped.csv`: a row for each example that was left out, after a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows((each.set, each.row, each.file, each.reason) for each in skipped)
    return text.getvalue()
