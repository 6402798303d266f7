"""A look at data without reading all of them, for `fedelta check`: some examples now, others when they are fetched."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedelta.data.stored import StoredColumn
from fedelta.errors import refuse
from fedelta.modalities.base import Modality
from fedelta.modalities.stores import spread

logger = logging.getLogger("fedelta")

NUM_READ = 32  # half a second of photographs; a folder of another kind, or an odd column, is seen in the first of them


@dataclass(frozen=True)
class Glance:
    """The examples of a column, each read whenever it is fetched.

    Args:
        column: N rows.
        modality: makes inputs of them.
        max_memory_mib: see `Modality.store`.
    """

    column: StoredColumn
    modality: Modality
    max_memory_mib: int

    @classmethod
    def of(cls, column: StoredColumn, modality: Modality, max_memory_mib: int) -> Glance:
        """The same, once `NUM_READ` rows were read and the files of all others were found.

        Raises:
            DataError: rows without an example, or one that cannot be read.
        """
        _refuse_absent(column)
        glance = cls(column, modality, max_memory_mib)
        glance._read(spread(len(column), NUM_READ))
        return glance

    def __len__(self) -> int:
        return len(self.column)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Inputs of `rows` (int64, one axis); warnings about the data were given by the first look.

        Raises:
            DataError: one of them cannot be read.
        """
        logger.addFilter(_is_no_warning)
        try:
            return self._read(rows)
        finally:
            logger.removeFilter(_is_no_warning)

    def _read(self, rows: Tensor) -> dict[str, Tensor]:
        return self.modality.store(self.column.select(rows), self.max_memory_mib).fetch(torch.arange(len(rows)))


def _is_no_warning(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING


def _refuse_absent(column: StoredColumn) -> None:
    """Raises where rows are empty, or name files that are not there or hold nothing; opens none."""
    problems = []
    row = 0
    for values in column.files():
        for value in values:
            if (problem := _absent(value)) is not None:
                problems.append(f"row {int(column.numbers[row])}: {problem}")
            row += 1
    refuse(column.origin, problems, hint="rows are counted from 0")


def _absent(value: Any) -> str | None:
    """What is seen to be wrong with a value from outside; Any: whatever the file holds."""
    if value is None:
        return "nothing is there"
    if not isinstance(value, dict) or value.get("bytes") or not isinstance(path := value.get("path"), str):
        return None
    try:
        return None if Path(path).stat().st_size else f"{path!r} is an empty file"
    except OSError as error:
        return f"{path!r}: {error.strerror}"


@dataclass(frozen=True)
class Shown:
    """A row as people see it.

    Args:
        example: name of its file, or the beginning of a text.
        target: what is to be predicted.
        row: its place among the training rows.
    """

    example: str
    target: str
    row: int


def shown(column: StoredColumn, targets: Sequence[object], rows: Tensor) -> tuple[Shown, ...]:
    """How these rows are shown; `targets` has one value for each of them."""
    values = zip(column.take(rows), targets, rows.tolist(), strict=True)
    return tuple(Shown(_example(value), repr(target), row) for value, target, row in values)


def _example(value: Any) -> str:
    """A value in a few words; Any: whatever the file holds."""
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        return repr("/".join(Path(path).parts[-3:])) if path else f"{len(content or b''):,} bytes"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list):
        return f"an array of {len(value)} rows"
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def bounded(names: Sequence[str], limit: int) -> str:
    """The first of some words, and how many more there are.

    >>> bounded(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
