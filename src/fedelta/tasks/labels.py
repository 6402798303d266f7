"""Reads the label column of a classification: the classes, and the class of each row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fedelta.errors import listed
from fedelta.tasks.targets import ReadTargets, TargetColumn

# Texts that programs write for a missing value. They may also be real names: NA is Namibia, Null is a surname.
NULL_WORDS = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "none", "null", "nil"})
# A column with more classes than this is taken not to hold classes if it has more than one class per two rows or, of
# texts, if more than half of them occur once, or half of them have so many words.
_GIVE = 'label them, move them to another file, or leave them out (`data.on_error = "skip"`)'
_MANY_CLASSES = 20
_MANY_WORDS = 12


@dataclass(frozen=True)
class Labels:
    """The class of each row.

    Args:
        values: int64 of shape [N], from 0.
    """

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        """The labels of `rows`."""
        return self.values[rows]

    def select(self, rows: Tensor) -> Labels:
        """The labels of `rows` alone."""
        return Labels(self.values[rows])

    @property
    def strata(self) -> Tensor:
        """The classes themselves."""
        return self.values


_NONE = Labels(torch.zeros(0, dtype=torch.int64))


def read_labels(train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
    """The labels of both sets, numbered by the classes of the training set.

    Classes sort by value, and texts that are all whole numbers sort as numbers; a column of class labels keeps its
    order and names. The classes of the test set are matched with those of the training set by name. A list with one
    label counts as that label, a one-hot list as the position of its 1.
    """
    train, test = unwrapped(train), None if test is None else unwrapped(test)
    classes, names, problem = _classes(train)
    if problem is not None:
        return ReadTargets(_NONE, None, (), (), (problem,))
    labels, problems = _numbers(train, classes)
    test_labels = None
    if test is not None:
        matched, foreign = _matched(train, test)
        numbers, more = _numbers(matched, classes) if foreign is None else (_NONE.values, [foreign])
        test_labels, problems = Labels(numbers), problems + more
    notes = () if problems else _notes(train, names, labels)
    return ReadTargets(Labels(labels), test_labels, names, names, tuple(problems), notes)


def unwrapped(column: TargetColumn) -> TargetColumn:
    """The column with lists of one label and one-hot lists replaced by labels, and empty texts and NaN by None."""
    values = [None if _is_empty(value) else value for value in column.values]
    floats = [value for value in values if isinstance(value, float)]
    if len(floats) < len(values) and all(value.is_integer() for value in floats):
        # pandas turns integers into floats where a value is missing.
        values = [int(value) if isinstance(value, float) else value for value in values]
    lists = [value for value in values if isinstance(value, list)]
    if lists and all(len(value) == 1 for value in lists):
        values = [value[0] if isinstance(value, list) else value for value in values]
    elif lists and len({len(value) for value in lists}) == 1 and all(_is_one_hot(value) for value in lists):
        values = [value.index(1) if isinstance(value, list) else value for value in values]
        return replace(column, values=values, class_names=column.class_names or column.parts or None)
    return replace(column, values=values)


def _is_empty(value: object) -> bool:
    return (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))


def _is_one_hot(value: Sequence[object]) -> bool:
    return all(item in {0, 1} for item in value if isinstance(item, int | float)) and (
        [item for item in value if item != 0] == [1]
    )


def _classes(column: TargetColumn) -> tuple[list[object], tuple[str, ...], str | None]:
    """The classes in label order, as values of the column and as names; and the problem with them, if any."""
    present = [value for value in column.values if value is not None]
    kinds = sorted({type(value).__name__ for value in present})
    what = f"label column {column.name!r}"
    if kinds not in (["int"], ["str"], ["bool"]):
        return [], (), f"{what} holds {listed(kinds) or 'no values'}, expected integers or texts{_advice(kinds)}"
    values = Counter(present)
    if column.class_names is None and (problem := _not_classes(what, values, len(present))):
        return [], (), problem
    classes = list(range(len(column.class_names))) if column.class_names is not None else _sorted(set(values))
    names = column.class_names or tuple(str(value) for value in classes)
    if len(classes) < 2:
        return [], (), f"{what} has only one class, {names[0]!r}, expected 2 or more"
    return list(classes), names, None


def _advice(kinds: Sequence[str]) -> str:
    if kinds == ["float"]:
        return (
            '; to predict numbers, set `task.name` = "regression"; if these are class numbers, write them without a '
            "decimal point"
        )
    if "list" in kinds:
        return (
            '; each row needs exactly one label: if a list holds the labels of a row, set `task.name` = "multi-label"; '
            'if it holds a tag for each word, "tokens"; if it holds several numbers, "regression"'
        )
    if "str" in kinds:
        return "; values of several types cannot be sorted: write all of them as texts"
    return "; convert the column to one of these" if kinds else ""


def _not_classes(what: str, values: Counter[Any], num_rows: int) -> str | None:
    """Why the values, which occur so often, cannot be classes; None if they can; Any: of one type."""
    texts = all(isinstance(value, str) for value in values)
    if texts and any("." in value for value in values) and all(_is_decimal(value) for value in values):
        return (
            f"{what} holds decimal numbers as text, such as {min(values)!r}, expected integers or class names; to "
            'predict numbers, set `task.name` = "regression" and store the column as numbers'
        )
    num_single = sum(count == 1 for count in values.values())
    is_rare = 2 * len(values) > num_rows or (texts and 2 * num_single > len(values))
    is_prose = texts and median(len(value.split()) for value in values) >= _MANY_WORDS
    if len(values) <= _MANY_CLASSES or not (is_rare or is_prose):
        return None
    if texts:
        example = min(values, key=lambda text: (len(text), text))
        example = example if len(example) <= 40 else f"{example[:37]}..."
        kind = f"free text (such as {example!r})"
        advice = (
            "set `data.label_column` to the column of classes or, to learn to write such texts, `task.name` = "
            '"language"'
        )
    else:
        kind = "row numbers or amounts"
        advice = 'set `data.label_column` to the column of classes or, to predict amounts, `task.name` = "regression"'
    single = f", {num_single} of them once," if 2 * len(values) <= num_rows and num_single else ""
    return (
        f"{what} has {len(values)} different values{single} in {num_rows} rows: that looks like {kind}, not classes; "
        f"{advice}"
    )


def _is_decimal(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _sorted(values: set[Any]) -> list[object]:
    """The values in ascending order; Any: integers, truth values or texts, all of one type."""
    if all(isinstance(value, str) and value.isascii() and value.isdigit() for value in values):
        # The text breaks ties: "1" and "01" are two classes.
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def _matched(train: TargetColumn, test: TargetColumn) -> tuple[TargetColumn, str | None]:
    """The test column in terms of the training column's values, and the reason why it cannot be matched, if any."""
    named = test.class_names is not None
    if test.class_names is not None:
        expected = train.class_names or tuple(dict.fromkeys(map(str, train.values)))
        if set(test.class_names).isdisjoint(expected):
            return test, (
                f"{test.what}: none of its classes {listed(test.class_names)} is in the {train.what}, which has "
                f"{listed(expected)}; use the same class names in both"
            )
        # A number without a name stays as it is; `_numbers` then reports it.
        names = dict(enumerate(test.class_names))
        test = replace(test, values=[names.get(_index(value), value) for value in test.values], class_names=None)
    kinds = {type(value) for value in test.values if value is not None}
    if train.class_names is not None:
        numbered = not named and kinds == {int}
        if numbered and not all(str(index) == name for index, name in enumerate(train.class_names)):
            numbers = sorted({value for value in test.values if isinstance(value, int)})
            return test, (
                f"{test.what}: labels are the numbers {listed(numbers)}, but the {train.what} has the names "
                f"{listed(train.class_names)}, and they cannot be matched; use class names in both"
            )
        index = {name: number for number, name in enumerate(train.class_names)}
        return replace(test, values=[index.get(str(value), value) for value in test.values]), None
    if kinds & {int, bool} and any(isinstance(value, str) for value in train.values):
        return replace(test, values=[None if value is None else str(value) for value in test.values]), None
    if kinds == {str} and not any(isinstance(value, str) for value in train.values):
        value_of = {str(value): value for value in train.values}
        return replace(test, values=[value_of.get(str(value), value) for value in test.values]), None
    return test, None


