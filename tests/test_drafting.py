"""`fedelta new`: a look at data, and a configuration that `fedelta check` accepts."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.inference.adapters import write_tokenizer
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


def test_the_table_of_the_how_to_page_is_understood(tmp_path):
    write_rows(
        tmp_path / "letters.jsonl", [{"text": f"t{i}", "topic": "ab"[i % 2], "office": i % 4} for i in range(20)]
    )
    found = look(str(tmp_path / "letters.jsonl"))
    assert found.data == {"text_column": "text", "label_column": "topic", "client_column": "office"}


def test_numbers_with_a_point_are_for_regression(tmp_path):
    write_rows(tmp_path / "ages.jsonl", [{"text": f"t{i}", "label": i / 2} for i in range(20)])
    assert look(str(tmp_path / "ages.jsonl")).task == "regression"


def test_words_with_tags_are_for_the_task_tokens(tmp_path):
    write_rows(tmp_path / "tags.jsonl", [{"words": ["a", "b"], "tags": ["X", "Y"]} for _ in range(20)])
    found = look(str(tmp_path / "tags.jsonl"))
    assert (found.kind, found.task) == ("words", "tokens")
    assert found.data == {"words_column": "words", "label_column": "tags"}


def write_texts(place: Path) -> str:
    rows = [{"text": "not a dog" if i % 2 else "the cat sits", "label": "ab"[i % 2], "site": i % 3} for i in range(60)]
    write_rows(place / "data.jsonl", rows)
    return "data.jsonl"


def write_csv(place: Path) -> str:
    rows = "".join(f"the {('dog', 'cat')[i % 2]} sits,{('a', 'b')[i % 2]},{i % 3}\n" for i in range(60))
    (place / "data.csv").write_text(f"text,label,hospital\n{rows}")
    return "data.csv"


def write_tags(place: Path) -> str:
    write_rows(place / "data.jsonl", [{"words": ["the", "dog"], "tags": ["X", "Y"], "site": i % 3} for i in range(60)])
    return "data.jsonl"


def write_numbers(place: Path) -> str:
    write_rows(place / "data.jsonl", [{"text": f"the {'dog' * (i % 3)}", "label": i / 7} for i in range(60)])
    return "data.jsonl"


def write_talk(place: Path) -> str:
    rows = [{"instruction": f"say {i}", "response": str(i), "user": f"u{i % 3}"} for i in range(60)]
    write_rows(place / "data.jsonl", rows)
    return "data.jsonl"


def write_sounds(place: Path) -> str:
    for label, hertz in (("yes", 300), ("no", 900)):
        (place / "data" / label).mkdir(parents=True)
        for index in range(12):
            (place / "data" / label / f"{index}.wav").write_bytes(encoded(tone(hertz + 20 * index)))
    return "data"


def write_pictures(place: Path) -> str:
    write_images(place / "data", ["cat", "dog"], num=12)
    return "data"


def write_parquet(place: Path) -> str:
    import datasets

    write_images(place / "images", ["cat", "dog"], num=12)
    rows = [{"image": str(path), "label": path.parent.name} for path in sorted(place.glob("images/*/*.png"))]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.map(lambda row: row).to_parquet(place / "data.parquet")
    return "data.parquet"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "is_text"),
    [(write_texts, True), (write_csv, True), (write_tags, True), (write_numbers, True), (write_talk, False),
     (write_sounds, False), (write_pictures, False), (write_parquet, False)],
)  # fmt: skip
def test_what_is_written_is_checked_and_runs(write, is_text, fedelta, tmp_path):
    source = write(tmp_path)
    options = []
    if is_text:
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(**sizes, vocab_size=20)).save_pretrained(tmp_path / "bert")
        write_tokenizer(tmp_path / "bert")
        options = ["--model", "bert"]
    assert fedelta("new", source, *options)[0] == 0
    code, out, err = fedelta("check", "data.toml")
    assert code == 0, err
    assert "data.toml: good." in out
    code, _, err = fedelta("run", "data.toml", "--set", "strategy.num_rounds=1", "--quiet", "--out", "run")
    assert code == 0, err
    assert (tmp_path / "run" / "report.html").is_file()


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


@pytest.fixture
def answers(monkeypatch):
    """Lets a person at a terminal type these lines."""

    def types(*lines: str) -> None:
        typed = io.StringIO("".join(f"{line}\n" for line in lines))
        monkeypatch.setattr(typed, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", typed)

    return types


def test_a_person_is_asked_for_data_model_and_clients(fedelta, answers, tmp_path):
    write_images(tmp_path / "pets", ["cat", "dog"], num=40)
    answers("pets", "", "5")
    code, out, _ = fedelta("new")
    assert code == 0
    for text in (
        "data (a folder of images or recordings, or a table): ",
        "found images: 80 training rows, task classification\n",
        "model (empty for a small one): ",
        "number of clients to divide the rows among [8]: ",
    ):
        assert text in out
    table = tomllib.loads((tmp_path / "pets.toml").read_text())
    assert table["model"]["source"] == "bundled:vit-micro"
    assert table["partition"] == {"name": "iid", "num_clients": 5}


def test_a_person_is_asked_what_folders_are(fedelta, answers, tmp_path):
    write_images(tmp_path / "scans", [f"{site}/{label}" for site in ("oslo", "rome") for label in ("ill", "well")], 4)
    answers("scans", "client/label", "bundled:resnet-micro")
    code, out, _ = fedelta("new", "--set", "tuning.r=2")
    assert code == 0
    assert "the folders can be read in 3 ways: 'client/label' (clients 'oslo', 'rome', classes 'ill', 'well');" in out
    assert "the levels of folders, from the top: " in out
    assert "number of clients" not in out  # the data name them
    table = tomllib.loads((tmp_path / "scans.toml").read_text())
    assert (table["data"]["folders"], table["partition"]) == ("client/label", {"name": "natural"})
    assert (table["model"]["source"], table["tuning"]["r"]) == ("bundled:resnet-micro", 2)


def test_a_person_is_told_what_else_is_wrong_with_data(fedelta, answers, tmp_path):
    (tmp_path / "empty").mkdir()
    answers("empty")
    code, _, err = fedelta("new")
    assert code == 2
    assert "'empty'" in err
    assert not list(tmp_path.glob("*.toml"))


def test_folders_that_can_be_read_in_several_ways_come_with_the_option_that_decides(fedelta, tmp_path):
    write_images(tmp_path / "scans", [f"{site}/{label}" for site in ("oslo", "rome") for label in ("ill", "well")], 4)
    code, _, err = fedelta("new", "scans")
    assert code == 2
    assert "`--set data.folders=client/label`" in err


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
