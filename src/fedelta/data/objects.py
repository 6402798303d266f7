"""Reads data that the caller gives as objects: tensors, arrays, frames, rows, PyTorch and Hugging Face data sets.

Each becomes a `Table`: columns that are fetched by row, ready to be the inputs of a module. Columns without names, as
in a pair (inputs, labels), are called "0", "1" and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from fedelta.data.clients import Name
from fedelta.data.forms import are_rows, columns_of, is_column, is_frame, is_hugging_face
from fedelta.data.given import LABELS, Collate, Table, Texts, by_name
from fedelta.errors import DataError, kind_of, listed

if TYPE_CHECKING:
    import datasets

# Any, in this file: rows of other libraries' data sets hold any type.
_SPLITS = frozenset({"train", "test", "validation", "valid", "val", "dev", "eval", "unsupervised"})
_CHUNK_ROWS = 256
_COLLATE = "rows of different shapes need `collate=`, which makes a batch of a list of rows."
_IMAGES = "images need `collate=`, which makes tensors of a list of rows, or a model with an image processor."
_FORMS = (
    "expected tensors (inputs, labels), a dictionary of tensors, a pandas frame, a list of rows, a "
    "`torch.utils.data.Dataset` or a `datasets.Dataset`"
)


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
        if is_frame(rows):
            table = replace(_in_memory(columns_of(rows), what), is_frame=True)
        elif is_hugging_face(rows) and rows.format["type"] != "custom":
            table = _of_hugging_face(rows, self.collate, what)
        elif isinstance(rows, TensorDataset) and self.collate is None:
            table = _in_memory(dict(enumerate(rows.tensors)), what)
        elif is_hugging_face(rows) or (isinstance(rows, Dataset) and not isinstance(rows, IterableDataset)):
            table = self._of_rows(rows, what)
        elif isinstance(columns := columns_of(rows), Mapping):
            table = _in_memory(columns, what)
        elif isinstance(columns, tuple | list) and columns and all(map(_is_array, columns)):
            table = _in_memory(dict(enumerate(columns)), what)
        elif _is_array(rows):
            table = _in_memory({0: rows}, what)
        elif are_rows(rows):
            table = self._of_rows(rows, what)
        else:
            raise DataError(f"{what} are {kind_of(rows)}, {_FORMS}.", hint=_hint(rows))
        if not len(table):
            raise DataError(f"{what} have no rows, expected 1 or more.")
        return replace(table, parts=((what, len(table)),))

    def _of_rows(self, rows: Any, what: str) -> Table:
        """Rows that a data set makes one by one."""
        _refuse_uncounted(rows, what)
        collate = self.collate or default_collate
        first = _batch(collate, rows, range(min(2, len(rows))), what)
        names = tuple(first)
        num_bytes = sum(column.nbytes for column in first.values()) / min(2, len(rows)) * len(rows)
        if self.collate is not None or num_bytes > self.max_memory_mib * 2**20:
            _refuse_texts(first, what)
            return Table({}, names, len(rows), rows, collate)
        chunks = [range(start, min(start + _CHUNK_ROWS, len(rows))) for start in range(0, len(rows), _CHUNK_ROWS)]
        batches = [_batch(collate, rows, chunk, what) for chunk in chunks]
        if other := next((batch for batch in batches if tuple(batch) != names), None):
            raise DataError(f"{what} have rows of {listed(names)} and rows of {listed(tuple(other))}.")
        try:
            return _in_memory({name: _joined([batch[name] for batch in batches]) for name in names}, what)
        except (RuntimeError, TypeError) as error:
            raise DataError(f"{what} have rows of different shapes: {error}", hint=_COLLATE) from error


def stacked(rows: Sequence[Any], what: str, *, hint: str = _COLLATE) -> Table:
    """Single rows as one table.

    Raises:
        DataError: they are no tensors, or have different shapes.
    """
    batch = _batch(default_collate, rows, range(len(rows)), what, hint)
    _refuse_texts(batch, what, hint)
    return _in_memory(batch, what)


def by_client(clients: object) -> Mapping[str | int, object] | None:
    """Clients by their names; None if `clients` are one data set.

    Raises:
        DataError: they are parts of another kind.
    """
    if isinstance(clients, Mapping):
        are_columns = bool(clients) and all(map(is_column, clients.values()))
        is_one = are_columns and (any(map(_is_array, clients.values())) or bool(clients.keys() & set(LABELS)))
        splits = _SPLITS & {name for name in clients if isinstance(name, str)}
        if "train" in splits and len(splits) == len(clients) > 1:
            raise DataError(
                f"`clients` are the splits {listed(sorted(splits))} of one data set, expected client name to data.",
                hint='give `["train"]` of it with `partition=`, and another split as `test`.',
            )
        return None if is_one else clients
    if isinstance(clients, list) and clients and all(map(_is_data_set, clients)):
        raise DataError(
            f"`clients` is a list of {len(clients)} data sets, expected client name to data.",
            hint="`dict(enumerate(...))` numbers them.",
        )
    return None


def in_order(clients: Mapping[Any, object]) -> list[Name]:
    """The names of clients in ascending order, as those in a column of a data set; Any: any key."""
    plain = [int(name) if isinstance(name, np.integer) else name for name in clients]
    if wrong := [name for name in plain if not isinstance(name, str | int)]:
        raise DataError(f"clients have the names {wrong[:3]}, expected texts or whole numbers.")
    is_mixed = len({type(name) for name in plain}) > 1
    return sorted(plain, key=str if is_mixed else None)


def _refuse_uncounted(rows: Any, what: str) -> None:
    try:
        len(rows)
    except (TypeError, NotImplementedError) as error:
        raise DataError(f"{what} have no length.", hint="give a map-style data set, such as a list of rows.") from error


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _hint(rows: object) -> str | None:
    """What to give instead of an unknown form."""
    if isinstance(rows, type):
        return f"make an object of it: `{rows.__name__}(...)`."
    if isinstance(rows, DataLoader):
        return "give its data set: `loader.dataset`; the batch size is `client.batch_size`."
    if isinstance(rows, IterableDataset) or callable(getattr(rows, "__iter__", None)):
        return "give `list(...)` of its rows, if it is one that yields rows."
    return None


def _is_data_set(value: Any) -> bool:
    """Whether an item of a list is a data set by itself, rather than a row."""
    if isinstance(value, Dataset) or is_hugging_face(value) or is_frame(value):
        return True
    has_rows = isinstance(value, tuple | list) and len(value) > 1 and all(map(_is_array, value))
    return has_rows and all(column.ndim and len(column) > 1 for column in value) and len(set(map(len, value))) == 1


def _in_memory(columns: Any, what: str) -> Table:
    """Tensors and arrays by name or place, rows first."""
    others = {str(name): type(column).__name__ for name, column in columns.items() if not _is_array(column)}
    if others or not columns:
        raise DataError(f"{what} hold {others or 'nothing'}, expected tensors.", hint=_FORMS)
    texts = {str(name): column for name, column in columns.items() if _has_texts(column)}
    tensors = {
        str(name): _tensor(column, str(name), what) for name, column in columns.items() if str(name) not in texts
    }
    lengths = {name: len(column) if column.ndim else 0 for name, column in (tensors | texts).items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{what} have columns of different lengths: {lengths}.", hint="the first axis is that of rows.")
    return Table(tensors, tuple(map(str, columns)), next(iter(lengths.values())), texts=texts)


def _has_texts(column: Any) -> bool:
    if not isinstance(column, np.ndarray) or column.ndim != 1:
        return False
    return column.dtype.kind in "UT" or (column.dtype == object and all(isinstance(value, str) for value in column))


def _tensor(column: Any, name: str, what: str) -> Tensor:
    if isinstance(column, Tensor):
        return column.detach()
    try:
        return torch.as_tensor(column if column.flags.writeable else column.copy())
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what} hold {column.dtype} in column {name!r}, expected numbers: {error}".rstrip("."),
            hint="fill in missing values, and leave out or convert others.",
        ) from error


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
    usable = {name: column if isinstance(column, Tensor) else _texts(column) for name, column in columns.items()}
    table = _in_memory({name: column for name, column in usable.items() if column is not None}, what)
    return replace(table, class_names=class_names)


def _texts(column: object) -> Texts | None:
    if isinstance(column, Sequence) and column and all(isinstance(value, str) for value in column):
        return np.asarray(column)
    return None


def _are_tensors(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(value, Tensor) for value in values)


def _batch(collate: Collate, rows: Any, chunk: range, what: str, hint: str | None = None) -> dict[str, Tensor | Texts]:
    try:
        batch = by_name(collate([rows[row] for row in chunk]))
    except DataError:
        raise
    # A data set and its collator are the caller's code, and may raise anything.
    except Exception as error:
        raise DataError(
            f"{what}: rows {chunk.start} to {chunk.stop - 1} make no batch: {type(error).__name__}: {error}",
            hint=hint or (_IMAGES if "PIL." in str(error) else _COLLATE),
        ) from error
    columns = {name: value if isinstance(value, Tensor) else _texts(value) for name, value in batch.items()}
    others = {name: type(batch[name]).__name__ for name, column in columns.items() if column is None}
    if others or not batch:
        raise DataError(f"{what} hold {others or 'nothing'} in a batch, expected tensors.", hint=_FORMS)
    return {name: column for name, column in columns.items() if column is not None}


def _joined(parts: Sequence[Tensor | Texts]) -> Tensor | Texts:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(parts) else np.concatenate(parts)


def _refuse_texts(batch: Mapping[str, Tensor | Texts], what: str, hint: str = "give numbers.") -> None:
    if texts := [name for name, column in batch.items() if not isinstance(column, Tensor)]:
        raise DataError(f"{what} hold texts in column {listed(texts)}, expected tensors.", hint=hint)
