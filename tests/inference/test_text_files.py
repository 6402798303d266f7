"""Texts in files, one a line."""

from __future__ import annotations

import pytest

from fedelta.errors import DataError
from fedelta.inference.text_files import texts_of


def test_the_lines_of_a_file_stand_in_its_place(tmp_path):
    (tmp_path / "notes.txt").write_bytes("\ufefffirst\r\n\r\n  zweite Zäile \n".encode())
    assert texts_of(["before", str(tmp_path / "notes.txt"), "after"]) == ["before", "first", "zweite Zäile", "after"]


def test_a_file_of_any_name_is_read(tmp_path):
    (tmp_path / "notes").write_text("a\nb")
    assert texts_of([str(tmp_path / "notes")]) == ["a", "b"]


@pytest.mark.parametrize("text", ["I read a.txt", "plain", "x" * 5000, "a/b", "", "two\nlines.txt"])
def test_what_is_no_path_of_a_file_is_a_text(text):
    assert texts_of([text]) == [text]


def test_files_without_text_are_refused_together(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "zeros").write_bytes(b"\0\0\0")
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "letters.csv").write_text("text,label\ngood,1\n")
    names = ("photo.png", "zeros", "empty.txt", "absent.txt", "letters.csv")
    with pytest.raises(DataError) as error:
        texts_of([str(tmp_path / name) for name in names])
    message = str(error.value)
    assert "photo.png' is not text in UTF-8" in message
    assert "zeros' is not text, but binary" in message
    assert "empty.txt' has no text in it" in message
    assert "absent.txt': No such file or directory" in message
    assert "letters.csv' is a table" in message
    assert error.value.hint is not None
    assert "one text a line; of a table write the column of texts" in error.value.hint
