"""Which level of folders is what."""

from __future__ import annotations

import pytest

from fedelta.data.levels import infer_levels
from fedelta.errors import DataError


def places(*paths: str) -> list[tuple[str, ...]]:
    return [tuple(path.split("/")) if path else () for path in paths]


@pytest.mark.parametrize(
    ("paths", "levels"),
    [
        (("cat", "dog"), "label"),
        (("Train/cat", "Train/dog", "TEST/cat"), "split/label"),
        (("training/cat", "training/dog", "valid/cat"), "split/label"),
        (("train/cat", "train/dog"), "split/label"),
        (("test/cat", "test/dog"), "split/label"),  # and then: there is no training set
        (("cat/train", "dog/train", "cat/test"), "label/split"),
        (("set/train/cat", "set/train/dog", "set/dev/cat"), "*/split/label"),
        (("train/images/cat", "train/images/dog", "test/images/cat"), "split/*/label"),
        (("train/cat/images", "train/dog/images"), "split/label"),  # as in Tiny ImageNet
        (("cat", "cat/close", "dog"), "label"),  # one folder more says nothing
        (("train/cat", "test/dog", "extra/dog"), "split/label"),  # two classes `train` and `test`: nobody has them
        (("train", "bus", "car"), "label"),  # vehicles
        (("dev", "prod"), "label"),
        (("train/cat", "train/dog", "test"), "split/label"),  # an empty folder of a test set
    ],
)
def test_folders_that_can_be_read_in_one_way_only_are(paths, levels):
    assert "/".join(infer_levels(places(*paths), ["train", "test"], needs_label=True)) == levels


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (
            ("site-1/cat", "site-2/cat", "site-2/dog"),
            r"3 ways: 'client/label' \(clients 'site-1', 'site-2', classes 'cat', 'dog'\); 'label/client' .*; 'label' ",
        ),
        (("a/train/cat", "b/train/dog", "a/test/cat"), r"'client/split/label' \(.*'label/split/client'.*'label/split'"),
        (("train/a/cat", "train/b/dog", "test/a/cat"), r"'split/client/label' \(.*'split/label/client'.*'split/label'"),
        (("animal/cat", "animal/dog", "car/bus"), r"clients 'animal', 'car', classes 'bus', 'cat', 'dog'"),
        (("cat/a", "cat/b", "dog"), r"'label' \(classes 'cat', 'dog'\)"),
        (("train/x/1", "bus/x/2", "car/x/2"), "'train' may be the training set or a class, beside 'bus', 'car'"),
    ],
)
def test_folders_that_can_be_read_in_several_ways_are_refused_with_each(paths, words):
    with pytest.raises(DataError, match=f"(?s){words}.*hint: set `data.folders`"):
        infer_levels(places(*paths), ["train", "test"], needs_label=True)


def test_where_files_are_called_by_their_class_only_splits_are_looked_for():
    result = infer_levels(places("a/train", "b/train", "a/test"), ["train", "test"], needs_label=False)
    assert result == ("*", "split")
    assert infer_levels(places("a/b", "c/d"), ["train", "test"], needs_label=False) == ()


def test_names_of_splits_of_ones_own_are_known():
    assert infer_levels(places("f1/cat", "f2/dog"), ["f1", "f2"], needs_label=True) == ("split", "label")
