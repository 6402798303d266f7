"""Labels of a site in terms of the classes of a whole federation."""

from __future__ import annotations

import pytest

from fedelta.tasks.known_classes import OTHERS, KnownClasses
from fedelta.tasks.labels import read_labels
from fedelta.tasks.targets import TargetColumn

CAT_DOG_EEL = KnownClasses(("cat", "dog", "eel"), may_lack=True)


def column(values: list[object], class_names: tuple[str, ...] | None = None) -> TargetColumn:
    return TargetColumn("label", "training set", values, class_names)


def labels(known: KnownClasses, values: list[object], class_names: tuple[str, ...] | None = None) -> list[int]:
    applied, problems = known.applied(column(values, class_names))
    assert problems == []
    read = read_labels(applied, None)
    assert read.class_names == known.names
    assert read.problems == ()
    return read.train.fetch(slice(None)).tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "values", "class_names", "expected"),
    [
        (CAT_DOG_EEL, ["eel", "cat"], None, [2, 0]),
        (CAT_DOG_EEL, ["dog"], None, [1]),  # a single class, which a data set alone may not have
        (CAT_DOG_EEL, [1, 0], ("dog", "eel"), [2, 1]),  # class labels of the site's own
        (CAT_DOG_EEL, ["Dog ", "EEL"], None, [1, 2]),  # differs in case and spaces only
        (KnownClasses(("0", "1", "2")), [2, 0, 1], None, [2, 0, 1]),
        (KnownClasses(("2", "10")), ["10", "2"], None, [1, 0]),
        (CAT_DOG_EEL, [["cat"], ["dog"]], None, [0, 1]),
    ],
)
def test_labels_are_matched_by_name(known, values, class_names, expected):
    assert labels(known, values, class_names) == expected


def test_names_that_differ_only_in_case_stay_two_classes():
    assert labels(KnownClasses(("a", "A")), ["A", "a"]) == [1, 0]


def test_a_class_that_the_federation_does_not_have_is_named():
    _, problems = CAT_DOG_EEL.applied(column(["cat", "fox", None]))
    assert len(problems) == 1
    assert "has 1 classes that the federation does not have: 'fox'; expected 'cat', 'dog', 'eel'" in problems[0]


def test_many_foreign_values_are_counted_and_not_told():
    _, problems = CAT_DOG_EEL.applied(column([f"patient {number}" for number in range(30)]))
    assert "has 30 classes that the federation does not have; expected" in problems[0]
    assert "patient" not in problems[0]


def test_classes_that_the_data_lack_are_named_unless_they_may_be_missing():
    _, problems = KnownClasses(("cat", "dog", "eel")).applied(column(["dog"]))
    assert "lacks 2 of the federation's 3 classes: 'cat', 'eel'; if that is right" in problems[0]
    assert CAT_DOG_EEL.applied(column(["dog"]))[1] == []


def test_a_test_set_may_lack_classes():
    assert KnownClasses(("cat", "dog")).applied(column(["dog"]), is_training=False)[1] == []


def test_a_missing_label_stays_missing():
    applied, _ = CAT_DOG_EEL.applied(column(["cat", None]))
    assert "1 rows without a label" in read_labels(applied, None).problems[0]


def test_the_classes_of_data_with_a_single_one_are_found_if_that_is_allowed():
    found = KnownClasses((), may_lack=True)
    assert found.found_in(column(["dog", "dog"]), None).names == ("dog", OTHERS)
    assert found.found_in(column([10, 2]), column([7])).names == ("2", "7", "10")
    assert found.found_in(column([f"text {number}" for number in range(30)])) == found
    assert KnownClasses(()).found_in(column(["dog"])) == KnownClasses(())


def test_lists_of_labels_are_matched_label_by_label():
    applied, problems = CAT_DOG_EEL.applied(column([["dog", "cat"], [], ["EEL"]]))
    assert (list(applied.values), applied.class_names, problems) == ([[1, 0], [], [2]], ("cat", "dog", "eel"), [])
    applied, _ = CAT_DOG_EEL.applied(column([[1], [1, 0]], ("eel", "dog")))
    assert list(applied.values) == [[1], [1, 2]]
    _, problems = CAT_DOG_EEL.applied(column([["cat", "fox"]]))
    assert "has 1 classes that the federation does not have: 'fox'" in problems[0]
    _, problems = KnownClasses(("cat", "dog", "eel")).applied(column([["dog"], ["dog", "eel"]]))
    assert "lacks 1 of the federation's 3 classes: 'cat'" in problems[0]
    assert KnownClasses((), may_lack=True).found_in(column([["b", "a"], []])).names == ("a", "b")
