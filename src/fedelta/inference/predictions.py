"""`predictions.csv`: the true and the predicted value of each example of an evaluated set."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fedelta.data.batches import FederatedData
from fedelta.errors import InputError
from fedelta.record.neutral import cell
from fedelta.tasks.base import Task
from fedelta.tasks.details import Answered


@contextmanager
def table_of(path: Path, data: FederatedData, task: Task) -> Iterator[Callable[[Answered], None]]:
    """Context manager that gives a function to write batches with; the file appears when it is complete.

    Columns are `row` (its number in the data set, from 0), `client` if the clients of rows are known, and those of the
    task.

    Args:
        path: a new file.
        data: has the test set.
        task: gives the columns.

    Raises:
        InputError: `path` exists, or cannot be written.
    """
    if path.exists():
        raise InputError(f"{str(path)!r} already exists.", hint="use another name, or remove the file.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield _Table(file, data, task)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


class _Table:
    """Writes rows of a CSV file; the first row determines the header."""

    def __init__(self, file: TextIO, data: FederatedData, task: Task) -> None:
        self._lines = csv.writer(file)
        self._data, self._task = data, task
        self._has_header = False

    def __call__(self, batch: Answered) -> None:
        """Writes the answers of a batch."""
        records = self._task.records(batch.outputs, batch.targets, self._data.class_names)
        for row, record in zip(batch.rows.tolist(), records, strict=True):
            cells = self._origin(row) | record
            if not self._has_header:
                self._lines.writerow(map(cell, cells))
                self._has_header = True
            self._lines.writerow(map(cell, cells.values()))

    def _origin(self, row: int) -> dict[str, str | float]:
        test = self._data.test
        origin: dict[str, str | float] = {"row": row if test.numbers is None else int(test.numbers[row])}
        if test.clients is not None:
            client = int(test.clients[row])
            origin["client"] = "" if client < 0 else str(self._data.clients.names.get(client, client))
        return origin
