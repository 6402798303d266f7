from __future__ import annotations

import pytest
from torch import tensor

from fedelta.tasks.tags import Span, read_tags, spans
from fedelta.tasks.targets import TargetColumn


def column(*values: object, names: tuple[str, ...] | None = None, what: str = "training set") -> TargetColumn:
    return TargetColumn("tags", what, values, names)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], [Span(0, 2, "PER"), Span(3, 4, "LOC")]),
        (["O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], [Span(2, 5, "MISC")]),
        (["I-PER", "I-PER", "O"], [Span(0, 2, "PER")]),  # an I- may begin
        (["B-PER", "B-PER"], [Span(0, 1, "PER"), Span(1, 2, "PER")]),
        (["B-PER", "I-LOC"], [Span(0, 1, "PER"), Span(1, 2, "LOC")]),
        (["B-PER", "E-PER", "I-PER"], [Span(0, 2, "PER"), Span(2, 3, "PER")]),
        (["S-PER", "I-PER"], [Span(0, 1, "PER"), Span(1, 2, "PER")]),
        (["O", "O"], []),
        (["NOUN", "NOUN", "O", "VERB"], [Span(0, 1, "NOUN"), Span(1, 2, "NOUN"), Span(3, 4, "VERB")]),
    ],
)
def test_spans_of_tags(tags: list[str], expected: list[Span]):
    assert spans(tags) == expected


def test_tags_are_numbered_with_outside_first_and_padded():
    read = read_tags(column(["B-X", "O"], ["O", "O", "I-X"]), column(["I-X"], what="test set"))
    assert read.class_names == ("O", "B-X", "I-X")
    assert read.train.fetch(tensor([1, 0])).tolist() == [[0, 0, 2], [1, 0, -100]]
    assert read.train.select(tensor([1])).fetch(tensor([0])).tolist() == [[0, 0, 2]]
    assert read.test.fetch(tensor([0])).tolist() == [[2]]
    # Three words have O, the others one each: rows have the rarest of their tags.
    assert read.train.strata.tolist() == [1, 2]


def test_class_labels_keep_their_order():
    read = read_tags(column([1, 0], [0, 2], names=("O", "B-X", "B-Y")), None)
    assert (read.class_names, read.train.values.tolist()) == (("O", "B-X", "B-Y"), [1, 0, 0, 2])


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (
            column("O", "O"),
            "training set: tag column 'tags' holds 'str', expected a list with a tag for each word; to pre",
        ),
        (column(None, None), "training set: tag column 'tags' holds no values, expected a list"),
        (column(["O", "B-X"], []), "training set: tag column 'tags' holds no tags in 1 rows: rows 1"),
        (column(["O", None], ["B-X"]), "training set: tag column 'tags' holds a word without a tag in 1 rows: rows 0"),
        (column([0.5], [1.0]), "training set: tag column 'tags' holds lists of 'float', expected lists of texts or of"),
        (column(["O"], ["O"]), "tag column 'tags' has only one tag, 'O'"),
    ],
)
def test_problems_with_tags_are_reported(train: TargetColumn, problem: str):
    assert read_tags(train, None).problems[0].startswith(problem)


def test_tags_of_the_test_set_are_those_of_the_training_set():
    read = read_tags(column(["O", "B-X"]), column(["B-Y"], what="test set"))
    assert read.problems == ("test set: the tags 'B-Y' are not among 'O', 'B-X'",)


def test_tags_without_a_prefix_are_told():
    assert "'NOUN' have no prefix B- or I-: each such word is a span" in read_tags(column(["NOUN", "O"]), None).notes[0]
    assert read_tags(column(["B-X", "O"]), None).notes == ()
