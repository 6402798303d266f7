"""Reads the values of a column, and the client ids in one."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedelta.data.clients import Name
from fedelta.errors import refuse
from fedelta.tasks.labels import NULL_WORDS

if TYPE_CHECKING:
    from datasets import Dataset

# Above this, float64 cannot represent every whole number, so that two ids may have become one.
_LARGEST_EXACT = 2**53
# First characters of JSON texts that are parsed; others, such as "007", stay texts.
_JSON_STARTS = ("[", "{", '"', "null")


@dataclass(frozen=True)
class Ids:
    """The clients of some rows.

    Args:
        names: one per row: texts or whole numbers.
        codes: one per row: 0, 1, ... in ascending order of the ids.
        notes: messages about usable ids that look like mistakes.
    """

    names: list[Name]
    codes: list[int]
    notes: tuple[str, ...] = ()


def values_of(dataset: Dataset, column: str) -> list[Any]:
    """The values of a column, class labels as numbers; Any: any type that a file can hold."""
    stored = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    return parsed(stored.to_pylist(), dataset.features[column])


def parsed(values: list[Any], feature: object) -> list[Any]:
    """Values as they are stored, with what `datasets` keeps as a text of JSON, because its type varies, as values.

    Args:
        values: one per row; Any: any type that a file can hold.
        feature: of the column, from `datasets`.
    """
    return [_parsed(value, feature) for value in values] if _has_json(feature) else values


def _has_json(feature: object) -> bool:
    """Whether values of a feature, or of its parts, are kept as texts of JSON."""
    from datasets import Json, LargeList, List

    match feature:
        case dict():
            return any(map(_has_json, feature.values()))
        case List() | LargeList():
            return _has_json(feature.feature)
    return isinstance(feature, Json)


def _parsed(value: Any, feature: object) -> Any:  # Any: any type that a file can hold
    from datasets import Json, LargeList, List

    match feature:
        case dict() if isinstance(value, dict):
            return {name: _parsed(part, feature[name]) for name, part in value.items()}
        case List() | LargeList() if isinstance(value, list):
            return [_parsed(part, feature.feature) for part in value]
        # `datasets` itself would turn "007" into 7.
        case Json() if isinstance(value, str) and value.startswith(_JSON_STARTS):
            return _from_json(value)
    return value


def _from_json(text: str) -> object:
    if text == "null":
        return None
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value


def read_ids(dataset: Dataset, column: str, what: str, numbers: Tensor) -> Ids:
    """The client of each row.

    Texts and whole numbers are used as they are, class labels by their names; dates, times and truth values become
    texts, 16 bytes are a UUID; floats become integers if all of them are whole.

    Args:
        dataset: N rows.
        column: name of the column of ids.
        what: name of the data set in messages, such as "test set".
        numbers: int64 of shape [N], row numbers for messages.

    Raises:
        DataError: rows have no id or an invalid one; names the first of them.
    """
    from datasets import ClassLabel

    values, feature = values_of(dataset, column), dataset.features[column]
    row_numbers = numbers.tolist()
    origin = f"{what}, column {column!r} (`data.client_column`)"
    if isinstance(feature, ClassLabel):
        missing = [row for row, value in enumerate(values) if value is None or value < 0]
        refuse(origin, _without_id(missing, row_numbers))
        names: list[Any] = [feature.names[value] for value in values]
        return Ids(names, _codes(values))
    values = _as_whole_numbers(values)
    words = Counter(value for value in values if isinstance(value, str) and value.strip().casefold() in NULL_WORDS)
    others = [value for value in values if value is not None and not (isinstance(value, str) and value in words)]
    # If all other ids are numbers, a null word means a missing id.
    null_words = set(words) if others and all(map(_is_number, others)) else set()
    missing = [
        row
        for row, value in enumerate(values)
        if _is_missing(value) or (isinstance(value, str) and value in null_words)
    ]
    names = [None if _is_missing(value) else _name(value) for value in values]
    odd = {row: values[row] for row, name in enumerate(names) if name is None and row not in set(missing)}
    refuse(origin, [*_without_id(missing, row_numbers), *_not_ids(odd, row_numbers)], hint=_hint(odd))
    notes = [
        f"{origin}: {count} rows belong to a client called {word!r}; if that means that the client is unknown, leave "
        "the cell empty"
        for word, count in words.items()
    ]
    return Ids(names, _codes(names), tuple(notes))


def _as_whole_numbers(values: Sequence[Any]) -> list[Any]:
    """The values with floats as integers, if all are whole: pandas stores integers with gaps as floats."""
    floats = [value for value in values if isinstance(value, float) and value == value]
    if not floats or not all(value.is_integer() and abs(value) < _LARGEST_EXACT for value in floats):
        return list(values)
    return [int(value) if isinstance(value, float) and value == value else value for value in values]


def _is_missing(value: object) -> bool:
    # Only NaN differs from itself.
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value.strip().removeprefix("-").isdigit())


def _name(value: object) -> Name | None:
    """The name of a client with this id; None if the value is not a valid id."""
    match value:
        case bool():
            return str(value).lower()
        case str() | int():
            return value
        case datetime.datetime() if value.time() == datetime.time():
            return value.date().isoformat()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal() if value == value.to_integral_value():
            return int(value)
        case bytes() if len(value) == 16:
            return str(uuid.UUID(bytes=value))
    return None


def _codes(values: Sequence[Any]) -> list[int]:
    code = {value: number for number, value in enumerate(sorted(set(values)))}
    return [code[value] for value in values]


def _without_id(missing: Sequence[int], row_numbers: Sequence[int]) -> list[str]:
    if not missing:
        return []
    first = row_numbers[missing[0]]
    return [f"{len(missing)} rows have no client id, first row {first} (from 0); every row needs one"]


def _not_ids(odd: Mapping[int, object], row_numbers: Sequence[int]) -> list[str]:
    by_kind: dict[str, list[int]] = {}
    for row, value in odd.items():
        by_kind.setdefault(type(value).__name__, []).append(row)
    return [
        f"{len(rows)} rows have a client id of type {kind}, first row {row_numbers[rows[0]]} (from 0) with "
        f"{_shortened(odd[rows[0]])}; expected a text or a whole number"
        for kind, rows in by_kind.items()
    ]


def _hint(odd: Mapping[int, object]) -> str | None:
    if not any(isinstance(value, float) for value in odd.values()):
        return None
    return (
        "floating-point numbers cannot represent every id: above 2^53 different ids become equal. Store ids as texts, "
        "in JSON and CSV in quotation marks"
    )


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