def _index(value: object) -> int:
    return value if isinstance(value, int) else -1


def _numbers(column: TargetColumn, classes: Sequence[object]) -> tuple[Tensor, list[str]]:
    """The labels as numbers in 0..len(classes)-1, int64 of shape [N], and the problems with them."""
    number_of = {value: number for number, value in enumerate(classes)}
    values = [None if isinstance(value, list | dict) else value for value in column.values]
    missing = [row for row, value in enumerate(values) if value is None or _is_null_word(value, classes)]
    absent = set(missing)
    foreign = [row for row, value in enumerate(values) if row not in absent and value not in number_of]
    problems = []
    if missing:
        rows = f"{len(missing)} rows without a label in column {column.name!r}: rows {listed(missing)}"
        words = sorted({repr(value) for row in missing if (value := values[row]) is not None})
        hold = f" (they hold {', '.join(words)}, the others numbers)" if words else ""
        problems.append(f"{column.what}: {rows}{hold}; {_GIVE}")
    if foreign:
        labels = sorted({str(values[row]) for row in foreign})
        problems.append(
            f"{column.what}: {len(foreign)} rows with labels outside the {len(classes)} classes: "
            f"labels {listed(labels)}, rows {listed(foreign)}; expected {listed(list(classes))}"
        )
    return torch.tensor([number_of.get(value, -1) for value in values], dtype=torch.int64), problems


