"""Reading data sets from every kind of place, and everything that can be wrong with them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits
from tests.sounds import encoded, tone

from fedelta.data.files import load_splits
from fedelta.data.sources import DataSource, RawData, class_names, read
from fedelta.errors import DataError
from fedelta.settings import Context
from fedelta.tasks.classification import Classification

ROWS = {"text": ["one", "two", "three", "four"] * 5, "label": ["b", "a", "c", "a"] * 5, "site": [3, 1, 1, 2] * 5}


def load(source: Path | str, **options: object) -> RawData:
    return read(DataSource(source=str(source), **options), seed=7)


def image(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of five images."""
    for row in range(5):
        image(tmp_path / "pets" / "dog" / f"{row}.png")
        image(tmp_path / "pets" / "cat" / "deep" / f"{row}.jpg")
    (tmp_path / "pets" / ".DS_Store").write_bytes(b"litter")
    return tmp_path / "pets"


def test_the_digits_are_embedded():
    raw = load("digits")
    # ceil(0.2 * 1797) = 360 test rows
    assert (len(raw.train), len(raw.test), len(raw.class_names), raw.modality.name) == (1437, 360, 10, "image")
    # The classes have 174 to 183 images; a fifth of each.
    assert set(raw.test.targets.values.bincount().tolist()) <= {35, 36, 37}


def test_the_digits_are_those_of_scikit_learn():
    digits, rows = load_digits(), load_splits("digits", None).rows["train"]
    assert rows["label"][:] == digits.target.tolist()
    # 0..16 there and 0..255 here
    assert np.array_equal(np.array(rows["image"][:]), (digits.images * 255 / 16).round())


@pytest.mark.parametrize("options", [{}, {"max_train_examples": 100}])
def test_names_of_classes_are_those_of_the_rows_whether_or_not_they_are_read(options, monkeypatch):
    source = DataSource(source="digits", **options)
    expected = read(source, seed=7).class_names
    if not options:
        monkeypatch.setattr("fedelta.data.sources.read", lambda *_, **__: pytest.fail("the digits were read"))
    assert class_names(source, seed=7, task=Classification()) == expected


def test_a_test_set_is_held_out_by_the_seed_alone():
    first, again = load("digits"), load("digits")
    assert torch.equal(first.test.targets.values, again.test.targets.values)
    assert first.train.dataset[:]["image"] == again.train.dataset[:]["image"]
    other = read(DataSource(source="digits"), seed=8)
    assert first.test.dataset[:]["image"] != other.test.dataset[:]["image"]


def test_numbers_of_examples_can_be_limited_in_equal_shares():
    raw = load("digits", max_train_examples=100, max_test_examples=20)
    assert set(raw.train.targets.values.bincount().tolist()) <= {9, 10, 11}
    assert raw.test.targets.values.bincount().tolist() == [2] * 10
    assert len(load("digits", max_test_examples=5000).test) == 360


def test_a_folder_of_images_has_its_sub_folders_as_classes(folder):
    raw = load(folder)
    assert (raw.class_names, raw.modality.name, len(raw.train), len(raw.test)) == (("cat", "dog"), "image", 8, 2)
    assert raw.train.targets.values.bincount().tolist() == [4, 4]


def test_a_folder_may_have_folders_for_training_and_test(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "test/b/3.png", "val/a/4.png"):
        image(tmp_path / name)
    assert load(tmp_path).test.targets.values.tolist() == [1]
    assert load(tmp_path, test_split="val").test.targets.values.tolist() == [0]


def write(path: Path, rows: dict[str, list[object]]) -> Path:
    table = pa.table(rows)
    records = table.to_pylist()
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        path.write_text(
            "\n".join(",".join(map(str, row)) for row in [table.column_names, *zip(*rows.values(), strict=True)])
        )
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.mark.parametrize("name", ["d.parquet", "d.csv", "d.json", "d.jsonl", "odd [1] *name.csv"])
def test_a_file_is_a_table(tmp_path, name):
    raw = load(write(tmp_path / name, ROWS), client_column="site")
    assert (raw.modality.name, raw.class_names) == ("text", ("a", "b", "c"))
    assert (raw.columns.input, raw.columns.labels, raw.columns.client) == ("text", ("label",), "site")
    names = [raw.class_names[label] for label in raw.train.targets.values]
    assert names == raw.train.dataset["label"][:]


