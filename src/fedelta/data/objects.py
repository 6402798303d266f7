"""Reads data that the caller gives as objects: tensors, dictionaries of tensors, PyTorch and Hugging Face data sets.

Each becomes a `Table`: columns that are fetched by row, ready to be the inputs of a module. Columns without names, as
in a pair (inputs, labels), are called "0", "1" and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, TensorDataset, default_collate

from fedelta.data.clients import Name
from fedelta.errors import DataError, listed

if TYPE_CHECKING:
    import datasets

# Any, in this file: rows of other libraries' data sets hold any type.
Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of rows, as `torch.utils.data.default_collate` and the collators of transformers do."""

LABELS = ("labels", "label", "targets", "target", "y")
_CHUNK_ROWS = 256
_FORMS = (
    "expected tensors (inputs, labels), a dictionary of tensors, a `torch.utils.data.Dataset` or a `datasets.Dataset`"
)


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
    """

    columns: Mapping[str, Tensor]
    names: tuple[str, ...]
    num_rows: int
    rows: Sequence[Any] | None = None
    collate: Collate = default_collate
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.num_rows

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The columns of `rows` (int64, one axis)."""
        if self.rows is None:
            return {name: column[rows] for name, column in self.columns.items()}
        batch = _named(self.collate([self.rows[row] for row in rows.tolist()]))
        return {name: batch[name] for name in self.names}

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
    def label(self) -> str | None:
        """The column of labels by its usual names, or the last one of several without names; None if there is none."""
        if self.is_positional:
            return self.names[-1] if len(self.names) > 1 else None
        return next((name for name in LABELS if name in self.names), None)


@dataclass(frozen=True)
class Reading:
    """How objects become tables.

    Args:
        collate: makes the columns of a batch; None: rows have equal shapes, and stay in memory if they fit.
        max_memory_mib: of rows that are read from a PyTorch data set; more are read at every fetch.
    """

    collate: Collate | None = None
    max_memory_mib: int = 2048

    def table(self, rows: object, what: str) -> Table:
        """The columns of any of the forms.

        Args:
            rows: the data.
            what: their name in messages.

        Raises:
            DataError: they have another form, no rows, columns of different lengths, or rows of different shapes.
        """
        if is_hugging_face(rows) and rows.format["type"] != "custom":
            table = _of_hugging_face(rows, self.collate, what)
        elif isinstance(rows, TensorDataset) and self.collate is None:
            table = _in_memory(dict(enumerate(rows.tensors)), what)
        elif is_hugging_face(rows) or (isinstance(rows, Dataset) and not isinstance(rows, IterableDataset)):
            table = self._of_rows(rows, what)
        elif isinstance(rows, Mapping):
            table = _in_memory(rows, what)
        elif isinstance(rows, tuple | list) and rows and all(map(_is_array, rows)):
            table = _in_memory(dict(enumerate(rows)), what)
        elif _is_array(rows):
            table = _in_memory({0: rows}, what)
        else:
            hint = "give `list(...)` of it to a map-style data set." if isinstance(rows, IterableDataset) else None
            raise DataError(f"{what} are {type(rows).__name__}, {_FORMS}.", hint=hint)
        if not len(table):
            raise DataError(f"{what} have no rows, expected 1 or more.")
        return table

    def _of_rows(self, rows: Any, what: str) -> Table:
        """Rows that a data set makes one by one."""
        _refuse_uncounted(rows, what)
        collate = self.collate or default_collate
        first = _batch(collate, rows, range(min(2, len(rows))), what)
        names = tuple(first)
        num_bytes = sum(column.nbytes for column in first.values()) / min(2, len(rows)) * len(rows)
        if self.collate is not None or num_bytes > self.max_memory_mib * 2**20:
            return Table({}, names, len(rows), rows, collate)
        chunks = [range(start, min(start + _CHUNK_ROWS, len(rows))) for start in range(0, len(rows), _CHUNK_ROWS)]
        batches = [_batch(collate, rows, chunk, what) for chunk in chunks]
        return _in_memory({name: torch.cat([batch[name] for batch in batches]) for name in names}, what)


