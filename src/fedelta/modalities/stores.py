"""Stores of examples: raw rows in memory, or examples that are decoded at every fetch.

Both classes satisfy `Inputs` (see base.py). The modality turns raw rows into inputs at every fetch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from fedelta.errors import refuse
from fedelta.modalities.base import Column, ExampleError, Modality

if TYPE_CHECKING:
    from fedelta.modalities.base import Example

REPLACE = "repair or replace these files or rows; rows are counted from 0"
LEAVE_OUT = f'{REPLACE}; or leave them out with `data.on_error = "skip"`, `--on-error skip` of `fedelta run`'
_Value = TypeVar("_Value")
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Stored:
    """Raw rows in memory.

    Args:
        raw: of shape [N, ...].
        modality: turns raw rows into inputs.
    """

    raw: Tensor
    modality: Modality

    def __len__(self) -> int:
        return len(self.raw)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of `rows` (int64, one axis)."""
        return self.modality.transform(self.raw[rows])


@dataclass(frozen=True)
class Encoded:
    """Examples that are decoded at every fetch, for data sets larger than memory.

    Args:
        column: N rows.
        read: turns one value into its raw form.
        modality: turns raw rows into inputs.
    """

    column: Column
    read: Callable[[object], Tensor]
    modality: Modality

    def __len__(self) -> int:
        return len(self.column)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of `rows` (int64, one axis).

        Raises:
            DataError: an example is damaged behind its header.
        """
        return self.modality.transform(self.raw(rows))

    def raw(self, rows: Tensor) -> Tensor:
        """The raw form of `rows` (int64, one axis), of shape [B, ...]; raises the same errors as `fetch`."""
        raw: list[Tensor] = []
        problems: list[str] = []
        for number, value in zip(self.column.numbers[rows].tolist(), self.column.take(rows), strict=True):
            try:
                raw.append(self.read(value))
            except ExampleError as error:
                problems.append(f"{row_name(number, value)}: {error}")
        refuse(f"column {self.column.name!r}", problems, hint=LEAVE_OUT)
        return torch.stack(raw)


def store_rows(
    column: Column, read: Callable[[object], Tensor], raw: Tensor, modality: Modality, header_problems: dict[int, str]
) -> Stored:
    """Reads the examples of a column into memory.

    Args:
        column: N rows.
        read: turns one value into its raw form.
        raw: of shape [N, ...]; filled here.
        modality: turns raw rows into inputs.
        header_problems: row to message; these rows are not read.

    Raises:
        DataError: rows that hold no example, including those of `header_problems`, all in one message.
    """
    problems = dict(header_problems)
    for row, value in rows_of(column):
        if row in problems:
            continue
        try:
            raw[row] = read(value)
        except ExampleError as error:
            problems[row] = f"{row_name(int(column.numbers[row]), value)}: {error}"
    refuse_rows(column, problems)
    return Stored(raw, modality)


def scan_rows(column: Column, look: Callable[[object], _Read]) -> tuple[set[_Read], dict[int, str]]:
    """The distinct results of `look` over the values of a column, and row to message where it raises."""
    results: set[_Read] = set()
    problems: dict[int, str] = {}
    for row, value in rows_of(column):
        try:
            results.add(look(value))
        except ExampleError as error:
            problems[row] = f"{row_name(int(column.numbers[row]), value)}: {error}"
    return results, problems


def refuse_rows(column: Column, problems: dict[int, str]) -> None:
    """Raises one `DataError` for all `problems`, row to message; does nothing if there are none."""
    refuse(column.origin, [problem for _, problem in sorted(problems.items())], hint=LEAVE_OUT)


def read_examples(
    plural: str, examples: Sequence[Example], read: Callable[[Example], Tensor], hint: str
) -> list[Tensor]:
    """The raw forms of single examples.

    Args:
        plural: word for the examples in messages.
        examples: to read.
        read: turns one example into its raw form.
        hint: which examples are accepted, for the message.

    Raises:
        DataError: names every value that is not an example.
    """
    results: list[Tensor] = []
    problems: list[str] = []
    for index, example in enumerate(examples):
        try:
            results.append(read(example))
        except ExampleError as error:
            name = repr(str(example)) if isinstance(example, str | Path) else f"input {index}"
            problems.append(f"{name}: {error}")
    refuse(plural, problems, hint=hint)
    return results


def evenly_spaced(num_rows: int, most: int) -> Tensor:
    """At most `most` of `num_rows` row numbers, int64, from the first to the last in equal steps.

    >>> evenly_spaced(9, 3).tolist()
    [0, 4, 8]
    """
    # float64: float32 rounds numbers beyond 16,777,216, and the last one may become a row that does not exist.
    return torch.linspace(0, num_rows - 1, min(most, num_rows), dtype=torch.float64).round().long()


def in_chunks(values: Sequence[_Value], size: int) -> Iterator[Sequence[_Value]]:
    """The values in chunks of `size`, in order; the last chunk may be shorter.

    >>> list(in_chunks("abcde", 2))
    ['ab', 'cd', 'e']
    """
    return (values[start : start + size] for start in range(0, len(values), size))


def rows_of(column: Column) -> Iterator[tuple[int, Any]]:
    """Pairs of row and value; Any: any type that a file can hold."""
    return enumerate(value for chunk in column.chunks() for value in chunk)


def row_name(number: int, value: object) -> str:
    """The name of a row in messages: its number, and the file it came from."""
    path = value.get("path") if isinstance(value, dict) else None
    return f"row {number}{f' ({path})' if path else ''}"