def test_a_folder_of_files_has_splits_by_name(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.csv", {name: values[:3] for name, values in ROWS.items()})
    raw = load(tmp_path)
    assert (len(raw.train), len(raw.test)) == (20, 3)


def test_a_file_may_have_its_test_set_in_another_file(tmp_path):
    test = write(tmp_path / "later.jsonl", {name: values[:3] for name, values in ROWS.items()})
    raw = load(write(tmp_path / "d.parquet", ROWS), test_source=str(test))
    assert raw.test.targets.values.tolist() == [1, 0, 2]


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view()])
def test_every_type_of_bytes_in_parquet_may_hold_images(kind, tmp_path):
    content = image(tmp_path / "x.png").read_bytes()
    columns = {"image": pa.array([content] * 6, kind), "label": pa.array([0, 1] * 3)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").modality.name == "image"


def test_images_in_parquet_are_found_with_and_without_the_hubs_features(tmp_path):
    content = image(tmp_path / "x.png").read_bytes()
    cells = [{"bytes": content, "path": None}] * 4
    pq.write_table(pa.table({"pixels": cells, "label": [0, 1, 0, 1]}), tmp_path / "plain.parquet")
    features = Features({"img": ImageFeature(), "kind": ClassLabel(names=["x", "y"]), "note": Value("string")})
    hub = Dataset.from_dict({"img": cells, "kind": [0, 1, 0, 1], "note": [""] * 4}, features=features)
    hub.to_parquet(tmp_path / "hub.parquet")
    assert load(tmp_path / "plain.parquet").columns.input == "pixels"
    raw = load(tmp_path / "hub.parquet")
    assert (raw.columns.input, raw.columns.labels, raw.class_names) == ("img", ("kind",), ("x", "y"))


@pytest.mark.parametrize("form", ["bytes", "struct", "decoded"])
def test_recordings_in_parquet_are_found_without_the_hubs_features(form, tmp_path):
    content, wave = encoded(tone(440)), tone(440).tolist()
    cells = {"bytes": content, "struct": {"bytes": content, "path": None},
             "decoded": {"array": wave, "sampling_rate": 8000}}  # fmt: skip
    table = pa.table({"sound": [cells[form]] * 4, "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "d.parquet")
    raw = load(tmp_path / "d.parquet")
    assert (raw.columns.input, raw.modality.name) == ("sound", "audio")


def test_integer_labels_need_not_start_at_zero(tmp_path):
    raw = load(write(tmp_path / "d.csv", {"text": ["w"] * 6, "label": [10, 7, 9, 10, 7, 9]}), test_fraction=0.5)
    assert raw.class_names == ("7", "9", "10")
    assert sorted(raw.train.targets.values.tolist()) == [0, 1, 2]


def test_local_files_leave_nothing_in_the_home(tmp_path, monkeypatch, capfd):
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    raw = load(write(tmp_path / "d.parquet", ROWS))
    assert raw.train.dataset[0]["text"] in ROWS["text"]
    assert not (tmp_path / "home").exists()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"text": ["a", "b"], "kind": [0, 1]}, {}, "column of class labels.*`data.label_column`.*'text', 'kind'"),
        ({"words": ["a", "b"], "label": [0, 1], "more": ["", ""]}, {}, "2 possible columns .'words', 'more'"),
        (
            {"number": [1, 2], "label": [0, 1]},
            {},
            "images or recordings or, failing that, of texts, found no such column",
        ),
        (
            {"sentence": [["a"], ["b"]], "label": [["X"], ["Y"]]},
            {},
            "found no such column.*; for the columns 'sentence', 'label', set `task.name` = \"tokens\"",
        ),
        ({"number": [1, 2]}, {}, "(?s)2 problems.*class labels.*images"),
        (
            {"text": ["a", "b"], "label": [0, 1]},
            {"label_column": "kind", "client_column": "site"},
            "(?s)2 problems.*no column 'kind' .*no column 'site' .*columns are 'text', 'label'",
        ),
        ({"text": ["a", "b"], "label": [0.5, 1.5]}, {}, "'label' holds 'float', expected integers or texts"),
        ({"text": ["a", "b"], "label": ["x", "x"]}, {}, "has only one class, 'x'"),
        ({"text": ["a", "b", "c"], "label": [0, None, 1]}, {}, "1 rows without a label in column 'label': rows 1"),
        (
            {"text": [1, 2], "label": [0, 1]},
            {"text_column": "text"},
            r"'text' \(`data.text_column`\) is Value.'int64'.",
        ),
        ({"text": ["a", "b"], "label": [None, None]}, {}, "'label' holds no values"),
        ({"text": ["a"], "label": [0]}, {}, "the training set has 1 rows, expected 2 or more"),
        ({"text": ["a", "b"], "label": [0, 1]}, {"test_split": "tset"}, "no split 'tset'"),
    ],
)
def test_a_table_that_lacks_something_is_refused(tmp_path, rows, options, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "d.parquet", rows), **options)


