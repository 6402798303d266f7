"""A look at data: a few examples are read, the files of the others are found, and people are told what there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from fedelta.data.describe import describe
from fedelta.data.federate import federate
from fedelta.data.glance import NUM_READ, bounded, shown
from fedelta.data.partition import Iid, Natural
from fedelta.data.sources import DataSource, RawData, read
from fedelta.data.stored import StoredColumn
from fedelta.errors import DataError
from fedelta.modalities.image import Images

MODEL = Images.from_preprocessor({}, 4, 3)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two sites with two classes of 20 images each."""
    for site in ("s1", "s2"):
        for label in ("cat", "dog"):
            (tmp_path / site / label).mkdir(parents=True)
            for n in range(20):
                Image.fromarray(np.full((4, 4, 3), n, dtype=np.uint8)).save(tmp_path / site / label / f"{n:02}.png")
    return tmp_path


def source(folder: Path) -> DataSource:
    return DataSource(source=str(folder), folders="client/label", test_fraction=0.1)


def glance(folder: Path) -> RawData:
    return replace(read(source(folder), seed=0), at_a_glance=True)


def test_a_glance_reads_a_few_and_gives_what_a_store_gives(photos, monkeypatch):
    opened: list[object] = []
    real = Image.open
    monkeypatch.setattr("PIL.Image.open", lambda *of, **how: opened.append(of) or real(*of, **how))
    raw = glance(photos)
    glanced = federate(raw, Iid(num_clients=2), MODEL, seed=0)
    # Header and pixels of 32 of 72 training rows and of all 8 test rows.
    assert len(opened) == 2 * (NUM_READ + 8)
    whole = federate(read(source(photos), seed=0), Iid(num_clients=2), MODEL, seed=0)
    rows = torch.tensor([3, 71, 3])
    for part in ("train", "test"):
        glanced_inputs, stored_inputs = getattr(glanced, part).inputs, getattr(whole, part).inputs
        assert len(glanced_inputs) == len(stored_inputs)
        at = rows % len(glanced_inputs)
        assert torch.equal(glanced_inputs.fetch(at)["pixel_values"], stored_inputs.fetch(at)["pixel_values"])


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"", "is an empty file")])
def test_files_that_are_not_there_or_hold_nothing_are_found_though_they_are_not_read(photos, content, message):
    raw = glance(photos)
    for number in (33, 34):
        path = Path(raw.train.dataset.with_format("arrow")["image"][number].as_py()["path"])
        path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?s)2 problems.*{message}.*{message}.*hint: .*rows are counted from 0"):
        federate(raw, Iid(num_clients=2), MODEL, seed=0)


def test_a_warning_about_images_is_given_once_however_often_they_are_fetched(photos, caplog):
    train = federate(glance(photos), Iid(num_clients=2), MODEL, seed=0).train.inputs
    for row in range(3):
        train.fetch(torch.tensor([row]))
    warnings = [record.getMessage() for record in caplog.records if "nearly" in record.getMessage()]
    assert len(warnings) == 2  # of the training set and of the test set


def test_the_data_are_described(photos):
    data = federate(glance(photos), Natural(), MODEL, seed=0)
    counts, classes, clients, *examples = describe(data, "test", "classes")
    assert counts == "examples: 72 training, 8 test"
    assert classes == "classes: 2, each with its training + test examples: 'cat' 36 + 4, 'dog' 36 + 4"
    sizes = [len(data.partition[client]) for client in (0, 1)]
    assert clients == (f"clients: 2 with {min(sizes)} to {max(sizes)} examples: 's1' {sizes[0]}, 's2' {sizes[1]}")
    assert len(examples) == 5
    assert examples[0] == "  's1/cat/00.png' is 'cat', client 0 ('s1')"
    assert examples[-1] == "  's2/dog/19.png' is 'dog', client 1 ('s2')"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"prompt": "Who?", "response": "Ida"}, "'Ida'"),
        ([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ida"}], "'Ida'"),
        ("a" * 61, repr("a" * 57 + "...")),
        (["1", "2"], "['1', '2']"),
        (3.5, "3.5"),
    ],
)
def test_a_target_is_shown_in_a_few_words(value, text):
    column = StoredColumn.of(Dataset.from_dict({"text": ["a"]}), "text", origin="rows")
    assert [row.target for row in shown(column, [value], torch.tensor([0]))] == [text]


def test_long_lists_are_cut():
    assert bounded([str(n) for n in range(1500)], 2) == "0, 1 and 1,498 more"
