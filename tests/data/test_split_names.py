"""What people call training, validation and test sets."""

from __future__ import annotations

import pytest

from fedelta.data.split_names import matching_splits, split_kind, split_of_file


@pytest.mark.parametrize(
    ("names", "split", "matches"),
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
def test_a_name_means_itself_or_else_the_same_word(names, split, matches):
    assert matching_splits(names, split) == matches


@pytest.mark.parametrize(
    ("stem", "matches"),
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
def test_the_name_of_a_file_may_speak_of_a_split(stem, matches):
    assert split_of_file(stem) == matches


def test_words_in_other_words_are_no_splits():
    assert [split_kind(name) for name in ("trainer", "testimony", "value", "device", "dataset")] == [None] * 5
