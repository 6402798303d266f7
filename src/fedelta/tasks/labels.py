"""Labels of a classification as they stand in a data set: which classes there are, and the class of each row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedelta.errors import listed
from fedelta.tasks.targets import ReadTargets, TargetColumn

# Words that programs write for nothing, and that are names as well: the ISO code of Namibia, a family called Null.
NULL_WORDS = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "none", "null", "nil"})
# More classes than this, and more than one for every second row: such a column holds something else.
_MANY_CLASSES = 20


@dataclass(frozen=True)
class Labels:
    """A class for each row.

    Args:
        values: int64 of shape [N], from 0.
    """

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        """The classes of `rows`."""
        return self.values[rows]

    def select(self, rows: Tensor) -> Labels:
        """Those of `rows` alone."""
        return Labels(self.values[rows])

    @property
    def strata(self) -> Tensor:
        """The classes themselves."""
        return self.values


_NONE = Labels(torch.zeros(0, dtype=torch.int64))


def read_labels(train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
    """The labels of both sets as numbers of the classes of the training set.

    Integers and texts sort by value, texts that are all whole numbers as numbers; class labels keep their own order and
    names. The classes of a test set are matched with those of the training set by name. A list of one label is that
    label, and a one-hot list the number of its place.
    """
    train, test = _unwrapped(train), None if test is None else _unwrapped(test)
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


def _unwrapped(column: TargetColumn) -> TargetColumn:
    """The same with labels in place of lists of one and of one-hot lists, and nothing in place of empty texts."""
    values = [None if _is_nothing(value) else value for value in column.values]
    floats = [value for value in values if isinstance(value, float)]
    if len(floats) < len(values) and all(value.is_integer() for value in floats):
        # What pandas makes of whole numbers with a gap.
        values = [int(value) if isinstance(value, float) else value for value in values]
    lists = [value for value in values if isinstance(value, list)]
    if lists and all(len(value) == 1 for value in lists):
        values = [value[0] if isinstance(value, list) else value for value in values]
    elif lists and len({len(value) for value in lists}) == 1 and all(_is_one_hot(value) for value in lists):
        values = [value.index(1) if isinstance(value, list) else value for value in values]
    return replace(column, values=values)


def _is_nothing(value: object) -> bool:
    return (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))


def _is_one_hot(value: Sequence[object]) -> bool:
    return all(item in {0, 1} for item in value if isinstance(item, int | float)) and (
        [item for item in value if item != 0] == [1]
    )


def _classes(column: TargetColumn) -> tuple[list[object], tuple[str, ...], str | None]:
    """The classes in label order: as they stand in the column, and as names; and what is wrong with them."""
    present = [value for value in column.values if value is not None]
    kinds = sorted({type(value).__name__ for value in present})
    what = f"label column {column.name!r}"
    if kinds not in (["int"], ["str"], ["bool"]):
        return [], (), f"{what} holds {listed(kinds) or 'nothing'}, expected integers or texts{_advice(kinds)}"
    values = set(present)
    if column.class_names is None and (problem := _no_classes(what, values, len(present))):
        return [], (), problem
    classes = list(range(len(column.class_names))) if column.class_names is not None else _sorted(values)
    names = column.class_names or tuple(str(value) for value in classes)
    if len(classes) < 2:
        return [], (), f"{what} has one class only, {names[0]!r}, expected 2 or more"
    return list(classes), names, None


def _advice(kinds: Sequence[str]) -> str:
    if kinds == ["float"]:
        return (
            '; numbers are predicted with `task.name` = "regression"; where these are the numbers of classes, write '
            "them without a point"
        )
    if "list" in kinds:
        return "; one label a row: lists of several, as of many labels, cannot be learned"
    if "str" in kinds:
        return ", of one kind in all rows: write all of them as texts"
    return ""


def _no_classes(what: str, values: set[Any], num_rows: int) -> str | None:
    """Why these are something else than classes; Any: integers, truth values or texts, all of one type."""
    texts = all(isinstance(value, str) for value in values)
    if texts and any("." in value for value in values) and all(_is_decimal(value) for value in values):
        return (
            f"{what} holds texts that are numbers with a point, such as {min(values)!r}, expected integers or texts; "
            'numbers are predicted with `task.name` = "regression", from a column of numbers'
        )
    if len(values) <= _MANY_CLASSES or 2 * len(values) <= num_rows:
        return None
    if texts:
        shown = min(values, key=len)
        shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
        kind, advice = "free text", f"such as {shown!r}: name the column of classes in `data.label_column`"
    else:
        advice = 'name another in `data.label_column`, or write amounts with a point for `task.name` = "regression"'
        kind = "numbers of rows, or amounts"
    return (
        f"{what} has {len(values)} different values in {num_rows} rows, which are rather {kind} than classes; {advice}"
    )


def _is_decimal(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _sorted(values: set[Any]) -> list[object]:
    """In ascending order; Any: integers, truth values or texts, all of one type."""
    if all(isinstance(value, str) and value.isascii() and value.isdigit() for value in values):
        # The text itself last: "1" and "01" are two classes.
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def _matched(train: TargetColumn, test: TargetColumn) -> tuple[TargetColumn, str | None]:
    """The test column as the training column has its classes, and why that cannot be."""
    named = test.class_names is not None
    if test.class_names is not None:
        ours = train.class_names or tuple(dict.fromkeys(map(str, train.values)))
        if set(test.class_names).isdisjoint(ours):
            problem = f"{test.what}: classes {listed(test.class_names)} differ from the {train.what}'s {listed(ours)}"
            return test, problem
        # A number outside of the names stays as it is, and is found foreign.
        names = dict(enumerate(test.class_names))
        test = replace(test, values=[names.get(_index(value), value) for value in test.values], class_names=None)
    kinds = {type(value) for value in test.values if value is not None}
    if train.class_names is not None:
        numbered = not named and kinds == {int}
        if numbered and not all(str(index) == name for index, name in enumerate(train.class_names)):
            found = sorted({value for value in test.values if isinstance(value, int)})
            return test, (
                f"{test.what}: labels are the numbers {listed(found)}, in the {train.what} the names "
                f"{listed(train.class_names)}: which is which is not known; write names in both"
            )
        index = {name: number for number, name in enumerate(train.class_names)}
        return replace(test, values=[index.get(str(value), value) for value in test.values]), None
    if kinds & {int, bool} and any(isinstance(value, str) for value in train.values):
        return replace(test, values=[None if value is None else str(value) for value in test.values]), None
    if kinds == {str} and not any(isinstance(value, str) for value in train.values):
        meant = {str(value): value for value in train.values}
        return replace(test, values=[meant.get(str(value), value) for value in test.values]), None
    return test, None


def _index(value: object) -> int:
    return value if isinstance(value, int) else -1


def _numbers(column: TargetColumn, classes: Sequence[object]) -> tuple[Tensor, list[str]]:
    """Labels as numbers in 0..len(classes)-1, int64 of shape [N], and problems."""
    number_of = {value: number for number, value in enumerate(classes)}
    values = [None if isinstance(value, list | dict) else value for value in column.values]
    missing = [row for row, value in enumerate(values) if value is None or _stands_for_nothing(value, classes)]
    absent = set(missing)
    foreign = [row for row, value in enumerate(values) if row not in absent and value not in number_of]
    problems = []
    if missing:
        rows = f"{len(missing)} rows without a label in column {column.name!r}: rows {listed(missing)}"
        words = sorted({repr(value) for row in missing if (value := values[row]) is not None})
        said = f" (there stands {', '.join(words)}, elsewhere numbers)" if words else ""
        problems.append(f"{column.what}: {rows}{said}; give them one, or keep them in a file of their own")
    if foreign:
        strange = sorted({str(values[row]) for row in foreign})
        problems.append(
            f"{column.what}: {len(foreign)} rows with labels outside the {len(classes)} classes: "
            f"labels {listed(strange)}, rows {listed(foreign)}; expected {listed(list(classes))}"
        )
    return torch.tensor([number_of.get(value, -1) for value in values], dtype=torch.int64), problems


def _stands_for_nothing(value: object, classes: Sequence[object]) -> bool:
    """Whether a value is a word for nothing among numbers that are written as texts."""
    if not isinstance(value, str) or value.strip().casefold() not in NULL_WORDS:
        return False
    others = [each for each in classes if str(each).strip().casefold() not in NULL_WORDS]
    return bool(others) and all(_is_decimal(str(each)) for each in others)


def _notes(column: TargetColumn, names: Sequence[str], labels: Tensor) -> tuple[str, ...]:
    """What may be meant otherwise."""
    counts = dict(zip(names, labels.bincount(minlength=len(names)).tolist(), strict=True))
    notes = [
        f"label column {column.name!r}: {counts[name]} rows have the label {name!r}, which is taken as a class of its "
        f"own; if it stands for an unknown one, {where}"
        for name, where in _suspects(column, names)
    ]
    same = Counter(name.strip().casefold() for name in names)
    alike = [name for name in names if same[name.strip().casefold()] > 1]
    if alike:
        notes.append(
            f"label column {column.name!r}: {listed(alike)} are classes of their own, different in case or spaces"
        )
    if len(names) > 2 and 2 * len(counts) > len(labels):
        notes.append(
            f"label column {column.name!r} has {len(names)} classes in {len(labels)} rows; if that is free text, name "
            "another in `data.label_column`"
        )
    return tuple(notes)


def _suspects(column: TargetColumn, names: Sequence[str]) -> list[tuple[str, str]]:
    """Classes that often stand for nothing, and what to do about them."""
    apart = "keep these rows in a file of their own"
    found: Mapping[str, str] = {name: apart for name in names if name.strip().casefold() in NULL_WORDS}
    if column.class_names is None and names[0] == "-1" and not any(name.startswith("-") for name in names[1:]):
        found = {"-1": apart, **found}
    return list(found.items())
