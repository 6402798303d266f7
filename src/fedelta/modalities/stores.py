"""Examples by row: raw in memory, or decoded when they are asked for.

Each class is an `Inputs` (see base.py). What a store holds is as raw as memory allows; the modality makes the inputs at
every fetch.
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

REPLACE = "mend or replace these files or rows; rows are counted from 0"
_Value = TypeVar("_Value")
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Stored:
    """Raw rows in memory.

    Args:
        raw: of shape [N, ...].
        modality: makes inputs of them.
    """

    raw: Tensor
    modality: Modality

    def __len__(self) -> int:
        return len(self.raw)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Inputs of `rows` (int64, one axis)."""
        return self.modality.transform(self.raw[rows])


@dataclass(frozen=True)
class Encoded:
    """Examples that are decoded at every fetch, for data sets larger than memory.

    Args:
        column: N rows.
        read: one value to what is kept of it.
        modality: makes inputs of them.
    """

    column: Column
    read: Callable[[object], Tensor]
    modality: Modality

    def __len__(self) -> int:
        return len(self.column)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Inputs of `rows` (int64, one axis).

        Raises:
            DataError: an example is damaged behind its header.
        """
        return self.modality.transform(self.raw(rows))

    def raw(self, rows: Tensor) -> Tensor:
        """What is kept of `rows` (int64, one axis), of shape [B, ...]; raises as `fetch`."""
        raw: list[Tensor] = []
        problems: list[str] = []
        for number, value in zip(self.column.numbers[rows].tolist(), self.column.take(rows), strict=True):
            try:
                raw.append(self.read(value))
            except ExampleError as error:
                problems.append(f"{described(number, value)}: {error}")
        refuse(f"column {self.column.name!r}", problems, hint=REPLACE)
        return torch.stack(raw)


def stored(
    column: Column, read: Callable[[object], Tensor], raw: Tensor, modality: Modality, known: dict[int, str]
) -> Stored:
    """The examples of a column in memory.

    Args:
        column: N rows.
        read: one value to what is kept of it.
        raw: of shape [N, ...]; filled here.
        modality: makes inputs of them.
        known: row to problem, of rows that are not to be read.

    Raises:
        DataError: rows that hold no example, all in one message, together with those that are `known`.
    """
    problems = dict(known)
    for row, value in rows_of(column):
        if row in problems:
            continue
        try:
            raw[row] = read(value)
        except ExampleError as error:
            problems[row] = f"{described(int(column.numbers[row]), value)}: {error}"
    refuse_rows(column, problems)
    return Stored(raw, modality)


def examined(column: Column, look: Callable[[object], _Read]) -> tuple[set[_Read], dict[int, str]]:
    """What `look` finds in the values of a column, and row to problem where that is nothing."""
    seen: set[_Read] = set()
    problems: dict[int, str] = {}
    for row, value in rows_of(column):
        try:
            seen.add(look(value))
        except ExampleError as error:
            problems[row] = f"{described(int(column.numbers[row]), value)}: {error}"
    return seen, problems


def refuse_rows(column: Column, problems: dict[int, str]) -> None:
    """Raises one `DataError` for `problems`, row to text; nothing if none."""
    refuse(column.origin, [problem for _, problem in sorted(problems.items())], hint=REPLACE)


def read_examples(
    plural: str, examples: Sequence[Example], read: Callable[[Example], Tensor], hint: str
) -> list[Tensor]:
    """What `read` makes of single examples.

    Args:
        plural: what they are.
        examples: to read.
        read: one of them.
        hint: what to give instead of something that is none.

    Raises:
        DataError: something is no example; names all of them.
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


def spread(num_rows: int, most: int) -> Tensor:
    """At most `most` of so many rows, int64, from the first to the last in equal steps.

    >>> spread(9, 3).tolist()
    [0, 4, 8]
    """
    # float64: float32 rounds numbers beyond 16,777,216, the last one maybe to a row that is not there.
    return torch.linspace(0, num_rows - 1, min(most, num_rows), dtype=torch.float64).round().long()


def in_chunks(values: Sequence[_Value], size: int) -> Iterator[Sequence[_Value]]:
    """`size` of the values at a time, in order; the last chunk may be shorter.

    >>> list(in_chunks("abcde", 2))
    ['ab', 'cd', 'e']
    """
    return (values[start : start + size] for start in range(0, len(values), size))


def rows_of(column: Column) -> Iterator[tuple[int, Any]]:
    """Row and value; Any: whatever the file holds."""
    return enumerate(value for chunk in column.chunks() for value in chunk)


def described(number: int, value: object) -> str:
    """The row that messages call `number`, with the file it came from."""
    path = value.get("path") if isinstance(value, dict) else None
    return f"row {number}{f' ({path})' if path else ''}"