def _is_null_word(value: object, classes: Sequence[object]) -> bool:
    """Whether a value is a null word where all other classes are numbers written as text."""
    if not isinstance(value, str) or value.strip().casefold() not in NULL_WORDS:
        return False
    other_names = [str(value) for value in classes if str(value).strip().casefold() not in NULL_WORDS]
    return bool(other_names) and all(map(_is_decimal, other_names))


def _notes(column: TargetColumn, names: Sequence[str], labels: Tensor) -> tuple[str, ...]:
    """Notes about classes that may be mistakes."""
    counts = dict(zip(names, labels.bincount(minlength=len(names)).tolist(), strict=True))
    notes = [
        f"label column {column.name!r}: {counts[name]} rows have the label {name!r}, which counts as a class; if it "
        "means that the label is unknown, move these rows to another file"
        for name in _suspects(column, names)
    ]
    spellings = Counter(name.strip().casefold() for name in names)
    similar = [name for name in names if spellings[name.strip().casefold()] > 1]
    if similar:
        notes.append(
            f"label column {column.name!r}: {listed(similar)} count as different classes, but differ only in case or "
            "spaces"
        )
    numbers = [value for value in column.values if isinstance(value, int)] if column.class_names is None else []
    if len(names) > _MANY_CLASSES and numbers and max(numbers) - min(numbers) >= len(names):
        notes.append(
            f"label column {column.name!r} has {len(names)} different whole numbers from {min(numbers)} to "
            f'{max(numbers)}, each of which counts as a class; if they are amounts, set `task.name` = "regression"'
        )
    if len(names) > 2 and 2 * len(counts) > len(labels):
        notes.append(
            f"label column {column.name!r} has {len(names)} classes in {len(labels)} rows; if it holds free text, set "
            "`data.label_column` to another column"
        )
    return tuple(notes)


def _suspects(column: TargetColumn, names: Sequence[str]) -> list[str]:
    """The classes whose names often mean that the label is missing."""
    null_words = [name for name in names if name.strip().casefold() in NULL_WORDS]
    lonely_minus = column.class_names is None and names[0] == "-1" and not any(n.startswith("-") for n in names[1:])
    return ["-1", *null_words] if lonely_minus else null_words
