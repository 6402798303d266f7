"""Tables of data that were given as objects: columns that are fetched by row, ready to be the inputs of a module.

Columns without names, as in a pair (inputs, labels), are called "0", "1" and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, default_collate

from fedelta.errors import DataError, listed

# Any, in this file: rows of other libraries' data sets hold any type.
Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of rows, as `torch.utils.data.default_collate` and the collators of transformers do."""
Texts = np.ndarray[Any, Any]
"""A column of texts."""

LABELS = ("labels", "label", "targets", "target", "y")
_CHUNK_ROWS = 256
_FEATURES = "features"  # the columns of a frame, side by side


@dataclass(frozen=True)
class Table:
    """Columns of N rows, in memory or read at every fetch.

    Args:
        columns: in memory, rows first.
        rows: read at every fetch; None if all columns are in memory.
        collate: makes the columns of a batch of `rows`.
        names: of the columns, in order.
        num_rows: N.
        class_names: of the labels, if the data name them.
        texts: columns of texts, in memory; not among the inputs of a module.
        is_frame: whether its columns are those of a pandas frame.
        parts: of rows that were joined, whose they are and how many.
    """

    columns: Mapping[str, Tensor]
    names: tuple[str, ...]
    num_rows: int
    rows: Sequence[Any] | None = None
    collate: Collate = default_collate
    class_names: tuple[str, ...] = ()
    texts: Mapping[str, Texts] = field(default_factory=dict)
    is_frame: bool = False
    parts: tuple[tuple[str, int], ...] = ()

    def __repr__(self) -> str:
        return f"Table({self.num_rows:,} rows of {listed(self.names)})"

    def __len__(self) -> int:
        return self.num_rows

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The columns of `rows` (int64, one axis)."""
        if self.rows is None:
            return {name: column[rows] for name, column in self.columns.items()}
        try:
            batch = by_name(self.collate([self.rows[row] for row in rows.tolist()]))
            return {name: batch[name] for name in self.names}
        # A data set and its collator are the caller's code, and may raise anything.
        except Exception as error:
            numbers = listed([str(row) for row in rows.tolist()], 3)
            raise DataError(f"rows {numbers} make no batch: {type(error).__name__}: {error}") from error

    def column(self, name: str) -> Tensor:
        """One column of all rows."""
        if self.rows is None:
            return self.columns[name]
        return torch.cat([self.fetch(rows)[name] for rows in torch.arange(len(self)).split(_CHUNK_ROWS)])

    @property
    def is_positional(self) -> bool:
        """Whether its columns have no names."""
        return self.names == tuple(map(str, range(len(self.names))))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns of numbers."""
        return tuple(name for name in self.names if name not in self.texts)

    @property
    def label(self) -> str | None:
        """The column of labels by its usual names, or the last one of several without names; None if there is none."""
        if self.is_positional:
            return self.names[-1] if len(self.names) > 1 else None
        return next((name for name in LABELS if name in self.names), None)


