"""A column of a data set for modalities to read: values in stored form, not decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedelta.data.values import parsed

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK_ROWS = 256


@dataclass(frozen=True)
class StoredColumn:
    """One column of a data set.

    Args:
        dataset: N rows, with this column alone.
        name: of the column.
        origin: name of the data set in messages.
        numbers: int64 of shape [N], row numbers for messages.
    """

    dataset: Dataset
    name: str
    origin: str
    numbers: Tensor

    @classmethod
    def of(cls, dataset: Dataset, name: str, *, origin: str, numbers: Tensor | None = None) -> StoredColumn:
        """The column `name` of a data set; by default its rows are numbered 0..N-1."""
        numbers = torch.arange(len(dataset)) if numbers is None else numbers
        return cls(dataset.select_columns([name]), name, origin, numbers)

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, rows: Tensor) -> StoredColumn:
        """The values of `rows` (int64, one axis) alone, with the same row numbers."""
        return StoredColumn(self.dataset.select(rows.tolist()), self.name, self.origin, self.numbers[rows])

    def chunks(self) -> Iterator[list[Any]]:
        """All values in order, some hundreds at a time; Any: any type that a file can hold."""
        # Arrow format returns the stored bytes; the default format would decode every image or recording.
        for batch in self.dataset.with_format("arrow").iter(batch_size=_CHUNK_ROWS):
            # Rows that were selected come as one piece each; converted together, arrays take half the time.
            yield parsed(batch.column(0).combine_chunks().to_pylist(), self.dataset.features[self.name])

    def files(self) -> Iterator[list[Any]]:
        """As `chunks`, for what may be a file; of arrays, numbers and texts: True, or None where there is none."""
        from pyarrow.types import is_struct

        for batch in self.dataset.with_format("arrow").iter(batch_size=_CHUNK_ROWS):
            values = batch.column(0)
            yield (
                values.to_pylist()
                if is_struct(values.type)
                else [there or None for there in values.is_valid().to_pylist()]
            )

    def take(self, rows: Tensor) -> list[Any]:
        """The values of `rows` (int64, one axis); Any: any type that a file can hold."""
        values = self.dataset.select(rows.tolist()).with_format("arrow")[:].column(0).to_pylist()
        return parsed(values, self.dataset.features[self.name])
