from __future__ import annotations

import pytest
from torch import tensor

from fedelta.tasks.label_sets import in_lists, read_label_sets
from fedelta.tasks.targets import TargetColumn


def column(*values: object, names: tuple[str, ...] | None = None, what: str = "training set") -> TargetColumn:
    return TargetColumn("tags", what, values, names)


def beside(*rows: list[object]) -> TargetColumn:
    return TargetColumn("dog, cat", "training set", rows, parts=("dog", "cat"))


FORMS = {
    "texts": column(["cat"], ["dog", "cat"], []),
    "class labels": column([1], [0, 1], [], names=("dog", "cat")),
    "columns": beside([0, 1], [1, 1], [0, 0]),
    "columns of truth values": beside([False, True], [True, True], [False, False]),
    "columns of floats": beside([0.0, 1.0], [1.0, 1.0], [0.0, 0.0]),
    "a separator": column("cat", "dog | cat", None),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_labels(form: str):
    read = read_label_sets(in_lists(FORMS[form], "|" if form == "a separator" else None), None)
    assert read.problems == ()
    of_label = dict(zip(read.class_names, read.train.fetch(tensor([0, 1, 2])).T.tolist(), strict=True))
    assert of_label == {"cat": [1.0, 1.0, 0.0], "dog": [0.0, 1.0, 0.0]}


def test_lists_of_0_and_1_of_one_length_have_an_entry_for_each_label():
    read = read_label_sets(in_lists(column([0, 0, 1], [1, 1, 0])), None)
    assert (read.class_names, read.train.values.tolist()) == (
        ("0", "1", "2"),
        [[False, False, True], [True, True, False]],
    )
    numbers = read_label_sets(in_lists(column([0], [1, 0], [10])), None)
    assert (numbers.class_names, numbers.train.values[1].tolist()) == (("0", "1", "10"), [True, True, False])


def test_the_stratum_of_a_row_is_its_rarest_label():
    # b is there once, a three times; the last row has none.
    read = read_label_sets(column(["a"], ["a", "b"], ["a"], []), column(["b", "a"], what="test set"))
    assert read.train.strata.tolist() == [0, 1, 0, 2]
    assert read.test.strata.tolist() == [1]
    assert read.strata_names == ("a", "b", "no label")
    assert read_label_sets(column(["a"], ["b"]), None).strata_names == ("a", "b")
    assert read.train.select(tensor([3, 1])).strata.tolist() == [2, 1]


def test_labels_of_the_test_set_are_those_of_the_training_set():
    read = read_label_sets(column([2], [10]), column(["10"], [], what="test set"))
    assert read.test.values.tolist() == [[False, True], [False, False]]
    read = read_label_sets(column(["a"], ["b"]), column(["a", "c"], what="test set"))
    assert read.problems == ("test set: labels 'c' are not among the 2 labels 'a', 'b'; first in rows 0",)


WHAT = "training set: label column 'tags'"
EACH = f"{WHAT} holds {{}}, expected a list of labels in each row; {{}}"


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (column("a", "b"), EACH.format("'str'", "if a text holds several labels, set `task.separator`")),
        (column(1, 2), EACH.format("'int'", 'to predict one label, set `task.name` = "classification"')),
        (column(0.5, 2.0), EACH.format("'float'", 'to predict numbers, set `task.name` = "regression"')),
        (column(None, None), f"{WHAT} holds no values, expected a list of labels"),
        (column([0.5, 1.0], [0.1, 0.2]), f"{WHAT} holds lists of 'float', expected lists of integers, of texts"),
        (column(["a", 1]), f"{WHAT} holds lists of 'int', 'str', expected"),
        (column(["a"], None, ["b"]), f"{WHAT} holds nothing in 1 rows: rows 1; label them (an empty list is no label)"),
        (column(["a"], ["a"]), "label column 'tags' has 1 labels, expected 2 or more"),
        (beside([0, 2], [1, 0.5]), "training set: label columns 'dog, cat' hold 0.5, 2, expected 0 or 1; to predict"),
        (beside(["yes", "no"]), "training set: label columns 'dog, cat' hold 'no', 'yes', expected 0 or 1"),
        (beside([0, None], [1, 1]), "training set: label column 'dog, cat' holds nothing in 1 rows: rows 0"),
    ],
)  # fmt: skip
def test_problems_with_labels_are_reported(train: TargetColumn, problem: str):
    assert read_label_sets(in_lists(train), None).problems[0].startswith(problem)


def test_labels_that_no_row_or_every_row_has_are_told():
    read = read_label_sets(column([0], [0], names=("a", "b", "c")), None)
    assert read.notes == (
        "label column 'tags': no training row has 'b', 'c'",
        "label column 'tags': every training row has 'a'",
    )