@dataclass(frozen=True)
class TableInputs:
    """Some columns of a table as the inputs of a module.

    Args:
        table: has the columns.
        columns: name of an input to its column.
        checks: whether values that are not finite are refused when they are fetched.
    """

    table: Table
    columns: Mapping[str, str]
    checks: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of `rows` (int64, one axis); of NumPy's usual float64, in PyTorch's usual float32."""
        batch = self.table.fetch(rows)
        inputs = {name: batch[column] for name, column in self.columns.items()}
        if self.checks:
            for name, column in self.columns.items():
                _refuse_not_finite(self.table, column, inputs[name], rows)
        return {name: value.float() if value.dtype == torch.float64 else value for name, value in inputs.items()}


def checked(table: Table, columns: Mapping[str, str]) -> TableInputs:
    """Some columns of a table as the inputs of a module, all of whose numbers are finite.

    Columns in memory are checked here, others whenever rows of them are fetched.

    Raises:
        DataError: names the row, and whose it is.
    """
    for name in columns.values() if table.rows is None else ():
        for rows in torch.arange(len(table)).split(_CHUNK_ROWS):
            _refuse_not_finite(table, name, table.columns[name][rows], rows)
    return TableInputs(table, columns, checks=table.rows is not None)


def _refuse_not_finite(table: Table, name: str, values: Any, rows: Tensor) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        return
    wrong = ~values.isfinite().flatten(1).all(1) if values.dim() > 1 else ~values.isfinite()
    if len(wrong) != len(rows) or not wrong.any():
        return
    place, row = "the data", int(rows[wrong.cpu()][0])
    for whose, num_rows in table.parts:
        place = whose
        if row < num_rows:
            break
        row -= num_rows
    raise DataError(
        f"{place}: row {row} (from 0) holds NaN or infinity in column {name!r}, expected finite numbers.",
        hint="fill in what is missing, or leave the row out.",
    )


def joined(tables: Sequence[Table], whose: Sequence[str]) -> Table:
    """The rows of all tables, one after the other.

    Args:
        tables: with the same columns.
        whose: the name of each in messages.

    Raises:
        DataError: their columns differ.
    """
    refuse_other_columns(tables, whose)
    parts = tuple((what, len(table)) for what, table in zip(whose, tables, strict=True))
    first = replace(tables[0], parts=parts)
    num_rows = sum(map(len, tables))
    if any(table.rows is not None for table in tables):
        rows: Any = ConcatDataset([_rows_of(table) for table in tables])
        return Table({}, first.names, num_rows, rows, first.collate, first.class_names, parts=parts)
    try:
        columns = {name: torch.cat([table.columns[name] for table in tables]) for name in first.columns}
    except RuntimeError as error:
        raise DataError(f"rows of {listed(whose, 2)} have different shapes: {error}") from error
    texts = {name: np.concatenate([table.texts[name] for table in tables]) for name in first.texts}
    return replace(first, columns=columns, texts=texts, num_rows=num_rows)


def _rows_of(table: Table) -> Any:
    """The rows one by one: of a table in memory as dictionaries."""
    if table.rows is not None:
        return table.rows
    return [{name: column[row] for name, column in table.columns.items()} for row in range(len(table))]


def refuse_other_columns(tables: Sequence[Table], whose: Sequence[str]) -> None:
    """Raises if a table has other columns than the first one; arguments as for `joined`."""
    first = tables[0]
    for table, what in zip(tables, whose, strict=True):
        if table.names != first.names:
            raise DataError(
                f"{what} have the columns {listed(table.names)}, expected those of {whose[0]}: {listed(first.names)}."
            )
        if other := sorted(table.texts.keys() ^ first.texts.keys()):
            raise DataError(f"column {listed(other)} holds texts in {what} or in {whose[0]}, but not in both.")


def in_numbers(
    tables: Sequence[Table], label: str | None, class_names: Sequence[str]
) -> tuple[list[Table], tuple[str, ...]]:
    """Tables whose labels are numbers, and the names of the classes, if labels were texts.

    Args:
        tables: with the same columns.
        label: the column of labels.
        class_names: in label order; by default in the order of the alphabet.

    Raises:
        DataError: a label is none of `class_names`.
    """
    if label is None or label not in tables[0].texts:
        return list(tables), ()
    names = tuple(class_names) or tuple(sorted({str(text) for table in tables for text in table.texts[label]}))
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted({str(text) for table in tables for text in table.texts[label]} - numbers.keys()):
        raise DataError(f"labels {listed(unknown)} are none of the classes {listed(names)}.")
    made = []
    for table in tables:
        codes = torch.tensor([numbers[str(text)] for text in table.texts[label]])
        texts = {name: column for name, column in table.texts.items() if name != label}
        made.append(replace(table, columns={**table.columns, label: codes}, texts=texts))
    return made, names


def side_by_side(table: Table, *, beside: Sequence[str | None]) -> Table:
    """A frame's columns as one, [rows, columns] in float32, `beside` some that stay as they are.

    Raises:
        DataError: one of them holds texts, or numbers that are not finite.
    """
    names = [name for name in table.names if name not in beside]
    if texts := [name for name in names if name in table.texts]:
        raise DataError(
            f"column {listed(texts)} holds texts, and a module takes numbers.",
            hint="leave it out, or turn it into numbers, for example with `pandas.get_dummies`.",
        )
    if not names:
        return table
    checked(table, {name: name for name in names})  # while they have names
    others = {name: table.columns[name] for name in table.columns if name not in names}
    columns = {_FEATURES: torch.stack([table.columns[name].float() for name in names], 1), **others}
    return replace(table, columns=columns, names=(_FEATURES, *(name for name in table.names if name in beside)))


def by_name(batch: Any) -> dict[str, Any]:
    """A batch by column; columns without names are numbered."""
    if isinstance(batch, Mapping):
        return {str(name): value for name, value in batch.items()}
    return {str(place): value for place, value in enumerate(batch if isinstance(batch, tuple | list) else [batch])}
