"""`fedelta new`: a look at data, and a configuration that `fedelta check` accepts."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.sounds import encoded, tone

from fedelta.cli import main
from fedelta.drafting import draft, look
from fedelta.errors import InputError


@pytest.fixture
def fedelta(monkeypatch, capsys, tmp_path):
    """Calls the command in an empty folder; gives the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedelta", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def write_images(folder: Path, places: list[str], num: int = 8) -> None:
    generator = np.random.default_rng(0)
    for place in places:
        (folder / place).mkdir(parents=True)
        for index in range(num):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{index}.png")


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_images_by_class_are_divided_among_the_clients_that_were_asked_for(fedelta, tmp_path):
    write_images(tmp_path / "pets", ["cat", "dog"], num=40)
    code, out, err = fedelta("new", "pets", "--clients", 4)
    assert (code, err) == (0, "")
    assert out == "images: 80 training rows, task classification\nwrote pets.toml; next: fedelta check pets.toml\n"
    table = tomllib.loads((tmp_path / "pets.toml").read_text())
    assert table["data"] == {"source": "pets"}
    assert table["partition"] == {"name": "iid", "num_clients": 4}
    assert table["strategy"]["clients_per_round"] == 4
    assert fedelta("check", "pets.toml")[0] == 0


def test_images_by_site_keep_their_sites(fedelta, tmp_path):
    write_images(tmp_path / "scans", [f"{site}/{label}" for site in ("oslo", "rome") for label in ("ill", "well")], 12)
    assert fedelta("new", "scans", "--set", "data.folders=client/label")[0] == 0
    table = tomllib.loads((tmp_path / "scans.toml").read_text())
    assert table["partition"] == {"name": "natural"}
    assert table["strategy"]["clients_per_round"] == 2
    assert table["data"]["folders"] == "client/label"
    assert fedelta("check", "scans.toml")[0] == 0


def test_recordings_are_heard(fedelta, tmp_path):
    for label in ("yes", "no"):
        (tmp_path / "words" / label).mkdir(parents=True)
        for index in range(12):
            (tmp_path / "words" / label / f"{index}.wav").write_bytes(encoded(tone(300 + 20 * index)))
    code, out, _ = fedelta("new", "words", "--clients", 2)
    assert code == 0
    assert out.startswith("recordings: 24 training rows, task classification")
    assert fedelta("check", "words.toml")[0] == 0


def test_dialogues_by_client_are_for_a_language_model(fedelta, tmp_path):
    rows = [{"instruction": f"say {i}", "response": str(i), "user": f"u{i % 3}"} for i in range(60)]
    write_rows(tmp_path / "talk.jsonl", rows)
    assert fedelta("new", "talk.jsonl")[0] == 0
    table = tomllib.loads((tmp_path / "talk.toml").read_text())
    assert table["task"] == {"name": "language"}
    assert table["data"] == {
        "source": "talk.jsonl", "prompt_column": "instruction", "response_column": "response", "client_column": "user",
    }  # fmt: skip
    assert fedelta("check", "talk.toml")[0] == 0


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_texts_names_its_columns(tmp_path, suffix):
    import pandas

    frame = pandas.DataFrame([{"text": f"t{i}", "label": "ab"[i % 2], "hospital": i % 4} for i in range(20)])
    path = tmp_path / f"notes.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    found = look(str(path))
    assert (found.kind, found.task, found.num_rows, found.num_clients) == ("texts", "classification", 20, 4)
    assert found.data == {"text_column": "text", "label_column": "label", "client_column": "hospital"}


def test_numbers_with_a_point_are_for_regression(tmp_path):
    write_rows(tmp_path / "ages.jsonl", [{"text": f"t{i}", "label": i / 2} for i in range(20)])
    assert look(str(tmp_path / "ages.jsonl")).task == "regression"


def test_words_with_tags_are_for_the_task_tokens(tmp_path):
    write_rows(tmp_path / "tags.jsonl", [{"words": ["a", "b"], "tags": ["X", "Y"]} for _ in range(20)])
    found = look(str(tmp_path / "tags.jsonl"))
    assert (found.kind, found.task) == ("words", "tokens")
    assert found.data == {"words_column": "words", "label_column": "tags"}


def test_columns_that_do_not_tell_are_asked_for(tmp_path):
    rows = [{"first": f"a{i}", "second": f"b{i}", "third": "c"} for i in range(20)]
    write_rows(tmp_path / "odd.jsonl", rows)
    with pytest.raises(InputError, match="has no columns that it knows: found the columns") as error:
        look(str(tmp_path / "odd.jsonl"))
    assert error.value.hint == "name what shall be read, such as `--set data.text_column=NAME`."
    with pytest.raises(InputError, match="does not tell which column has the targets") as error:
        look(str(tmp_path / "odd.jsonl"), given={"text_column": "first"})
    assert error.value.hint == "name it: `--set data.label_column=NAME`."
    given = ["data.text_column=first", "data.label_column=third"]
    text, _ = draft(str(tmp_path / "odd.jsonl"), overrides=given)
    assert tomllib.loads(text)["data"]["label_column"] == "third"


def test_comments_stand_above_the_keys(tmp_path):
    write_rows(tmp_path / "talk.jsonl", [{"prompt": "p", "response": "r"} for _ in range(20)])
    lines = draft(str(tmp_path / "talk.jsonl"))[0].splitlines()
    assert lines[lines.index('name = "lora"') - 1].startswith("# what is trained and sent")


def test_a_file_is_not_overwritten(fedelta, tmp_path):
    (tmp_path / "digits.toml").write_text("mine")
    code, _, err = fedelta("new", "digits")
    assert code == 2
    assert "'digits.toml' exists already, and is not overwritten." in err
    assert (tmp_path / "digits.toml").read_text() == "mine"


def test_nothing_is_asked_without_a_terminal(fedelta, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, _, err = fedelta("new")
    assert code == 2
    assert "there is no terminal to ask" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["./absent"], "does not exist"),
        (["digits", "--kind", "smells"], "`--kind` is 'smells', expected one of images, recordings"),
        (["digits", "--kind", "texts"], "has no texts: found the columns"),
        (["digits", "--set", "tuning.rr=3"], "`tuning.rr` is unknown"),
    ],
)
def test_what_cannot_be_used_writes_nothing(fedelta, tmp_path, arguments, words):
    code, _, err = fedelta("new", *arguments)
    assert code == 2
    assert words in err
    assert not list(tmp_path.iterdir())
