"""A column of a data set as modalities read it: values as they are stored, nothing decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK_ROWS = 256


@dataclass(frozen=True)
class StoredColumn:
    """One column of a data set.

    Args:
        dataset: N rows, of this column alone.
        name: of the column.
        origin: names the data set in messages.
        numbers: int64 of shape [N], what messages call the rows.
    """

    dataset: Dataset
    name: str
    origin: str
    numbers: Tensor

    @classmethod
    def of(cls, dataset: Dataset, name: str, *, origin: str, numbers: Tensor | None = None) -> StoredColumn:
        """The column `name` of a data set; without `numbers` its rows are called 0..N-1."""
        numbers = torch.arange(len(dataset)) if numbers is None else numbers
        return cls(dataset.select_columns([name]), name, origin, numbers)

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, rows: Tensor) -> StoredColumn:
        """Those of `rows` (int64, one axis) alone, called as before."""
        return StoredColumn(self.dataset.select(rows.tolist()), self.name, self.origin, self.numbers[rows])

    def chunks(self) -> Iterator[list[Any]]:
        """All values in order, some hundreds at a time; Any: whatever the file holds."""
        # Arrow format hands out the stored bytes; the default one would decode every image or recording a second time.
        for batch in self.dataset.with_format("arrow").iter(batch_size=_CHUNK_ROWS):
            yield batch.column(0).to_pylist()

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
        """The values of `rows` (int64, one axis); Any: whatever the file holds."""
        values: list[Any] = self.dataset.select(rows.tolist()).with_format("arrow")[:].column(0).to_pylist()
        return values
