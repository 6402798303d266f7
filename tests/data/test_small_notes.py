from __future__ import annotations

import pytest

from fedelta.data.small_notes import PATTERNS, TAGS, notes
from fedelta.data.sources import DataSource, read
from fedelta.tasks.tags import spans
from fedelta.tasks.tokens import Tokens


@pytest.fixture(scope="module")
def sets():
    return notes()


def parts(rows, kind: str) -> set[str]:
    """The texts of all spans of a kind."""
    return {
        " ".join(row["words"][span.start : span.end])
        for row in rows
        for span in spans([TAGS[tag] for tag in row["tags"]])
        if span.kind == kind
    }


def test_the_notes_are_always_the_same(sets):
    assert notes()["train"].to_dict() == sets["train"].to_dict()
    assert (len(sets["train"]), len(sets["test"])) == (1200, 300)


def test_every_note_is_a_pattern_whose_spans_stand_for_its_names(sets):
    marks = {"PER": "{person}", "LOC": "{place}", "DATE": "{date}"}
    for row in sets["train"]:
        tags = [TAGS[tag] for tag in row["tags"]]
        marked = {span.start: marks[span.kind] for span in spans(tags)}
        words = [
            marked.get(place, "{number}" if word.isdigit() else word)
            for place, (word, tag) in enumerate(zip(row["words"], tags, strict=True))
            if not tag.startswith("I-")
        ]
        assert " ".join(words) in {pattern for patterns in PATTERNS.values() for pattern in patterns}


def test_no_name_and_no_day_of_the_test_is_in_the_training_notes(sets):
    names = {
        name: {word for person in parts(rows, "PER") for word in person.split()}
        | {place.split()[-1] for place in parts(rows, "LOC")}
        for name, rows in sets.items()
    }
    days = {name: {" ".join(date.split()[:2]) for date in parts(rows, "DATE")} for name, rows in sets.items()}
    assert len(names["test"]) > 40
    assert not names["train"] & names["test"]
    assert len(days["test"]) > 20
    assert not days["train"] & days["test"]


def test_a_family_may_have_the_name_of_a_place(sets):
    families = {person.split()[1] for person in parts(sets["test"], "PER") if " " in person}
    assert len(families & {place.split()[-1] for place in parts(sets["test"], "LOC")}) > 10


def test_it_is_a_data_source_of_six_sites_with_different_mixtures():
    raw = read(DataSource(source="small-notes", client_column="site"), seed=0, task=Tokens())
    assert sorted(set(raw.train_ids.names)) == sorted(PATTERNS)
    assert raw.class_names == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-DATE", "I-DATE")
