"""The values of a column before they are used: what they are, and which clients they name."""

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

# Above it float64 leaves out whole numbers, so that two ids may have become one.
_LARGEST_EXACT = 2**53
# How JSON begins that is no word and no number; of these `datasets` would make 7 of "007".
_NO_WORDS = ("[", "{", '"', "null")


@dataclass(frozen=True)
class Ids:
    """The clients of some rows.

    Args:
        names: one for each row: texts, or whole numbers.
        codes: likewise, 0, 1, ... in ascending order of the values as they stand.
        notes: what can be used and looks odd, in words.
    """

    names: list[Name]
    codes: list[int]
    notes: tuple[str, ...] = ()


def values_of(dataset: Dataset, column: str) -> list[Any]:
    """The values of a column as they stand, class labels as numbers; Any: whatever the file holds."""
    from datasets import Json

    stored = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    values: list[Any] = stored.to_pylist()
    if not isinstance(dataset.features[column], Json):
        return values
    # Values of several types in a JSON file, kept as texts: `datasets` itself would make 7 of "007".
    return [_from_json(value) if isinstance(value, str) and value.startswith(_NO_WORDS) else value for value in values]


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

    Texts and whole numbers are themselves, class labels their names; dates, times and truth values are written out,
    bytes of sixteen are UUIDs; numbers with a point are whole numbers where all of them are.

    Args:
        dataset: N rows.
        column: holds the ids.
        what: names the data set in problems, such as "test set".
        numbers: int64 of shape [N], what messages call the rows.

    Raises:
        DataError: rows without an id, or with something that is none; names the first of them.
    """
    from datasets import ClassLabel

    values, feature = values_of(dataset, column), dataset.features[column]
    called = numbers.tolist()
    origin = f"{what}, column {column!r} (`data.client_column`)"
    if isinstance(feature, ClassLabel):
        missing = [row for row, value in enumerate(values) if value is None or value < 0]
        refuse(origin, _without_id(missing, called))
        names: list[Any] = [feature.names[value] for value in values]
        return Ids(names, _codes(values))
    values = _as_whole_numbers(values)
    words = Counter(value for value in values if isinstance(value, str) and value.strip().casefold() in NULL_WORDS)
    others = [value for value in values if value is not None and not (isinstance(value, str) and value in words)]
    # Among numbers such a word is none.
    absent = set(words) if others and all(map(_is_number, others)) else set()
    missing = [
        row for row, value in enumerate(values) if _is_missing(value) or (isinstance(value, str) and value in absent)
    ]
    names = [None if _is_missing(value) else _name(value) for value in values]
    odd = {row: values[row] for row, name in enumerate(names) if name is None and row not in set(missing)}
    refuse(origin, [*_without_id(missing, called), *_not_ids(odd, called)], hint=_hint(odd))
    notes = [
        f"{origin}: {count} rows are of a client called {word!r}, which is taken as a name; if it stands for an "
        "unknown one, leave the cell empty"
        for word, count in words.items()
    ]
    return Ids(names, _codes(names), tuple(notes))


def _as_whole_numbers(values: Sequence[Any]) -> list[Any]:
    """Floats as whole numbers, where all are: a column with gaps is one of floats to pandas."""
    floats = [value for value in values if isinstance(value, float) and value == value]
    if not floats or not all(value.is_integer() and abs(value) < _LARGEST_EXACT for value in floats):
        return list(values)
    return [int(value) if isinstance(value, float) and value == value else value for value in values]


def _is_missing(value: object) -> bool:
    # NaN is the only value that is not itself.
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value.strip().removeprefix("-").isdigit())


def _name(value: object) -> Name | None:
    """What a client with this id is called; None for what is no id."""
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


def _without_id(missing: Sequence[int], called: Sequence[int]) -> list[str]:
    if not missing:
        return []
    return [f"{len(missing)} rows have no client id, first row {called[missing[0]]} (from 0): give each row one"]


def _not_ids(odd: Mapping[int, object], called: Sequence[int]) -> list[str]:
    by_kind: dict[str, list[int]] = {}
    for row, value in odd.items():
        by_kind.setdefault(type(value).__name__, []).append(row)
    return [
        f"{len(rows)} rows have a client id of type {kind}, first row {called[rows[0]]} (from 0) with "
        f"{_shortened(odd[rows[0]])}; expected a text or a whole number"
        for kind, rows in by_kind.items()
    ]


def _hint(odd: Mapping[int, object]) -> str | None:
    if not any(isinstance(value, float) for value in odd.values()):
        return None
    return (
        "numbers with a point cannot hold every id: above 2^53 two become one. Write ids as texts, in JSON and CSV in "
        "quotation marks"
    )


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
