from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
import torch
from torch import tensor

from fedelta.tasks.labels import Labels, read_labels
from fedelta.tasks.targets import TargetColumn

REGRESSION = (
    '; to predict numbers, set `task.name` = "regression"; if these are class numbers, write them without a decimal '
    "point"
)
GIVE = '; label them, move them to another file, or leave them out (`data.on_error = "skip"`)'
TEXTS = "; values of several types cannot be sorted: write all of them as texts"
CONVERT = "; convert the column to one of these"


def column(*values: object, what: str = "training set", names: tuple[str, ...] | None = None) -> TargetColumn:
    return TargetColumn("kind", what, values, names)


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        ((30, 10, 30, 20), ("10", "20", "30"), [2, 0, 2, 1]),
        (("b", "a", "b"), ("a", "b"), [1, 0, 1]),
        (("10", "9", "010"), ("9", "010", "10"), [2, 0, 1]),  # as numbers; two ways to write one are two classes
        ((True, False), ("False", "True"), [1, 0]),
    ],
)
def test_classes_are_the_values_in_order(values, names, numbers):
    targets = read_labels(column(*values), None)
    assert (targets.class_names, targets.strata_names, targets.problems, targets.test) == (names, names, (), None)
    assert targets.train.fetch(torch.arange(len(values))).tolist() == numbers


def test_class_labels_keep_their_order_and_those_without_rows():
    targets = read_labels(column(2, 0, names=("dog", "cat", "ant")), None)
    assert (targets.class_names, targets.train.strata.tolist()) == (("dog", "cat", "ant"), [2, 0])


def test_a_test_set_has_the_classes_of_the_training_set():
    targets = read_labels(column("b", "a", "c"), column("c", "a", what="test set"))
    assert targets.test.strata.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("train", "test", "problems"),
    [
        ((0.5, 1.5), None, [f"label column 'kind' holds 'float', expected integers or texts{REGRESSION}"]),
        ((1, "a"), None, [f"label column 'kind' holds 'int', 'str', expected integers or texts{TEXTS}"]),
        ((None, None), None, ["label column 'kind' holds no values, expected integers or texts"]),
        ((b"a", b"b"), None, [f"label column 'kind' holds 'bytes', expected integers or texts{CONVERT}"]),
        ((date(2026, 1, 1),), None, [f"label column 'kind' holds 'date', expected integers or texts{CONVERT}"]),
        ((Decimal("0.5"),), None, [f"label column 'kind' holds 'Decimal', expected integers or texts{CONVERT}"]),
        ((3, 3), None, ["label column 'kind' has only one class, '3', expected 2 or more"]),
        ((1, None, 2), (None, 1), [f"training set: 1 rows without a label in column 'kind': rows 1{GIVE}",
                                   f"test set: 1 rows without a label in column 'kind': rows 0{GIVE}"]),
        ((1, 2), (1, 7), ["test set: 1 rows with labels outside the 2 classes: labels '7', rows 1; expected 1, 2"]),
    ],
)  # fmt: skip
def test_problems_with_labels_are_reported(train, test, problems):
    test_column = None if test is None else column(*test, what="test set")
    assert list(read_labels(column(*train), test_column).problems) == problems


def test_class_labels_of_other_classes_are_refused():
    train, test = column(0, 1, names=("a", "b")), column(0, 1, what="test set", names=("c", "d"))
    (problem,) = read_labels(train, test).problems
    assert problem == (
        "test set: none of its classes 'c', 'd' is in the training set, which has 'a', 'b'; use the same class names "
        "in both"
    )


AB = column(0, 1, names=("a", "b"))


@pytest.mark.parametrize(
    ("train", "test", "numbers"),
    [
        (AB, column(0, 1, 1, names=("b", "a")), [1, 0, 0]),  # another order
        (AB, column(2, 0, names=("b", "c", "a")), [0, 1]),  # one more class, of which there is no row
        (AB, column("b", "a"), [1, 0]),
        (column("a", "b"), column(0, 1, names=("b", "a")), [1, 0]),
        (column(7, 9), column("9", "7"), [1, 0]),
        (column("7", "9"), column(9, 7), [1, 0]),
        (column(0, 1, names=("0", "1")), column(1, 0), [1, 0]),
        (column([7], [9]), column([9], [7]), [1, 0]),
        (column([0, 1], [1, 0]), column([1, 0], [0, 1]), [0, 1]),
        (column(0, 1), column([1.0, 0.0], [0.0, 1.0]), [0, 1]),
    ],
)
def test_the_classes_of_a_test_set_are_matched_by_name(train, test, numbers):
    targets = read_labels(train, test)
    assert (targets.problems, targets.test.strata.tolist()) == ((), numbers)


