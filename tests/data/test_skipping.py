"""`data.on_error = "skip"`: examples that cannot be read are left out, all else is unchanged."""

import csv
import json
import shutil
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedelta import Config, DataSource, Experiment
from fedelta.cli import app
from fedelta.data.label_skew import Dirichlet
from fedelta.data.sources import read
from fedelta.errors import DataError
from fedelta.models.source import ModelSource
from fedelta.report.writing import write_report
from fedelta.strategies.fedavg import FedAvg
from fedelta.tasks.language import Language
from fedelta.tasks.tokens import Tokens
from fedelta.tuning.head import Head

SIDE = 16


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def tone(path: Path, hertz: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (8000 * np.sin(np.arange(8000) * 2 * np.pi * hertz / 8000)).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples.tolist()))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def folder(root: Path, make=picture, suffix=".png", num: int = 12) -> Path:
    """Two sites with two classes each, and `num` files in each class."""
    for number, (site, label) in enumerate((s, c) for s in ("north", "south") for c in ("benign", "malignant")):
        for index in range(num):
            make(root / site / label / f"{index:02}{suffix}", 100 * (number + 1) + index)
    return root


def break_some(root: Path, suffix: str = ".png") -> list[Path]:
    """Breaks three files of `root`, each in another way."""
    broken = [root / "north/benign" / f"03{suffix}", root / "north/malignant" / f"00{suffix}",
              root / "south/benign" / f"11{suffix}"]  # fmt: skip
    cut(broken[0])
    broken[1].write_bytes(b"")
    broken[2].write_text("Thank you for your order.")
    return broken


def source(root: Path, **settings: object) -> DataSource:
    return DataSource(source=str(root), folders="client/label", **settings)


def experiment(root: Path, **settings: object) -> Experiment:
    return Experiment(
        Config(
            model=ModelSource(source="bundled:vit-micro"),
            data=source(root, **settings),
            partition=Dirichlet(num_clients=3, alpha=1.0),
            tuning=Head(),
            strategy=FedAvg(clients_per_round=2, num_rounds=1),
        )
    )


@pytest.mark.parametrize(("make", "suffix"), [(picture, ".png"), (tone, ".wav")])
def test_broken_files_are_left_out_and_named(tmp_path, make, suffix):
    root = folder(tmp_path / "data", make, suffix)
    broken = break_some(root, suffix)
    raw = read(source(root, on_error="skip"), seed=0)
    assert [Path(each.file) for each in raw.skipped] == broken
    assert [each.row for each in raw.skipped] == [3, 12, 35]
    assert all(each.reason for each in raw.skipped)
    assert len(raw.train) + len(raw.test) == 48 - 3
    assert not {3, 12, 35} & {*raw.train.numbers.tolist(), *raw.test.numbers.tolist()}