def test_a_missing_split_is_refused_with_those_there_are(tmp_path):
    write(tmp_path / "test.csv", ROWS)
    with pytest.raises(DataError, match=r"no split 'train' \(`data.train_split`\), found 'test'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"text": ["a"] * 2, "label": ["a", "z"]},
            "test set: 1 rows with labels outside the 3 classes: labels 'z', rows 1",
        ),
        ({"text": ["a"], "kind": ["a"]}, "test set: no column 'label'"),
    ],
)
def test_a_test_set_that_differs_is_refused(tmp_path, rows, message):
    test = write(tmp_path / "other.parquet", rows)
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "d.parquet", ROWS), test_source=str(test))


def test_class_labels_of_a_test_set_are_matched_by_name(tmp_path):
    for name, classes in (("a", ["x", "y"]), ("b", ["y", "x"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=classes)})
        Dataset.from_dict({"text": ["w"] * 4, "label": [0, 1] * 2}, features=features).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    raw = load(tmp_path / "a.parquet", test_source=str(tmp_path / "b.parquet"))
    assert (raw.class_names, raw.test.targets.values.tolist()) == (("x", "y"), [1, 0] * 2)


def test_unlabelled_rows_of_a_hub_test_set_are_refused(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    for name, labels in (("train", [0, 1]), ("test", [-1, -1])):
        Dataset.from_dict({"text": ["w"] * 2, "label": labels}, features=features).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    with pytest.raises(DataError, match="test set: 2 rows with labels outside the 2 classes: labels '-1', rows 0, 1"):
        load(tmp_path)


def test_a_test_source_needs_the_split_and_rows(tmp_path):
    data = write(tmp_path / "d.parquet", ROWS)
    (tmp_path / "later").mkdir()
    for name in ("train", "validation"):
        write(tmp_path / "later" / f"{name}.csv", ROWS)
    with pytest.raises(DataError, match=r"no split 'test' in `data.test_source`, found 'train', 'validation'"):
        load(data, test_source=str(tmp_path / "later"))


def test_an_empty_test_folder_is_refused(folder):
    (folder / "test").mkdir()
    (folder / "train").mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "train" / name)
    with pytest.raises(DataError, match="the test set has no rows"):
        load(folder)


def test_everything_wrong_in_a_folder_of_images_is_named_at_once(folder):
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / "bird").mkdir()
    image(folder / "lost.png")
    with pytest.raises(
        DataError,
        match=r"(?s)3 problems.*bird' is an empty folder.*notes.txt' is not an image.*lost.png' is not in a class",
    ):
        load(folder)


