"""Tables in files and folders: which file is which split, and what paths in them mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from fedelta.data.sources import DataSource, RawData, read
from fedelta.errors import DataError

CSV = "text,label\n" + "one,a\ntwo,b\n" * 3


def load(source: Path | str, **options: object) -> RawData:
    return read(DataSource(source=str(source), **options), seed=7)


def tables(folder: Path, *names: str, content: str = CSV) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "num_train", "num_test"),
    [
        (("TRAIN.csv", "Testing.csv"), 6, 6),
        (("train-0000-of-0002.csv", "train-0001-of-0002.csv", "test.csv"), 12, 6),
        (("my_train_set.csv", "my_test_set.csv"), 6, 6),
        (("train/a.csv", "train/test-of-engines.csv", "eval/a.csv"), 12, 6),
        (("speed-test.csv",), 4, 2),  # one table: 0.2 of 6 rows are held out, rounded up
        (("a.csv", "sub/b.csv"), 9, 3),
    ],
)
def test_the_names_of_tables_or_of_their_folders_say_which_split_they_are(tmp_path, names, num_train, num_test):
    raw = load(tables(tmp_path / "odd [1] * test", *names))
    assert (len(raw.train), len(raw.test)) == (num_train, num_test)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("speed-test.csv", "walking.csv"),
            "'speed-test.csv' may be those of splits, the names of 'walking.csv' are not",
        ),
        (("train.csv", "notes.csv"), "'train.csv' may be those of splits, the names of 'notes.csv' are not"),
        (("a.csv", "b.jsonl"), "tables of several kinds .'csv', 'json'., expected one: 'a.csv', 'b.jsonl'"),
        (("x.txt",), "cannot be read: it holds no table, image or recording"),
    ],
)
def test_folders_of_tables_that_can_be_read_in_two_ways_are_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        load(tables(tmp_path, *names))


def test_the_readme_of_a_repository_says_which_files_are_which_subset(tmp_path):
    tables(tmp_path, "x/1.csv", "y/1.csv", "y/2.csv")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: x/*.csv\n- config_name: large\n  data_files:\n"
        "  - split: train\n    path: y/1.csv\n  - split: test\n    path: [y/2.csv]\n---\n# Words\n"
    )
    assert len(load(tmp_path, subset="large").test) == 6
    assert len(load(tmp_path, subset="small").train) == 4
    with pytest.raises(
        DataError, match=r"several subsets, expected one\nhint: set `data.subset` to one of 'small', 'large'"
    ):
        load(tmp_path)
    with pytest.raises(DataError, match=r"no `data.subset` 'huge', found 'small', 'large'"):
        load(tmp_path, subset="huge")


def test_a_column_separates_training_rows_from_test_rows(tmp_path):
    rows = "".join(f"words {n},{'ab'[n % 2]},{('Train', 'Train', 'test')[n % 3]}\n" for n in range(12))
    (tmp_path / "d.csv").write_text(f"text,label,Split\n{rows}")
    raw = load(tmp_path / "d.csv")
    assert (len(raw.train), len(raw.test), raw.train.dataset.column_names) == (8, 4, ["text", "label"])
    (tmp_path / "odd.csv").write_text(f"text,label,split\n{rows}more,a,maybe\n")
    with pytest.raises(DataError, match="1 rows have other values, such as 'maybe' in row 12"):
        load(tmp_path / "odd.csv")
    (tmp_path / "other.csv").write_text(f"text,label,split\n{rows.replace('Train', 'up').replace('test', 'down')}")
    assert len(load(tmp_path / "other.csv", text_column="text").train) == 9


def test_data_written_by_save_to_disk_are_read_in_place(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    rows = Dataset.from_dict({"text": ["w"] * 10, "label": [0, 1] * 5}, features=features)
    rows.save_to_disk(tmp_path / "one [1]")
    DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(tmp_path / "two")
    raw = load(tmp_path / "one [1]")
    assert (len(raw.train), len(raw.test), raw.class_names) == (8, 2, ("x", "y"))
    assert len(load(tmp_path / "two").test) == 4
    (tmp_path / "two" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match="two' cannot be read"):
        load(tmp_path / "two")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_metadata_table_labels_the_images_beside_it(tmp_path, caplog, suffix):
    for split, count in (("train", 4), ("test", 2)):
        folder = images(tmp_path / split, *(f"im/{n}.png" for n in range(count)))
        rows = [{"file_name": f"im/{n}.png", "breed": "ab"[n % 2], "owner": f"o{n}"} for n in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if suffix == ".csv":
            text = "file_name,breed,owner\n" + "".join(",".join(row.values()) + "\n" for row in rows)
        (folder / f"metadata{suffix}").write_text(text)
    images(tmp_path / "train", "unknown.png")
    raw = load(tmp_path, label_column="breed", client_column="owner")
    assert (raw.modality.name, len(raw.train), len(raw.test), raw.class_names) == ("image", 4, 2, ("a", "b"))
    assert raw.train.dataset[0]["image"].size == (4, 4)
    assert "1 files in" in caplog.text
    (tmp_path / "train" / "im" / "2.png").unlink()
    with pytest.raises(DataError, match=r"row 2: '.*2.png' does not exist"):
        load(tmp_path, label_column="breed")


def test_paths_in_a_table_are_from_its_folder_on(tmp_path, monkeypatch):
    images(tmp_path / "data", *(f"photos/{n}.png" for n in range(4)))
    (tmp_path / "data" / "d.csv").write_text(
        "file,label\n" + "".join(f"photos/{n}.png,{'ab'[n % 2]}\n" for n in range(4))
    )
    monkeypatch.chdir(tmp_path)
    raw = load("data/d.csv", image_column="file")
    assert all(Path(path).is_file() for path in raw.train.dataset["file"])


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        ("text,label\n" + "x,DE\ny,NA\n" * 3, ("DE", "NA")),
        ("text,label\nNA,a\nnull,b\nNone,a\nnan,b\n", ("a", "b")),  # texts are words, too
        ("\ufefftext,label\n" + "x,1\ny,2\n" * 3, ("1", "2")),
        # The first 10,000 rows make a column one of numbers.
        ("text,label\n" + "x,1\n" * 10_001 + "y,b\n" * 5, ("1", "b")),
        ("text,label,id\n" + f"x,a,{10**30}\ny,b,{10**30 + 1}\n" * 3, ("a", "b")),
    ],
)
def test_words_for_nothing_are_words_and_types_are_those_of_all_rows(tmp_path, content, classes):
    (tmp_path / "d.csv").write_text(content)
    raw = load(tmp_path / "d.csv", text_column="text")
    assert raw.class_names == classes
    assert None not in raw.train.dataset["text"][:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "text,label\n", "d.csv' cannot be read: it has no rows"),
        ("d.csv", "text,label\nx,a\ny,b,c\n", "d.csv' cannot be read: .*line 3"),
        ("d.json", "[" * 3000 + "]" * 3000, "d.json' cannot be read: "),
        ("d.jsonl", '{"text": ' + "[" * 3000 + "]" * 3000 + "}\n", "d.jsonl' cannot be read: it is nested too deeply"),
        ("d.json", '{"users": ' + "[" * 100_000 + '"user_data"', "it is not valid JSON: it is nested too deeply"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": "b"', "d.jsonl' cannot be read: "),
    ],
)
def test_tables_that_cannot_be_read_are_refused_by_their_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name)
    assert "/fedelta-" not in str(caught.value)  # our name for it
