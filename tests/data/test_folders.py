"""Folders of images and recordings: what the names of folders and files say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from datasets import Audio, ClassLabel, Dataset, Features, Image, Value
from pydantic import ValidationError
from tests.sounds import SPEAKERS, encoded, tone, write_flat

from fedelta.data.naming import expression
from fedelta.data.sources import DataSource, RawData, read
from fedelta.errors import DataError

WAV = encoded(tone(440))
THREE = "{label}_{client}_{index}"


def load(source: Path | str, **options: object) -> RawData:
    return read(DataSource(source=str(source), **options), seed=7)


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(WAV)
    return folder


def names_of(dataset: Dataset) -> list[str]:
    return [Path(row["path"]).name for row in dataset["audio"]]


@pytest.fixture
def flat(tmp_path) -> Path:
    return write_flat(tmp_path / "flat")


def test_the_names_of_files_say_label_client_and_test_set(flat):
    raw = load(flat, file_pattern=THREE, test_files="*_[0-1].wav")
    assert (raw.modality.name, raw.class_names, raw.columns.client) == ("audio", ("high", "low", "middle"), "client")
    # 3 labels x 3 speakers, of which 2 of 6 files each are for the test.
    assert (len(raw.train), len(raw.test)) == (36, 18)
    assert {name[-5] for name in names_of(raw.test.dataset)} == {"0", "1"}
    for name, label, client in zip(
        names_of(raw.train.dataset), raw.train.targets.values, raw.train.dataset["client"], strict=True
    ):
        assert name.split("_")[:2] == [raw.class_names[label], client]
    assert set(raw.train.dataset["client"]) == set(SPEAKERS)


def test_the_label_may_be_a_folder_and_the_client_in_the_name(tmp_path):
    names = ("no/ab12_nohash_2.flac", "yes/ab12_nohash_0.wav", "yes/cd_34_nohash_1.wav", "no/cd_34_nohash_0.wav")
    raw = load(files(tmp_path, *names), file_pattern="{client}_nohash_{index}", test_files="yes/cd*")
    assert raw.class_names == ("no", "yes")
    assert (raw.train.dataset["client"][:], raw.train.targets.values.tolist()) == (["ab12", "cd_34", "ab12"], [0, 0, 1])
    assert (names_of(raw.test.dataset), raw.test.targets.values.tolist()) == (["cd_34_nohash_1.wav"], [1])


def test_a_folder_for_each_class_needs_no_pattern(tmp_path):
    names = [f"{split}/{label}/{index}.ogg" for split in ("train", "test") for label in "ab" for index in range(2)]
    raw = load(files(tmp_path, *names))
    assert (raw.modality.name, raw.class_names, len(raw.train), len(raw.test)) == ("audio", ("a", "b"), 4, 4)
    assert raw.columns.client is None


def test_test_files_are_taken_from_the_folder_of_training_files(tmp_path):
    names = [f"train/{label}/{index}.wav" for label in "ab" for index in range(3)]
    raw = load(files(tmp_path, *names), test_files="2.wav")
    assert (len(raw.train), len(raw.test), raw.test.targets.values.tolist()) == (4, 2, [0, 1])


def test_images_have_names_too(tmp_path):
    from PIL import Image as Pillow

    for index in range(8):
        Pillow.new("L", (4, 4)).save(tmp_path / f"{index % 2}_writer{index // 2}.png")
    raw = load(tmp_path, file_pattern="{label}_{client}", test_files="*_writer3.png")
    assert (raw.modality.name, raw.class_names, set(raw.train.dataset["client"])) == (
        "image", ("0", "1"), {"writer0", "writer1", "writer2"},
    )  # fmt: skip


def test_labels_that_are_numbers_sort_as_numbers(tmp_path):
    raw = load(files(tmp_path, *(f"{label}-{index}.wav" for label in (10, 9, 2) for index in range(3))),
               file_pattern="{label}-{index}")  # fmt: skip
    assert raw.class_names == ("2", "9", "10")


SITES = [f"{site}/{label}/{index}.wav" for site in ("s1", "s2") for label in "ab" for index in range(2)]


@pytest.mark.parametrize(
    ("names", "folders", "classes", "clients", "num_test"),
    [
        (SITES, "client/label", ("a", "b"), ["s1", "s2"], 2),  # 0.2 of 8 rows, rounded up
        (SITES, "label/client", ("s1", "s2"), ["a", "b"], 2),
        (SITES, "label", ("s1", "s2"), None, 2),
        (SITES, "*/label", ("a", "b"), None, 2),
        (
            [f"{split}/{name}" for name in SITES for split in ("Train", "Test")],
            "split/client/label", ("a", "b"), ["s1", "s2"], 8,
        ),
        (
            [name.replace("/", f"/{split}/", 1) for name in SITES for split in ("train", "eval")],
            "client/split/label", ("a", "b"), ["s1", "s2"], 8,
        ),
    ],
)  # fmt: skip
def test_levels_of_folders_follow_the_setting(tmp_path, names, folders, classes, clients, num_test):
    raw = load(files(tmp_path, *names), folders=folders)
    ids = None if raw.train_ids is None else sorted({*raw.train_ids.names, *raw.test_ids.names})
    assert (raw.class_names, ids, len(raw.test)) == (classes, clients, num_test)


@pytest.mark.parametrize(
    ("names", "num_train", "num_test", "notes"),
    [
        (("Train/a/1.wav", "Train/b/2.wav", "TEST/b/3.wav"), 2, 1, ["read as `data.folders` = 'split/label' (splits"]),
        (("train/a/1.wav", "train/b/2.wav", "val/b/3.wav"), 2, 1, ["no test set, so 'val' is used for evaluation"]),
        (("train/a/1.wav", "train/b/2.wav", "dev/a/3.wav", "test/b/4.wav", "test/b/5.wav"), 2, 2, []),
        (("x/train/a/1.wav", "x/train/b/2.wav", "x/test/a/3.wav"), 2, 1, ["`data.folders` = '*/split/label'"]),
        (("training_set/a/1.wav", "training_set/b/2.wav", "test_set/b/3.wav"), 2, 1, []),
        (("TrainData/a/1.wav", "TrainData/b/2.wav", "Test-Images/b/3.wav"), 2, 1, ["'split/label'"]),
    ],
)  # fmt: skip
def test_folders_of_splits_are_not_classes_and_odd_ones_are_noted(tmp_path, caplog, names, num_train, num_test, notes):
    raw = load(files(tmp_path, *names))
    assert (raw.class_names, len(raw.train), len(raw.test)) == (("a", "b"), num_train, num_test)
    assert len(caplog.messages) == len(notes)
    assert all(note in message for note, message in zip(notes, caplog.messages, strict=True))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (SITES, {}, r"can be read in 3 ways: 'client/label' .*\nhint: set `data.folders`"),
        (
            ("a/1.wav", "2.wav"),
            {"folders": "client/label"},
            r"2.wav' is not in a client folder(?s:.*)1.wav' is not in a class",
        ),
        (
            ("train/a/1.wav", "Train/b/2.wav", "training/b/3.wav", "dev/a/4.wav"),
            {},
            "'Train', 'train' may all be the 'TRAIN' split",
        ),
        (("test/a/1.wav", "test/b/2.wav"), {}, "no split 'train'"),
    ],
)
def test_folders_that_cannot_be_read_are_refused(tmp_path, names, options, message):
    options = {"train_split": "TRAIN"} if "training/b/3.wav" in names else options
    with pytest.raises(DataError, match=f"(?s){message}"):
        load(files(tmp_path, *names), **options)


def test_files_of_programs_are_ignored_and_links_are_followed(tmp_path):
    folder = files(
        tmp_path / "x", "a/1.wav", "b/2.wav", "__MACOSX/a/._1.wav", "a/.ipynb_checkpoints/1-copy.wav", ".git/o"
    )
    files(tmp_path / "elsewhere", "3.wav", "4.wav")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "loop").symlink_to(folder)
    raw = load(folder, test_fraction=0.01)
    assert (raw.class_names, len(raw.train) + len(raw.test)) == (("a", "b", "c"), 4)


@pytest.mark.parametrize("name", ["odd [1] *?{a}", "my test set", "dev", "a::b"])
def test_the_name_of_a_folder_above_says_nothing(tmp_path, name):
    raw = load(files(tmp_path / name / "data", "a/test 1.wav", "a/valid.wav", "b/2.wav", "b/[x].wav"))
    assert (raw.class_names, len(raw.train) + len(raw.test)) == (("a", "b"), 4)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/1.wav")).write_bytes(WAV)
    with pytest.raises(DataError, match=r"caf\\udce9/1.wav' has a name that is not UTF-8: rename it"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "name", "fields"),
    [
        ("{label}_{client}_{index}", "7_george_12", {"label": "7", "client": "george", "index": "12"}),
        ("{client}_nohash_{index}", "a_b_nohash_3", {"client": "a_b", "index": "3"}),
        ("rec.{label}", "rec.a_b", {"label": "a_b"}),
        ("{label}-{client}_x", "a_b-c_x", {"label": "a_b", "client": "c"}),
        # Two speakers named Ann, or index 1_2? Nobody can tell.
        ("{label}_{client}_{index}", "7_mary_ann_12", None),
        ("{label}_{client}", "7_", None),
        ("{label}.wav", "7xwav", None),
    ],
)
def test_a_pattern_reads_a_name_in_one_way_or_not_at_all(pattern, name, fields):
    match = expression(pattern).fullmatch(name)
    assert (None if match is None else match.groupdict()) == fields


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file_pattern": "speech"}, "is 'speech', expected named fields such as {label}_{client}_{index}"),
        ({"file_pattern": "{}_{label}"}, "expected named fields"),
        ({"file_pattern": "{label:3}"}, "expected named fields"),
        ({"file_pattern": "{label"}, "expected '}' before end of string"),
        ({"file_pattern": "{label}{index}"}, "is '{label}{index}', expected text between two fields"),
        ({"file_pattern": "{label}_{label}"}, "expected each field once and no folders"),
        ({"file_pattern": "{label}/{index}"}, "expected each field once and no folders"),
        ({"folders": "site/label"}, "is 'site/label', expected 'split', 'client' and 'label', each at most once"),
        ({"folders": "label/label"}, "each at most once"),
        ({"folders": ""}, "each at most once"),
        (
            {"folders": "client/label", "file_pattern": "{client}_{index}"},
            "file_pattern and folders both have 'client'",
        ),
        ({"folders": "split/label", "test_files": "*"}, "test_files is set and folders has 'split'"),
        ({"test_files": "*", "test_source": "x"}, "test_files and test_source are set"),
        ({"image_column": "a", "audio_column": "b"}, "image_column and audio_column are set"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValidationError) as caught:
        DataSource(source="digits", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            ("a_x_1.wav", "ax1.wav", "b_y.wav"), {"file_pattern": THREE, "test_files": "ax*"},
            r"2 of 3 file names do not match `data.file_pattern` = '{label}_{client}_{index}' .*first 'ax1.wav'",
        ),
        (
            ("a_1.wav", "b_2.wav"), {"file_pattern": "{client}_{index}"},
            r"(?s)2 problems.*a_1.wav' is not in a class folder, and the pattern '{client}_{index}' has no",
        ),
        (("a_1.wav", "b_2.wav"), {}, r"(?s)2 problems in audio .*not in a class folder\n.*hint: .*file_pattern"),
        (
            ("a/1.wav", "b/2.wav"), {"test_files": "*_9.wav"},
            r"none of 2 files match `data.test_files` = '\*_9.wav', first '1.wav'",
        ),
        (
            ("a_1.wav", "b_2.wav"), {"test_files": "*_9.wav"},
            r"(?s)3 problems.*none of 2 files match.*not in a class folder\nhint: .*{label}; `data.test_files`",
        ),
        (("train/a/1.wav", "test/a/2.wav"), {"test_files": "*2.wav"}, "there is also a folder 'test' with a test set"),
        (("a/1.wav", "b/2.wav"), {"test_files": "*"}, "the training set has 0 rows"),
        (("a/1.wav", "a/2.png", "b/3.png"), {}, "2 images and 1 recordings, expected one kind"),
        (("a/1.wav", "b/notes.txt"), {}, "notes.txt' is not a recording"),
        (("a.csv",), {"file_pattern": THREE}, "not a folder of images or recordings, but `data.file_pattern` is set"),
        (
            ("a_x_1.wav", "d.parquet"), {"file_pattern": THREE, "test_files": "*"},
            r"(?s)a table \(.parquet\), which defines the rows.*`data.test_files` are set\nhint: .*remove the setting$",
        ),
        (
            ("a_1.wav", "d.csv"), {"test_files": "*_1.wav"},
            r"(?s)holds a table \(.csv\).* but `data.test_files` is set\nhint: .*; or set `data.file_pattern`",
        ),
    ],
)  # fmt: skip
def test_all_problems_with_names_are_reported(tmp_path, names, options, message):
    with pytest.raises(DataError, match=message):
        load(files(tmp_path / "x", *names), **options)


def test_a_source_that_is_no_folder_has_no_file_names():
    with pytest.raises(DataError, match="data source 'digits' is not a folder of images or recordings"):
        load("digits", test_files="*")


@pytest.mark.parametrize(
    ("options", "names", "hint"),
    [
        (
            {"test_files": "*_9.wav"}, ("a/1.wav", "b/2.wav"),
            "`data.test_files` matches whole names, such as `*_[0-4].wav`, or `noisy/*` for files in a folder",
        ),
        (
            {"test_files": "*2.wav"}, ("train/a/1.wav", "test/a/2.wav"),
            "remove `data.test_files`, or move that folder elsewhere",
        ),
    ],
)  # fmt: skip
def test_problems_with_test_files_have_a_separate_hint(tmp_path, options, names, hint):
    with pytest.raises(DataError) as caught:
        load(files(tmp_path, *names), **options)
    assert caught.value.hint == hint


def test_with_a_pattern_a_table_beside_the_files_is_passed_over(flat):
    (flat / "metadata.csv").write_text("file_name,speaker\nlow_ann_0.wav,ann\n")
    (flat / "about").mkdir()
    (flat / "about" / "speakers.json").write_text("{}")
    raw = load(flat, file_pattern=THREE, test_files="*_[0-1].wav")
    assert (raw.modality.name, len(raw.train), len(raw.test), raw.columns.client) == ("audio", 36, 18, "client")
    (flat / "notes.txt").touch()
    with pytest.raises(DataError, match=r"1 problem in audio folder .*\n.*notes.txt' is not a recording"):
        load(flat, file_pattern=THREE)


def test_a_table_beside_recordings_is_in_charge_of_them(tmp_path):
    files(tmp_path, "1.wav", "2.wav")
    rows = "\n".join(f"{tmp_path / name},{label}" for name, label in (("1.wav", "a"), ("2.wav", "b")) for _ in range(3))
    (tmp_path / "train.csv").write_text(f"file,label\n{rows}\n")
    raw = load(tmp_path, audio_column="file")
    assert (raw.modality.name, len(raw.train) + len(raw.test)) == ("audio", 6)


def test_recordings_in_parquet_are_found_by_their_feature_their_bytes_or_their_name(tmp_path):
    cells = [{"bytes": WAV, "path": None}] * 6
    features = Features({"speech": Audio(), "word": ClassLabel(names=["x", "y"]), "note": Value("string")})
    rows = {"speech": cells, "word": [0, 1] * 3, "note": [""] * 6}
    stored = Features({**features, "speech": {"bytes": Value("binary"), "path": Value("string")}})
    plain = Dataset.from_dict(rows, features=stored)
    plain.to_parquet(tmp_path / "plain.parquet")
    plain.cast(features).to_parquet(tmp_path / "hub.parquet")
    raw = load(tmp_path / "hub.parquet")
    assert (raw.columns.input, raw.modality.name, raw.class_names) == ("speech", "audio", ("x", "y"))
    assert load(tmp_path / "plain.parquet").modality.name == "audio"  # by their first bytes
    assert load(tmp_path / "plain.parquet", audio_column="speech").modality.name == "audio"
    torch.testing.assert_close(raw.train.targets.values.bincount(), torch.tensor([2, 2]))


def test_images_and_recordings_in_one_table_are_a_choice(tmp_path):
    features = Features({"a": Image(), "b": Audio(), "label": Value("string")})
    stored = {"bytes": Value("binary"), "path": Value("string")}
    cells = [{"bytes": WAV, "path": None}] * 4
    dataset = Dataset.from_dict(
        {"a": cells, "b": cells, "label": ["x", "y"] * 2}, features=Features({**features, "a": stored, "b": stored})
    )
    dataset.cast(features).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(
        DataError, match=r"2 possible columns .'a', 'b'.; set `data.image_column`, `data.audio_column` or"
    ):
        load(tmp_path / "d.parquet")
    assert load(tmp_path / "d.parquet", audio_column="b").modality.name == "audio"


def test_documents_above_the_folders_of_classes_are_ignored(tmp_path):
    names = [f"train/{label}/{index}.wav" for label in "ab" for index in range(2)]
    files(tmp_path, *names, "README.md", "LICENSE", "train/labels.txt")
    assert len(load(tmp_path).train) + len(load(tmp_path).test) == 4
    (tmp_path / "train" / "a" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"1 problem in audio folder .*\n.*a/notes.txt' is not a recording"):
        load(tmp_path)