@dataclass(frozen=True)
class TableInputs:
    """Some columns of a table as the inputs of a module.

    Args:
        table: has the columns.
        columns: name of an input to its column.
    """

    table: Table
    columns: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.table)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of `rows` (int64, one axis); of NumPy's usual float64, in PyTorch's usual float32."""
        batch = self.table.fetch(rows)
        inputs = {name: batch[column] for name, column in self.columns.items()}
        return {name: value.float() if value.dtype == torch.float64 else value for name, value in inputs.items()}


def stacked(rows: Sequence[Any], what: str) -> Table:
    """Single rows as one table.

    Raises:
        DataError: they are no tensors, or have different shapes.
    """
    return _in_memory(_batch(default_collate, rows, range(len(rows)), what), what)


def joined(tables: Sequence[Table], whose: Sequence[str]) -> Table:
    """The rows of all tables, one after the other.

    Args:
        tables: with the same columns.
        whose: the name of each in messages.

    Raises:
        DataError: their columns differ.
    """
    refuse_other_columns(tables, whose)
    first = tables[0]
    num_rows = sum(map(len, tables))
    if any(table.rows is not None for table in tables):
        rows: Any = ConcatDataset([_rows_of(table) for table in tables])
        return Table({}, first.names, num_rows, rows, first.collate, first.class_names)
    try:
        columns = {name: torch.cat([table.columns[name] for table in tables]) for name in first.names}
    except RuntimeError as error:
        raise DataError(f"rows of {listed(whose, 2)} have different shapes: {error}") from error
    return Table(columns, first.names, num_rows, class_names=first.class_names)


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


def is_hugging_face(rows: object) -> TypeGuard[datasets.Dataset]:
    """Whether `rows` are a Hugging Face data set with random access; does not import their library."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(rows, library.Dataset)


def by_client(clients: object) -> Mapping[str | int, object] | None:
    """Clients by their names; None if `clients` are one data set."""
    if not isinstance(clients, Mapping) or (clients and all(map(_is_array, clients.values()))):
        return None
    return clients


def in_order(clients: Mapping[Any, object]) -> list[Name]:
    """The names of clients in ascending order, as those in a column of a data set; Any: any key."""
    if wrong := [name for name in clients if not isinstance(name, str | int)]:
        raise DataError(f"clients have the names {wrong[:3]}, expected texts or whole numbers.")
    is_mixed = len({type(name) for name in clients}) > 1
    return sorted(clients, key=str if is_mixed else None)


def _refuse_uncounted(rows: Any, what: str) -> None:
    try:
        len(rows)
    except (TypeError, NotImplementedError) as error:
        raise DataError(f"{what} have no length.", hint="give a map-style data set, such as a list of rows.") from error


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _in_memory(columns: Mapping[Any, object], what: str) -> Table:
    """Tensors and arrays by name or place, rows first."""
    others = {str(name): type(column).__name__ for name, column in columns.items() if not _is_array(column)}
    if others or not columns:
        raise DataError(f"{what} hold {others or 'nothing'}, expected tensors.", hint=_FORMS)
    tensors = {str(name): torch.as_tensor(column) for name, column in columns.items()}
    lengths = {name: len(tensor) if tensor.dim() else 0 for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{what} have columns of different lengths: {lengths}.", hint="the first axis is that of rows.")
    return Table(tensors, tuple(tensors), next(iter(lengths.values())))


def _of_hugging_face(rows: datasets.Dataset, collate: Collate | None, what: str) -> Table:
    """The numeric columns; class labels keep their names."""
    from datasets import ClassLabel

    labels = [feature for name, feature in rows.features.items() if isinstance(feature, ClassLabel) and name in LABELS]
    class_names = tuple(labels[0].names) if labels else ()
    if collate is not None:
        names = tuple(_batch(collate, rows, range(min(2, len(rows))), what))
        return Table({}, names, len(rows), rows, collate, class_names)
    columns = rows.with_format("torch")[:]
    ragged = [name for name, column in columns.items() if isinstance(column, list) and _are_tensors(column)]
    if ragged:
        raise DataError(
            f"{what}: rows of column {listed(ragged)} have different shapes.",
            hint="give `collate=`, such as `transformers.DataCollatorWithPadding(tokenizer)`.",
        )
    table = _in_memory({name: column for name, column in columns.items() if isinstance(column, Tensor)}, what)
    return Table(table.columns, table.names, len(table), class_names=class_names)


def _are_tensors(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(value, Tensor) for value in values)


def _batch(collate: Collate, rows: Any, chunk: range, what: str) -> dict[str, Tensor]:
    try:
        batch = _named(collate([rows[row] for row in chunk]))
    except DataError:
        raise
    # A data set and its collator are the caller's code, and may raise anything.
    except Exception as error:
        raise DataError(
            f"{what}: rows {chunk.start} to {chunk.stop - 1} make no batch: {type(error).__name__}: {error}",
            hint="rows of different shapes need `collate=`, which makes a batch of a list of rows.",
        ) from error
    others = {name: type(value).__name__ for name, value in batch.items() if not isinstance(value, Tensor)}
    if others or not batch:
        raise DataError(f"{what} hold {others or 'nothing'} in a batch, expected tensors.", hint=_FORMS)
    return batch


def _named(batch: Any) -> dict[str, Tensor]:
    """A batch by column; columns without names are numbered."""
    if isinstance(batch, Mapping):
        return {str(name): value for name, value in batch.items()}
    return {str(place): value for place, value in enumerate(batch if isinstance(batch, tuple | list) else [batch])}