def test_a_run_is_that_of_the_data_without_the_broken_files(tmp_path):
    root = folder(tmp_path / "data")
    clean = tmp_path / "clean"
    shutil.copytree(root, clean)
    for path in break_some(root):
        (clean / path.relative_to(root)).unlink()
    skipping = experiment(root, on_error="skip").run(tmp_path / "skipping")
    expected = experiment(clean).run(tmp_path / "expected")
    assert skipping.params.keys() == expected.params.keys()
    assert all(torch.equal(skipping.params[name], expected.params[name]) for name in expected.params)

    summary = json.loads((tmp_path / "skipping/summary.json").read_text())
    assert summary["num_skipped"] == 3
    assert "num_skipped" not in json.loads((tmp_path / "expected/summary.json").read_text())
    with (tmp_path / "skipping/skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["training set"] * 3
    assert [Path(row["file"]).name for row in rows] == ["03.png", "00.png", "11.png"]
    assert "truncated" in rows[0]["reason"]
    assert not (tmp_path / "expected/skipped.csv").exists()
    write_report([tmp_path / "skipping"], tmp_path / "page.html")
    assert "3 examples could not be read and were left out" in (tmp_path / "page.html").read_text()


def test_by_default_they_are_an_error_whose_hint_names_the_setting(tmp_path):
    root = folder(tmp_path / "data")
    break_some(root)
    with pytest.raises(DataError, match=r"(?s)problems.*03.png.*--on-error skip"):
        experiment(root).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lost", ["client 'north'", "class 'benign'"])
def test_a_client_or_class_that_loses_all_its_files_is_an_error(tmp_path, lost):
    root = folder(tmp_path / "data")
    for path in root.glob("north/*/*" if "north" in lost else "*/benign/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=f"nothing is left of {lost}"):
        read(source(root, on_error="skip"), seed=0)


def test_a_test_set_that_loses_all_its_files_is_an_error(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "test"):
        for label in ("benign", "malignant"):
            for index in range(3):
                picture(root / split / label / f"{index}.png", index)
    (root / "test/benign/0.png").write_bytes(b"")
    assert len(read(DataSource(source=str(root), on_error="skip"), seed=0).test) == 5
    for path in root.glob("test/*/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="the test set:\n  - none of its 6 images can be read"):
        read(DataSource(source=str(root), on_error="skip"), seed=0)


def test_deep_images_are_not_held_for_broken(tmp_path):
    root = folder(tmp_path / "data")
    deep = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
    Image.fromarray(deep).save(root / "north/benign/00.png")
    assert not read(source(root, on_error="skip"), seed=0).skipped


CSV = (
    b"text,label,who\nvery good,1,a\nbad,0,b\nonly two,1\nsplit, comma,0,a\n,1,a\n"
    b"not \xff\xfe utf,0,b\nfine,,a\nnice,1,\n"
    b'"two\nlines",0,b\n\nbest,1,a\nworst,0,b\n'
)
GOOD_CSV = b'text,label,who\nvery good,1,a\nbad,0,b\n"two\nlines",0,b\nbest,1,a\nworst,0,b\n'
LINES = (
    b'{"text": "very good", "label": 1, "who": "a"}\n{"text": "brok\n[1, 2]\n{"text": "x\xff", "label": 1}\n'
    b'{"text": null, "label": 1, "who": "a"}\n{"text": "fine", "label": null, "who": "a"}\n'
    b'{"text": "bad", "label": 0, "who": "b"}\r\n{"text": "\\u00e9", "label": 1, "who": "b"}\n'
    b'{"text": "best", "label": 1, "who": "a"}\n{"text": "worst", "label": 0, "who": "b"}\n'
)
GOOD_LINES = (
    b'{"text": "very good", "label": 1, "who": "a"}\n{"text": "bad", "label": 0, "who": "b"}\n'
    b'{"text": "\\u00e9", "label": 1, "who": "b"}\n{"text": "best", "label": 1, "who": "a"}\n'
    b'{"text": "worst", "label": 0, "who": "b"}\n'
)
REASONS = {
    ".csv": {
        2: "it has 2 of 3 columns", 3: "it has 4 of 3 columns", 4: "it has no text", 5: "its bytes are no UTF-8",
        6: "it has no label in column 'label'", 7: "it has no client in column 'who'",
    },
    ".jsonl": {
        1: "it is not valid JSON: unterminated string starting at, character 10 of the line",
        2: "it is a JSON list, no object", 3: "its bytes are no UTF-8", 4: "it has no text",
        5: "it has no label in column 'label'",
    },
}  # fmt: skip


def table_source(path: Path, **settings: object) -> DataSource:
    return DataSource(source=str(path), client_column="who", **settings)


@pytest.mark.parametrize(("suffix", "broken", "good"), [(".csv", CSV, GOOD_CSV), (".jsonl", LINES, GOOD_LINES)])
def test_rows_of_a_table_that_cannot_be_read_are_left_out_and_the_others_are_those_of_a_good_table(
    tmp_path, suffix, broken, good
):
    (tmp_path / f"broken{suffix}").write_bytes(broken)
    (tmp_path / f"good{suffix}").write_bytes(good)
    raw = read(table_source(tmp_path / f"broken{suffix}", on_error="skip"), seed=0)
    expected = read(table_source(tmp_path / f"good{suffix}"), seed=0)
    assert {each.row: each.reason for each in raw.skipped} == REASONS[suffix]
    for ours, theirs in ((raw.train, expected.train), (raw.test, expected.test)):
        assert ours.dataset[:] == theirs.dataset[:]
        assert ours.dataset.features == theirs.dataset.features
        rows = torch.arange(len(ours))
        assert torch.equal(ours.targets.fetch(rows), theirs.targets.fetch(rows))
    with pytest.raises(DataError, match=r"(?s)cannot be read.*hint: .*--on-error skip"):
        read(table_source(tmp_path / f"broken{suffix}"), seed=0)


def test_a_quotation_mark_that_is_not_closed_is_told_with_the_lines_that_it_swallows(tmp_path):
    path = tmp_path / "letters.csv"
    path.write_text('text,label,who\ngood,1,a\nbad,0,b\nfine,1,a\n"open,0,b\nlost,1,a\nlost too,0,b\n')
    (skipped,) = read(table_source(path, on_error="skip"), seed=0).skipped
    assert skipped.reason == "its quotation mark is not closed: all 3 lines to the end of the file belong to it"


def test_a_quotation_mark_open_to_the_end_of_the_file_swallows_no_rows_unseen(tmp_path):
    path = tmp_path / "letters.csv"
    good = "text,label,who\n" + "good,1,a\nbad,0,b\nshort,1\n" * 3
    path.write_text(f'{good}open,0,"b\nlost,1,a\nlost too,0,b\n')  # in the last column: no column is missing
    skipped = read(table_source(path, on_error="skip"), seed=0).skipped
    assert [each.row for each in skipped] == [2, 5, 8, 9]
    assert skipped[-1].reason == "its quotation mark is not closed: all 3 lines to the end of the file belong to it"
    # One row, but more than half of the lines: as ever, this is another kind of file.
    path.write_text(f'{good}"open,0,b\n' + "lost,1,a\n" * 6)
    with pytest.raises(DataError, match=r"cannot be read: .*EOF inside string"):
        read(table_source(path, on_error="skip"), seed=0)


def test_a_file_that_is_no_table_of_lines_is_refused_as_ever(tmp_path):
    path = tmp_path / "letters.jsonl"
    path.write_text("Dear Sir,\nthank you.\n")
    with pytest.raises(DataError, match="expected one object per row"):
        read(table_source(path, on_error="skip"), seed=0)


def test_broken_lines_are_found_in_each_of_several_files_and_splits(tmp_path):
    for name, content in (("train", CSV), ("test", GOOD_CSV + b"bad line\n")):
        (tmp_path / f"{name}.csv").write_bytes(content)
    raw = read(table_source(tmp_path, on_error="skip"), seed=0)
    assert [(each.set, each.row) for each in raw.skipped] == [("training set", row) for row in REASONS[".csv"]] + [
        ("test set", 5)
    ]
    one = tmp_path / "one"
    one.mkdir()
    rows = [f"{text},{label},{split}" for split in ("train", "test") for text, label in (("good", 1), ("bad", 0))]
    (one / "all.csv").write_text("\n".join(["text,label,split", *rows, "lonely", ""]))
    (skipped,) = read(DataSource(source=str(one), on_error="skip"), seed=0).skipped
    assert (skipped.set, skipped.row) == ("training set", 2)


def test_dialogues_and_words_that_cannot_be_learned_from_are_left_out(tmp_path):
    pairs = [{"prompt": "How many?", "response": answer} for answer in ("Two.", "", "Three.", None, "Four.")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    raw = read(DataSource(source=str(tmp_path / "pairs.jsonl"), on_error="skip"), seed=0, task=Language())
    assert {each.row: each.reason for each in raw.skipped} == dict.fromkeys((1, 3), "it has an empty response")
    tagged = [(["a", "b"], ["X", "Y"]), ([], []), (["a"], ["X", "Y"]), (["b"], ["Y"]), (["a"], ["X"])]
    rows = [{"words": words, "tags": tags} for words, tags in tagged]
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = read(DataSource(source=str(tmp_path / "tags.jsonl"), on_error="skip"), seed=0, task=Tokens())
    assert {each.row: each.reason for each in raw.skipped} == {
        1: "it has no words", 2: "it has another number of words than of tags",
    }  # fmt: skip


def test_a_client_that_loses_all_its_rows_is_an_error_and_a_missing_label_is_no_class(tmp_path):
    path = tmp_path / "letters.csv"
    path.write_text("text,label,who\ngood,1,a\nbad,0,a\nfine,1,a\n,0,b\nlone,,a\n")
    with pytest.raises(DataError, match="1 problem in the training set:\n  - nothing is left of client 'b'"):
        read(table_source(path, on_error="skip"), seed=0)


def test_the_commands_take_a_flag(tmp_path):
    root = folder(tmp_path / "data")
    broken = break_some(root)
    config = tmp_path / "run.toml"
    config.write_text(
        f"""
        model.source = "bundled:vit-micro"
        data = {{ source = "{root}", folders = "client/label" }}
        partition = {{ name = "dirichlet", num_clients = 3, alpha = 1.0 }}
        tuning.name = "head"
        strategy = {{ name = "fedavg", clients_per_round = 2, num_rounds = 1 }}
        """
    )
    checked = CliRunner().invoke(app, ["check", str(config), "--on-error", "skip"])
    assert checked.exit_code == 0
    assert str(broken[0]) in checked.output.replace("\n", "")
    assert "of each set were read" not in checked.output + checked.stderr
    ran = CliRunner().invoke(app, ["run", str(config), "--on-error", "skip", "--out", str(tmp_path / "run"), "--quiet"])
    assert ran.exit_code == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["num_skipped"] == 3


def test_a_resumed_run_leaves_out_the_same_files(tmp_path):
    root = folder(tmp_path / "data")
    break_some(root)
    whole = experiment(root, on_error="skip").run(tmp_path / "whole")

    def interrupt(outcome: object, ledger: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment(root, on_error="skip").run(tmp_path / "resumed", on_round=interrupt)
    resumed = Experiment.from_run(tmp_path / "resumed").resume(tmp_path / "resumed")
    assert (resumed.path / "skipped.csv").read_bytes() == (whole.path / "skipped.csv").read_bytes()
    assert (resumed.path / "rounds.jsonl").read_bytes() == (whole.path / "rounds.jsonl").read_bytes()
