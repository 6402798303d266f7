from __future__ import annotations

import pytest
import torch
from torch import tensor

from fedelta.tasks.labels import Labels, read_labels
from fedelta.tasks.targets import TargetColumn

REGRESSION = (
    '; numbers are predicted with `task.name` = "regression"; where these are the numbers of classes, write them '
    "without a point"
)
GIVE = "; give them one, or keep them in a file of their own"
TEXTS = ", of one kind in all rows: write all of them as texts"


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
    found = read_labels(column(*values), None)
    assert (found.class_names, found.strata_names, found.problems, found.test) == (names, names, (), None)
    assert found.train.fetch(torch.arange(len(values))).tolist() == numbers


def test_class_labels_keep_their_order_and_those_without_rows():
    found = read_labels(column(2, 0, names=("dog", "cat", "ant")), None)
    assert (found.class_names, found.train.strata.tolist()) == (("dog", "cat", "ant"), [2, 0])


def test_a_test_set_has_the_classes_of_the_training_set():
    found = read_labels(column("b", "a", "c"), column("c", "a", what="test set"))
    assert found.test.strata.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("train", "test", "problems"),
    [
        ((0.5, 1.5), None, [f"label column 'kind' holds 'float', expected integers or texts{REGRESSION}"]),
        ((1, "a"), None, [f"label column 'kind' holds 'int', 'str', expected integers or texts{TEXTS}"]),
        ((None, None), None, ["label column 'kind' holds nothing, expected integers or texts"]),
        ((3, 3), None, ["label column 'kind' has one class only, '3', expected 2 or more"]),
        ((1, None, 2), (None, 1), [f"training set: 1 rows without a label in column 'kind': rows 1{GIVE}",
                                   f"test set: 1 rows without a label in column 'kind': rows 0{GIVE}"]),
        ((1, 2), (1, 7), ["test set: 1 rows with labels outside the 2 classes: labels '7', rows 1; expected 1, 2"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_labels_is_told(train, test, problems):
    other = None if test is None else column(*test, what="test set")
    assert list(read_labels(column(*train), other).problems) == problems


def test_class_labels_of_other_classes_are_refused():
    ours, theirs = column(0, 1, names=("a", "b")), column(0, 1, what="test set", names=("c", "d"))
    assert read_labels(ours, theirs).problems == ("test set: classes 'c', 'd' differ from the training set's 'a', 'b'",)


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
    found = read_labels(train, test)
    assert (found.problems, found.test.strata.tolist()) == ((), numbers)


@pytest.mark.parametrize(
    ("train", "test", "problem"),
    [
        (
            AB,
            column(0, 1),
            "labels are the numbers 0, 1, in the training set the names 'a', 'b': which is which is not",
        ),
        (AB, column(0, -1, names=("a", "b")), "1 rows with labels outside the 2 classes: labels '-1', rows 1"),
        (column("a", "b"), column(0, 1), "2 rows with labels outside the 2 classes: labels '0', '1'"),
        (column([1, 1], [1, 0]), None, "holds 'list', expected integers or texts; one label a row: lists of several"),
        (column("1", "2", "NA"), None, "1 rows without a label in column 'kind': rows 2 (there stands 'NA', elsewhere"),
        (column(1, 2, float("nan")), None, "1 rows without a label in column 'kind': rows 2"),
        (column("a", "b", " "), None, "1 rows without a label in column 'kind': rows 2"),
        (column("0.5", "1.5"), None, "holds texts that are numbers with a point, such as '0.5'"),
        (
            column(*(f"words {n}" for n in range(30))),
            None,
            "30 different values in 30 rows, which are rather free text",
        ),
        (column(*range(30)), None, "30 different values in 30 rows, which are rather numbers of rows, or amounts"),
    ],
)
def test_what_is_no_class_is_said(train, test, problem):
    assert problem in "\n".join(read_labels(train, test).problems)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (
            (-1, 0, 1, -1),
            "2 rows have the label '-1', which is taken as a class of its own; if it stands for an unknown",
        ),
        (("DE", "NA", "FR"), "1 rows have the label 'NA', which is taken as a class of its own"),
        (("cat", "Cat ", "dog"), "'Cat ', 'cat' are classes of their own, different in case or spaces"),
        (("a b", "c d", "e f", "a b"), "has 3 classes in 4 rows; if that is free text, name another"),
        ((-2, -1, 1, 2) * 2, None),
        (("a", "b"), None),
    ],
)
def test_classes_that_may_be_meant_otherwise_are_pointed_out(values, note):
    found = read_labels(column(*values), None)
    assert found.problems == ()
    assert found.notes == () if note is None else note in "\n".join(found.notes)


def test_labels_are_fetched_and_selected_by_row():
    labels = Labels(tensor([4, 5, 6]))
    assert (len(labels), labels.fetch(tensor([2, 0])).tolist()) == (3, [6, 4])
    assert labels.select(tensor([1, 2])).strata.tolist() == [5, 6]
