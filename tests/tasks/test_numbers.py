from __future__ import annotations

import math

import pytest
from torch import tensor

from fedelta.tasks.numbers import read_numbers
from fedelta.tasks.targets import TargetColumn

WHAT = "training set: target column 'size'"
CLASSES = '; to predict classes, set `task.name` = "classification"'


def column(*values: object, what: str = "training set", names: tuple[str, ...] | None = None) -> TargetColumn:
    return TargetColumn("size", what, values, names)


def test_numbers_stay_as_they_are_and_ranges_are_those_of_the_training_set():
    train = column(*map(float, range(20)))
    targets = read_numbers(train, column(-5.0, 10.0, 100.0, what="test set"))
    assert targets.problems == ()
    assert targets.train.fetch(tensor([0, 10, 12])).tolist() == [[0.0], [10.0], [12.0]]
    assert targets.train.strata.bincount().tolist() == [2] * 10
    assert targets.test.strata.tolist() == [0, 5, 9]
    assert targets.test.select(tensor([2])).values.tolist() == [[100.0]]
    assert len(targets.test.select(tensor([2]))) == 1
    assert (targets.class_names, len(targets.strata_names)) == ((), 10)
    assert (targets.strata_names[0], targets.strata_names[1], targets.strata_names[-1]) == (
        "below 1.9", "1.9 to 3.8", "from 17.1",
    )  # fmt: skip


def test_values_that_many_rows_share_leave_fewer_ranges():
    targets = read_numbers(column(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0), None)
    assert targets.strata_names == ("below 0", "0 to 0.2", "0.2 to 1.1", "from 1.1")
    assert len(targets.strata_names) > targets.train.strata.max()


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (column([1.0, 2.0], [3.0]), f"{WHAT} holds lists of 1 to 2 numbers, expected equally many in each row"),
        (column([], []), f"{WHAT} holds lists of 0 to 0 numbers, expected equally many in each row"),
        (column([1.0, 2.0], [3.0, 2.0]), "target column '1' holds 2.0 in every row, expected several values"),
        (column([1.0, None], [3.0, 2.0]), f"{WHAT} holds no number in 1 rows: rows 0"),
        (column("a", "b"), f"{WHAT} holds 'str', expected numbers{CLASSES}"),
        (column("0.5", "1.5"), f"{WHAT} holds 'str', expected numbers; store them as numbers"),
        (column("0,5", "1,5"), f"{WHAT} holds 'str', expected numbers; write '0,5' with a decimal point"),
        (
            column([1], ["n/a"], [5]),
            f"{WHAT} holds text such as 'n/a' in 1 rows: rows 1; expected a number in each row",
        ),
        (column(True, False), f"{WHAT} holds 'bool', expected numbers{CLASSES}"),
        (column(0, 1, names=("a", "b")), f"{WHAT} holds class labels, expected numbers{CLASSES}"),
        (column(None, None), f"{WHAT} holds no values, expected numbers{CLASSES}"),
        (column(1.0, None, math.nan, math.inf), f"{WHAT} holds no number in 1 rows: rows 1"),
        (column(2.5, 2.5), "target column 'size' holds 2.5 in every row, expected several values"),
    ],
)
def test_problems_with_targets_are_reported(train, problem):
    assert read_numbers(train, None).problems[0] == problem


def test_problems_of_both_sets_are_reported_together():
    targets = read_numbers(column(1.0, math.nan, 2.0), column(None, -math.inf, 1.0, what="test set"))
    assert targets.problems == (
        "training set: target column 'size' holds NaN or infinity in 1 rows: rows 1",
        "test set: target column 'size' holds no number in 1 rows: rows 0",
        "test set: target column 'size' holds NaN or infinity in 1 rows: rows 1",
    )


def test_several_columns_and_lists_are_several_numbers():
    sides = TargetColumn("height, width", "training set", [[1, 2.5], [3, 0.5]], parts=("height", "width"))
    targets = read_numbers(sides, column([4.0, 5.0], what="test set"))
    assert targets.problems == ()
    assert (targets.class_names, targets.train.fetch(tensor([1])).tolist()) == (("height", "width"), [[3.0, 0.5]])
    assert targets.test.values.tolist() == [[4.0, 5.0]]
    assert read_numbers(column([1.0, 2.0], [3.0, 4.0]), None).class_names == ("0", "1")
    assert read_numbers(column(1.0, 2.0), None).class_names == ()


def test_as_many_numbers_are_expected_in_the_test_set():
    targets = read_numbers(column([1.0, 2.0], [3.0, 4.0]), column(1.0, what="test set"))
    assert targets.problems == ("test set: 1 numbers a row, expected 2",)


def test_whole_numbers_are_numbers_and_a_few_of_them_may_be_classes():
    few = read_numbers(column(1, 2, 3, 1), None)
    assert few.train.values.flatten().tolist() == [1.0, 2.0, 3.0, 1.0]
    what = "target column 'size' holds 3 different whole numbers"
    assert few.notes == (f'{what}; if they are classes, set `task.name` = "classification"',)
    assert read_numbers(column(*range(21)), None).notes == ()
    assert read_numbers(column(1.0, 2.0), None).notes == ()
