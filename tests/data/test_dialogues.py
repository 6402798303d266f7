from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.small_language import dialogues, write_table

from fedelta.data.sources import DataSource, read
from fedelta.data.stored import StoredColumn
from fedelta.errors import DataError
from fedelta.modalities.turns import messages_of, problem_of
from fedelta.tasks.classification import Classification
from fedelta.tasks.language import Language

CHAT = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]


def read_rows(folder: Path, rows: list[dict], **fields: object):
    table = write_table(folder / "rows.jsonl", rows)
    return read(DataSource(source=str(table), **fields), seed=0, task=Language())


def first(raw) -> object:
    return raw.train.dataset.with_format("arrow")[:1].column(0).to_pylist()[0]


def test_prompt_and_response_are_found_and_joined(tmp_path: Path):
    raw = read_rows(tmp_path, dialogues(10))
    assert raw.columns.input == "dialogue"
    assert raw.train.dataset.column_names == ["dialogue", "client"]
    assert set(first(raw)) == {"prompt", "response"}


@pytest.mark.parametrize(("prompt", "response"), [("instruction", "output"), ("question", "answer")])
def test_the_usual_names_of_instruction_data_are_known(tmp_path: Path, prompt: str, response: str):
    raw = read_rows(tmp_path, [{prompt: f"a{row}", response: "b"} for row in range(4)])
    assert str(first(raw)["prompt"]).startswith("a")


def test_columns_can_be_named(tmp_path: Path):
    rows = [{"q": "a", "a": "b", "text": "c"} for _ in range(4)]
    raw = read_rows(tmp_path, rows, prompt_column="q", response_column="a")
    assert first(raw) == {"prompt": "a", "response": "b"}


@pytest.mark.parametrize(("prompt", "subject"), [("instruction", "input"), ("question", "context")])
def test_what_a_prompt_is_about_follows_it(tmp_path: Path, prompt: str, subject: str):
    rows = [{prompt: "Add.", subject: text, "output": "3"} for text in ("1 and 2", "", " ", None)]
    raw = read_rows(tmp_path, [*rows, *rows])
    dataset = raw.train.dataset.with_format("arrow")[:]
    prompts = {row["prompt"] for row in dataset.column("dialogue").to_pylist()}
    assert prompts == {"Add.\n\n1 and 2", "Add."}
    named = read_rows(tmp_path, [*rows, *rows], prompt_column=prompt)
    assert {first(named)["prompt"]} == {"Add."}


def test_contents_of_several_types_are_read_as_they_are_written(tmp_path: Path):
    parts = [{"type": "text", "text": "Hello."}]
    chats = [{"messages": [CHAT[0], {**CHAT[1], "content": parts}]}] * 4
    calls = [{"messages": [CHAT[0], {**CHAT[1], "tool": {"name": row}}, CHAT[1]]} for row in (1, "a", None, [])]
    for rows in (chats, calls):
        raw = read_rows(tmp_path, rows)
        column = StoredColumn.of(raw.train.dataset, raw.columns.input, origin="training set")
        assert [problem_of(value) for chunk in column.chunks() for value in chunk] == [None] * len(column)
        (value,) = column.take(torch.tensor([0]))
        assert messages_of(value)[:2] == CHAT


def test_messages_and_texts_are_read(tmp_path: Path):
    assert first(read_rows(tmp_path, [{"messages": CHAT}] * 4)) == CHAT
    assert first(read_rows(tmp_path, [{"text": "Once."}] * 4)) == "Once."


def test_a_text_beside_prompts_is_left_alone(tmp_path: Path):
    assert first(read_rows(tmp_path, [{"prompt": "a", "response": "b", "text": "ab"}] * 4))["prompt"] == "a"


@pytest.mark.parametrize(
    ("rows", "fields", "problem"),
    [
        ([{"a": "x"}] * 4, {}, "found no column of dialogues among 'a'; set `data.prompt_column` and"),
        ([{"messages": json.dumps(CHAT)}] * 4, {}, "column 'messages' holds texts, expected lists of messages with"),
        ([{"m": "a"}] * 4, {"messages_column": "m"}, "for plain texts set `data.text_column`"),
        ([{"prompt": "a", "response": "b", "messages": CHAT}] * 4, {}, "found several forms of dialogues"),
        ([{"text": "a"}] * 4, {"prompt_column": "q"}, "no column 'q' (`data.prompt_column`), the columns are 'text'"),
        ([{"text": "a", "y": 1}] * 4, {"label_column": "y"}, "`data.label_column` is 'y', which a language model does"),
        ([{"text": "a", "messages": CHAT}] * 4, {"text_column": "text", "messages_column": "messages"}, "are set; set"),
        ([{"messages": CHAT[:1]}] * 4, {}, "training set, 4 dialogues: has no turn of the assistant; first row 0"),
        ([{"prompt": "a", "response": ""}] * 4, {}, "training set, 4 dialogues: has an empty response"),
        ([{"prompt": "a", "response": 4}] * 4, {}, "has a response of type int, expected a text"),
    ],
)
def test_data_without_dialogues_are_refused(tmp_path: Path, rows: list[dict], fields: dict, problem: str):
    with pytest.raises(DataError) as error:
        read_rows(tmp_path, rows, **fields)
    assert problem in str(error.value)


def test_a_test_set_without_the_column_is_refused(tmp_path: Path):
    test = write_table(tmp_path / "test.jsonl", [{"text": "a"}] * 4)
    with pytest.raises(DataError, match="test set: no column 'prompt' as in the training set"):
        read_rows(tmp_path, dialogues(4), test_source=str(test))


def test_columns_of_dialogues_belong_to_language_models(tmp_path: Path):
    table = write_table(tmp_path / "rows.jsonl", [{"text": f"a{row}", "label": row % 2} for row in range(8)])
    with pytest.raises(DataError, match=r"`data.messages_column` is set, but task 'classification' reads no dialogues"):
        read(DataSource(source=str(table), messages_column="text"), seed=0, task=Classification())


def test_test_rows_are_drawn_from_all(tmp_path: Path):
    raw = read_rows(tmp_path, dialogues(20))
    assert (len(raw.train), len(raw.test)) == (16, 4)
    assert raw.train.targets.strata is None
    assert torch.equal(raw.train.targets.fetch(torch.tensor([0])), torch.ones(1))
