"""LEAF's JSON: the rows of each user."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedelta.data.division import divide
from fedelta.data.partition import Natural
from fedelta.data.sources import DataSource, RawData, read
from fedelta.errors import DataError
from fedelta.settings import Context


def write(path: Path, rows: dict[str, list[object]], labels: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {user: {"x": x, "y": labels[: len(x)]} for user, x in rows.items()}
    content = {"users": [*rows], "num_samples": [len(x) for x in rows.values()], "user_data": data}
    path.write_text(json.dumps(content))
    return path


def load(source: Path) -> RawData:
    return read(DataSource(source=str(source)), seed=7)


def test_users_are_clients_and_pixels_an_image(tmp_path):
    pixels = [[(place + n) / 784 / 10 for place in range(784)] for n in range(5)]
    raw = load(write(tmp_path / "all_data.json", {"f1": pixels, "f0": pixels}, [1, 0, 1, 0, 1]))
    assert (raw.modality.name, raw.columns.client, raw.class_names) == ("image", "client", ("0", "1"))
    assert set(raw.train_ids.names) == {"f0", "f1"}
    # Row by row: the second starts with the 28th number.
    assert raw.train.dataset[0]["image"][1][0] in {row[28] for row in pixels}
    clients = divide(Natural(), raw.train.targets.strata, raw.train_ids.codes, seed=0)
    # ceil(0.2 * 10) = 2 rows are held out.
    assert (len(clients), sum(len(rows) for rows in clients.values())) == (2, 8)


def test_training_and_test_files_are_read_and_not_what_they_were_made_of(tmp_path):
    for name, words in (
        ("train/all_data_0_keep_0_train_9", 6),
        ("test/all_data_0_test_9", 4),
        ("all_data/all_data", 10),
    ):
        write(tmp_path / f"{name}.json", {"romeo": [f"speech {n}" for n in range(words)]}, list("ab" * 5))
    raw = load(tmp_path)
    assert (raw.modality.name, len(raw.train), len(raw.test)) == ("text", 6, 4)


def test_a_tweet_is_its_text(tmp_path):
    tweets = [["1467", "Mon", "NO_QUERY", "me", f"words {n}", "more"] for n in range(6)]
    raw = load(write(tmp_path / "d.json", {"me": tweets}, [0, 1] * 3))
    assert all(text.startswith("words ") for text in raw.train.dataset["text"])


def test_names_of_images_are_found_where_leaf_keeps_them(tmp_path):
    place = tmp_path / "raw" / "img_align_celeba"
    place.mkdir(parents=True)
    for n in range(4):
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(place / f"{n}.png")
    path = write(tmp_path / "train" / "d.json", {"7": [f"{n}.png" for n in range(4)]}, [0, 1] * 2)
    assert load(path).train.dataset[0]["image"].size == (4, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"users": ["a"], "user_data": {"a": {"x": ["w"], "y": []}}},
            "user 'a' has no lists `x` and `y` of one length",
        ),
        ({"users": ["a"], "user_data": {}}, "user 'a' has no lists"),
        ({"users": [], "user_data": {}}, "has no rows"),
        ({"users": 3, "user_data": []}, "expected a list `users` and an object `user_data`"),
        ({"users": ["a"], "user_data": {"a": {"x": [[1, 2, 3]], "y": [0]}}}, "neither texts nor square images"),
        ({"users": ["a"], "user_data": {"a": {"x": [[1], [1, 2]], "y": [0, 1]}}}, "neither texts nor .*lengths 1, 2"),
        ({"users": ["a"], "user_data": {"a": {"x": ["1.png"], "y": [0]}}}, "'1.png' does not exist beside the file"),
    ],
)
def test_files_in_another_format_are_refused(tmp_path, content, message):
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d.json")


def test_natural_clients_of_files_that_may_be_leafs_need_no_column(tmp_path):
    path = write(tmp_path / "d.json", {"a": ["w"]}, [0])
    for source, problems in ((path, 0), (tmp_path, 0), ("digits", 1)):
        context = Context({"data": DataSource(source=str(source))})
        assert len(Natural().problems(context)) == problems
