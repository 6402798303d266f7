from __future__ import annotations

import pytest
import torch
from torch import tensor

from fedelta.tasks.labels import Labels, read_labels
from fedelta.tasks.targets import TargetColumn

REGRESSION = '; numbers are predicted with `task.name` = "regression"'


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
        ((1, "a"), None, ["label column 'kind' holds 'int', 'str', expected integers or texts"]),
        ((None, None), None, ["label column 'kind' holds nothing, expected integers or texts"]),
        ((3, 3), None, ["label column 'kind' has one class only, '3', expected 2 or more"]),
        ((1, None, 2), (None, 1), ["training set: 1 rows without a label in column 'kind': rows 1",
                                   "test set: 1 rows without a label in column 'kind': rows 0"]),
        ((1, 2), (1, 7), ["test set: 1 rows with labels outside the 2 classes: labels '7', rows 1; expected 1, 2"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_labels_is_told(train, test, problems):
    other = None if test is None else column(*test, what="test set")
    assert list(read_labels(column(*train), other).problems) == problems


def test_class_labels_of_other_classes_are_refused():
    ours, theirs = column(0, 1, names=("a", "b")), column(0, 1, what="test set", names=("b", "a"))
    assert read_labels(ours, theirs).problems == ("test set: classes 'b', 'a' differ from the training set's 'a', 'b'",)


def test_labels_are_fetched_and_selected_by_row():
    labels = Labels(tensor([4, 5, 6]))
    assert (len(labels), labels.fetch(tensor([2, 0])).tolist()) == (3, [6, 4])
    assert labels.select(tensor([1, 2])).strata.tolist() == [5, 6]