@pytest.mark.parametrize("source", ["./absent", "/absent/folder", "a/b/c", "absent.csv", "~/absent.parquet"])
def test_an_absent_path_is_not_looked_up_on_the_hub(source):
    with pytest.raises(DataError, match="does not exist"):
        load(source)


@pytest.mark.parametrize(
    "source", ["./absent", "/absent/folder", "a/b/c", "absent.csv", "~/absent.parquet", "~nobody/x"]
)
def test_absent_paths_are_found_without_reading(source):
    expected = re.escape(repr(source)) + r" does not exist \(looked in .*\)"
    problems = DataSource(source=source, test_source=source).problems(Context({}))
    assert [re.sub(expected, "GONE", problem) for problem in problems] == [
        "`data.source`: GONE",
        "`data.test_source`: GONE",
    ]


def test_names_and_paths_that_are_there_are_no_problem(folder):
    write(folder / "d.csv", ROWS)
    for source in ("digits", "imdb", "somebody/something", str(folder), str(folder / "d.csv")):
        assert DataSource(source=source).problems(Context({})) == []


def test_checking_a_source_does_not_import_datasets():
    code = (
        "import sys; from fedelta.data.sources import DataSource; from fedelta.settings import Context; "
        "DataSource(source='./absent').problems(Context({})); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_keep_the_number_they_had_in_the_file():
    raw = load("digits", max_train_examples=100)
    whole = load_splits("digits", None).rows["train"]
    assert whole.select(raw.train.numbers.tolist())[:] == raw.train.dataset[:]
    assert whole.select(raw.test.numbers.tolist())[:] == raw.test.dataset[:]


def test_a_hub_name_that_is_cached_loads_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tiny").mkdir()
    write(tmp_path / "tiny" / "train.parquet", ROWS)
    load_dataset(str(tmp_path / "tiny"))
    # Where `datasets` keeps the data set `tiny` of the organisation `somebody`.
    (tmp_path / "cache" / "tiny").rename(tmp_path / "cache" / "somebody___tiny")
    assert load("somebody/tiny").class_names == ("a", "b", "c")


def test_a_hub_name_that_cannot_be_loaded_is_an_error_with_a_hint():
    with pytest.raises(DataError, match=r"(?s)'nobody/nothing' cannot be read.*hint: expected a folder"):
        load("nobody/nothing")


@pytest.mark.parametrize(("name", "content"), [("d.parquet", b"PAR1 no"), ("d.json", b"{")])
def test_a_damaged_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / name)


def test_files_of_other_kinds_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "d.xyz").write_text("?")
    with pytest.raises(DataError, match=r"unknown kind, expected a folder or a file ending in '.csv'"):
        load(tmp_path / "d.xyz")
    (tmp_path / "d.csv").touch()
    with pytest.raises(DataError, match=r"d.csv' is an empty file"):
        load(tmp_path / "d.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 0.0}, "greater than 0"),
        ({"max_length": 0}, "greater than or equal to 1"),
        ({"image_column": "a", "text_column": "b"}, "image_column and text_column are set"),
        ({"label": "x"}, "Extra inputs"),
        ({"label_columns": ("a", "b", "a")}, "label_columns has 'a' more than once"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        DataSource(source="digits", **options)


def test_held_out_rows_leave_the_test_set_also_where_its_ids_are_texts_of_the_numbers(tmp_path: Path):
    for name, quoted in (("train", False), ("test", True)):
        rows = [{"text": f"words {n}", "label": "ab"[n % 2], "who": str(n % 3) if quoted else n % 3} for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(
        source=str(tmp_path / "train.jsonl"), test_source=str(tmp_path / "test.jsonl"), text_column="text",
        client_column="who",
    )  # fmt: skip
    raw = read(source, seed=0)
    # A third of the 12 test rows are client 2's.
    assert len(raw.without_test_rows_of({2}).test) == 8
