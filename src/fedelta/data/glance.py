"""Lazy access to data for `fedelta check`: reads a few examples at once, others only when they are fetched."""

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
from fedelta.modalities.stores import LEAVE_OUT, REPLACE, evenly_spaced
from fedelta.modalities.turns import content_of

logger = logging.getLogger("fedelta")

NUM_READ = 32  # takes half a second for photographs, and is enough to notice a wrong folder or column


@dataclass(frozen=True)
class Glance:
    """The examples of a column, read at every fetch.

    Args:
        column: N rows.
        modality: turns examples into inputs.
        max_memory_mib: see `Modality.store`.
    """

    column: StoredColumn
    modality: Modality
    max_memory_mib: int

    @classmethod
    def of(cls, column: StoredColumn, modality: Modality, max_memory_mib: int) -> Glance:
        """A glance at a column, after reading `NUM_READ` rows and checking that the files of all others exist.

        Raises:
            DataError: rows have no example, or one that cannot be read.
        """
        _refuse_absent(column, reads_files=bool(modality.suffixes))
        glance = cls(column, modality, max_memory_mib)
        glance._read(evenly_spaced(len(column), NUM_READ))
        return glance

    def __len__(self) -> int:
        return len(self.column)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Inputs of `rows` (int64, one axis); warnings about the data were given when the glance was made.

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


def _refuse_absent(column: StoredColumn, *, reads_files: bool) -> None:
    """Raises if rows are empty, or name files that do not exist or are empty; opens no file."""
    problems = []
    row = 0
    for values in column.files():
        for value in values:
            if (problem := _absent(value)) is not None:
                problems.append(f"row {int(column.numbers[row])}: {problem}")
            row += 1
    hint = LEAVE_OUT if reads_files else REPLACE
    refuse(column.origin, problems, hint=hint)


def _absent(value: Any) -> str | None:
    """The problem with a value that shows without opening files; Any: any type that a file can hold."""
    if value is None:
        return "it is empty"
    if not isinstance(value, dict) or value.get("bytes") or not isinstance(path := value.get("path"), str):
        return None
    try:
        return None if Path(path).stat().st_size else f"{path!r} is an empty file"
    except OSError as error:
        return f"{path!r}: {error.strerror}"


@dataclass(frozen=True)
class Shown:
    """A training row for display.

    Args:
        example: name of its file, or the beginning of a text.
        target: label or number.
        row: position among the training rows.
    """

    example: str
    target: str
    row: int


def shown(column: StoredColumn, targets: Sequence[object], rows: Tensor) -> tuple[Shown, ...]:
    """These rows for display; `targets` has one value per row."""
    values = zip(column.take(rows), targets, rows.tolist(), strict=True)
    return tuple(Shown(_example(value), _target(target), row) for value, target, row in values)


def _example(value: Any) -> str:
    """A short text for a value; Any: any type that a file can hold."""
    if isinstance(value, dict) and "prompt" in value:
        value = value["prompt"]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = content_of(value[0])
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        return repr("/".join(Path(path).parts[-3:])) if path else f"{len(content or b''):,} bytes"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    if isinstance(value, list):
        return f"an array of {len(value)} rows"
    return _short(str(value))


def _target(value: Any) -> str:
    """A short text for what a model shall answer; of a dialogue that is its last part."""
    if isinstance(value, dict) and "response" in value:
        value = value["response"]
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = content_of(value[-1])
    return _short(value) if isinstance(value, str) else repr(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def bounded(names: Sequence[str], limit: int) -> str:
    """The first `limit` names, and the number of further ones.

    >>> bounded(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
