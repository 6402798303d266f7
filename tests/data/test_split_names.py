"""What people call training, validation and test sets."""

from __future__ import annotations

import pytest

from fedelta.data.split_names import chosen, kind_of, split_of_file


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["train", "Train"], "train", ["train"]),
        (["TRAIN", "test"], "train", ["TRAIN"]),
        (["Training", "Testing"], "test", ["Testing"]),
        (["train", "dev"], "val", ["dev"]),
        (["train_set", "TestData"], "test", ["TestData"]),
        (["train", "dev", "val"], "validation", ["dev", "val"]),
        (["cat", "dog"], "train", []),
        (["fold1", "fold2"], "fold1", ["fold1"]),
        (["cat", "dog"], "bird", []),  # two names that are none of a split are not the same
    ],
)
def test_a_name_means_itself_or_else_the_same_word(names, wanted, found):
    assert chosen(names, wanted) == found


@pytest.mark.parametrize(
    ("stem", "found"),
    [
        ("train", ("train", True)),
        ("Validation_0003", ("validation", True)),
        ("test-00001-of-00004", ("test", True)),
        ("my_train_data", ("train", False)),
        ("speed-test", ("test", False)),
        ("train-test", (None, False)),  # both: nobody can tell
        ("contest", (None, False)),
        ("developers", (None, False)),
        ("training2", ("train" + "ing", True)),
    ],
)
def test_the_name_of_a_file_may_speak_of_a_split(stem, found):
    assert split_of_file(stem) == found


def test_words_in_other_words_are_no_splits():
    assert [kind_of(name) for name in ("trainer", "testimony", "value", "device", "dataset")] == [None] * 5
