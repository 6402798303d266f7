"""`predictions.csv`: the answer of a model to each example of an evaluated set, beside what is true."""

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
    """Writes what is passed to the function that it gives; the file is there when all of it is.

    Columns are `row` (the number that the data set has for it, from 0), `client` where rows say whose they are, and
    those of the task.

    Args:
        path: a new file.
        data: whose test set is answered.
        task: says what answers are.

    Raises:
        InputError: `path` exists, or cannot be written.
    """
    if path.exists():
        raise InputError(f"{str(path)!r} exists.", hint="give the name of a new file, or remove it.")
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
    """Rows of a CSV file, under a header that the first of them makes."""

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