@pytest.mark.parametrize(
    ("train", "test", "problem"),
    [
        (
            AB,
            column(0, 1),
            "labels are the numbers 0, 1, but the training set has the names 'a', 'b', and they cannot be matched",
        ),
        (AB, column(0, -1, names=("a", "b")), "1 rows with labels outside the 2 classes: labels '-1', rows 1"),
        (column("a", "b"), column(0, 1), "2 rows with labels outside the 2 classes: labels '0', '1'"),
        (column([1, 1], [1, 0]), None, "holds 'list', expected integers or texts; each row needs exactly one label"),
        (column("1", "2", "NA"), None, "1 rows without a label in column 'kind': rows 2 (they hold 'NA', the others"),
        (column(1, 2, float("nan")), None, "1 rows without a label in column 'kind': rows 2"),
        (column("a", "b", " "), None, "1 rows without a label in column 'kind': rows 2"),
        (column("0.5", "1.5"), None, "holds decimal numbers as text, such as '0.5'"),
        (
            column(*(f"words {n}" for n in range(30))),
            None,
            "30 different values in 30 rows: that looks like free text (such as 'words 0'), not classes",
        ),
        (column(*range(30)), None, "30 different values in 30 rows: that looks like row numbers or amounts, not"),
    ],
)
def test_values_that_cannot_be_classes_are_refused(train, test, problem):
    assert problem in "\n".join(read_labels(train, test).problems)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (
            (-1, 0, 1, -1),
            "2 rows have the label '-1', which counts as a class; if it means that the label is unknown, move",
        ),
        (("DE", "NA", "FR"), "1 rows have the label 'NA', which counts as a class"),
        (("cat", "Cat ", "dog"), "'Cat ', 'cat' count as different classes, but differ only in case or spaces"),
        (("a b", "c d", "e f", "a b"), "has 3 classes in 4 rows; if it holds free text, set `data.label_column`"),
        ((-2, -1, 1, 2) * 2, None),
        (("a", "b"), None),
    ],
)
def test_classes_that_may_be_mistakes_are_noted(values, note):
    targets = read_labels(column(*values), None)
    assert targets.problems == ()
    assert targets.notes == () if note is None else note in "\n".join(targets.notes)


def test_labels_are_fetched_and_selected_by_row():
    labels = Labels(tensor([4, 5, 6]))
    assert (len(labels), labels.fetch(tensor([2, 0])).tolist()) == (3, [6, 4])
    assert labels.select(tensor([1, 2])).strata.tolist() == [5, 6]


def test_texts_that_mostly_occur_once_are_no_classes():
    # 30 answers occur 20 times each, 40 once: 70 values in 640 rows.
    usual, single = [f"answer {number}" for number in range(30)] * 20, [f"text {number}" for number in range(40)]
    (problem,) = read_labels(column(*usual, *single), None).problems
    assert "has 70 different values, 40 of them once, in 640 rows: that looks like free text" in problem
    assert '`task.name` = "language"' in problem
    assert read_labels(column(*usual, *single[:30]), None).problems == ()


def test_sentences_are_no_classes():
    sentences = [f"{number} is what I have been asked to write down as my answer to you" for number in range(21)] * 5
    (problem,) = read_labels(column(*sentences), None).problems
    assert "has 21 different values in 105 rows: that looks like free text" in problem
    assert read_labels(column(*sentences[:20], *sentences[:20]), None).problems == ()


def test_many_numbers_with_gaps_may_be_amounts():
    amounts = [7 * number for number in range(21)] * 3
    (note,) = read_labels(column(*amounts), None).notes
    assert "21 different whole numbers from 0 to 140, each of which counts as a class" in note
    assert '`task.name` = "regression"' in note
    assert read_labels(column(*[number + 1 for number in range(21)] * 3), None).notes == ()


def test_one_hot_columns_are_classes_with_their_names():
    sides = TargetColumn("cat, dog", "training set", [[0, 1], [1, 0]], parts=("cat", "dog"))
    read = read_labels(sides, None)
    assert (read.class_names, read.train.values.tolist()) == (("cat", "dog"), [1, 0])
