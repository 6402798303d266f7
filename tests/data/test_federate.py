"""From a section `[data]` and a section `[partition]` to what the engine works on."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tests.builders import Kindless
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedelta.data.federate import federate
from fedelta.data.label_skew import Dirichlet, Pathological
from fedelta.data.partition import Iid, Natural
from fedelta.data.sources import DataSource, RawData, read
from fedelta.errors import DataError
from fedelta.modalities.image import Images
from fedelta.modalities.text import Texts


def text_modality() -> Texts:
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return Texts(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]"))


def test_the_digits_of_sixty_four_clients_are_ready_for_a_model():
    raw = read(DataSource(source="digits"), seed=7)
    data = federate(raw, Dirichlet(num_clients=64, alpha=0.1), Images.from_preprocessor({}, 16, 3), seed=7)
    assert (len(data.train), len(data.test), len(data.partition)) == (1437, 360, 64)
    rows = data.partition[5]
    assert data.train.inputs.fetch(rows)["pixel_values"].shape == (len(rows), 3, 16, 16)
    # A row's label belongs to its image: the same label as in the data set it came from.
    assert data.train.targets.values[rows].tolist() == raw.train.dataset.select(rows.tolist())["label"][:]


def test_texts_with_natural_clients(tmp_path):
    lines = ["text,mood,clinic", *(f"{'good ' * (row % 3 + 1)},{row % 2},c{row % 4}" for row in range(40))]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    source = DataSource(source=str(tmp_path / "d.csv"), label_column="mood", text_column="text", max_length=2)
    raw = read(source.model_copy(update={"client_column": "clinic"}), seed=0)
    data = federate(raw, Natural(num_clients=4), text_modality(), seed=0)
    assert [set(raw.train.dataset.select(rows.tolist())["clinic"]) for rows in data.partition.values()] == [
        {"c0"},
        {"c1"},
        {"c2"},
        {"c3"},
    ]
    assert data.train.inputs.fetch(torch.arange(len(data.train)))["input_ids"].shape == (32, 2)


@pytest.mark.parametrize("limit", [None, 30])
def test_bad_rows_have_their_number_in_the_file(tmp_path, limit):
    empty = {5, 13, 23}
    lines = [json.dumps({"text": "" if row in empty else "good", "label": row % 2}) for row in range(40)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    raw = read(DataSource(source=str(tmp_path / "d.jsonl"), max_train_examples=limit), seed=0)
    rows = sorted(empty & set(raw.train.numbers.tolist()))
    assert rows
    numbers = ", ".join(str(row) for row in rows)
    with pytest.raises(DataError, match=rf"(?s)the training set of .* rows {numbers}\n"):
        federate(raw, Iid(num_clients=2), text_modality(), seed=0)


def test_a_test_set_of_its_own_is_named_in_its_errors(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\n" + "good,a\nbad,b\n" * 4)
    (tmp_path / "later.csv").write_text('text,label\ngood,a\n"",b\n')
    source = DataSource(source=str(tmp_path / "d.csv"), test_source=str(tmp_path / "later.csv"))
    with pytest.raises(DataError, match=r"(?s)the test set of data source '.*/later.csv'.* rows 1\n"):
        federate(read(source, seed=0), Iid(num_clients=2), text_modality(), seed=0)


def test_a_model_for_the_other_kind_of_input_is_refused():
    raw = read(DataSource(source="digits"), seed=0)
    with pytest.raises(DataError, match=r"(?s)'image' holds images, but the model takes texts.*hint: choose another"):
        federate(raw, Iid(num_clients=2), text_modality(), seed=0)


def test_a_file_that_is_no_image_is_named(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for row in range(3):
            (tmp_path / label / f"{row}.png").write_bytes(b"no image at all")
    raw = read(DataSource(source=str(tmp_path)), seed=0)
    with pytest.raises(
        DataError, match=r"(?s)4 problems in the training set of .*/a/\d.png\): not an image in a known format"
    ):
        federate(raw, Iid(num_clients=2), Images.from_preprocessor({}, 8, 3), seed=0)


def clinics(folder, column: str = "clinic", names: str = "abc") -> DataSource:
    """Thirty rows in turn of three clinics, and six test rows, two of each."""
    lines = [f"{'good ' * (row % 3 + 1)},{row % 2},{names[row % 3]}" for row in range(30)]
    (folder / "train.csv").write_text("\n".join([f"text,mood,{column}", *lines]))
    (folder / "test.csv").write_text("\n".join([f"text,mood,{column}", *lines[:6]]))
    return DataSource(
        source=str(folder / "train.csv"),
        test_source=str(folder / "test.csv"),
        label_column="mood",
        text_column="text",
        client_column=column,
    )


def federated(source: DataSource, partition: object = None, held_out: tuple[object, ...] = ()):
    find = lambda clients: [clients.find(key) for key in held_out]  # noqa: E731
    return federate(read(source, seed=0), partition or Natural(), text_modality(), seed=0, held_out=find)


def test_natural_clients_are_called_by_their_ids(tmp_path):
    data = federated(clinics(tmp_path))
    assert data.names == {0: "a", 1: "b", 2: "c"}
    # In ascending order of the ids, whatever comes first in the file.
    data = federated(clinics(tmp_path, names="931"))
    assert data.names == {0: 1, 1: 3, 2: 9}
    assert data.partition[0].tolist() == list(range(2, 30, 3))
    assert federated(clinics(tmp_path), Iid(num_clients=2)).names == {}


def test_the_natural_clients_that_are_drawn_keep_their_names(tmp_path):
    source = clinics(tmp_path)
    raw, data = read(source, seed=0), federated(source, Natural(num_clients=2))
    assert set(data.names) == {0, 1}
    for client, name in data.names.items():
        assert set(raw.train.dataset.select(data.partition[client].tolist())["clinic"]) == {name}


def test_class_labels_as_ids_are_called_by_the_names_of_the_labels(tmp_path):
    features = Features({"text": Value("string"), "label": Value("int64"), "site": ClassLabel(names=["z", "y"])})
    table = {"text": ["good", "bad"] * 6, "label": [0, 1] * 6, "site": [1, 1, 0] * 4}
    Dataset.from_dict(table, features=features).to_parquet(tmp_path / "d.parquet")
    source = DataSource(source=str(tmp_path / "d.parquet"), client_column="site", test_fraction=0.1)
    assert federated(source).names == {0: "z", 1: "y"}


@pytest.mark.parametrize("settings", [Dirichlet(num_clients=2, alpha=1.0), Pathological(num_clients=2)])
def test_rows_without_kinds_are_not_divided_by_them(settings):
    raw = read(DataSource(source="digits", max_train_examples=40), seed=0)
    raw = replace(raw, train=replace(raw.train, targets=Kindless(raw.train.targets.values)))
    with pytest.raises(DataError, match=f"name is '{settings.name}', which divides by classes, but the task has none"):
        federate(raw, settings, Images.from_preprocessor({}, 16, 3), seed=0)
    data = federate(raw, Iid(num_clients=2), Images.from_preprocessor({}, 16, 3), seed=0)
    assert [len(rows) for rows in data.partition.values()] == [20, 20]


def test_validation_rows_say_whose_they_are():
    source = DataSource(source="digits", max_train_examples=40, evaluate_on="validation", validation_fraction=0.5)
    raw = read(source, seed=0)
    data = federate(raw, Iid(num_clients=4), Images.from_preprocessor({}, 16, 3), seed=0)
    assert data.test.clients.bincount().tolist() == [5, 5, 5, 5]
    places = {number: place for place, number in enumerate(raw.train.numbers.tolist())}
    whole = federate(raw_with(raw, evaluate_on="test"), Iid(num_clients=4), Images.from_preprocessor({}, 16, 3), seed=0)
    for number, client in zip(data.test.numbers.tolist(), data.test.clients.tolist(), strict=True):
        assert places[number] in whole.partition[client].tolist()


def raw_with(raw: RawData, **of_source: object) -> RawData:
    return replace(raw, source=raw.source.model_copy(update=of_source))


def test_rows_of_clients_that_are_held_out_are_not_in_the_test_set(tmp_path):
    source = clinics(tmp_path)
    data, whole = federated(source, held_out=("b",)), federated(source)
    assert (set(data.partition), set(data.held_out), data.names) == ({0, 2}, {1}, {0: "a", 1: "b", 2: "c"})
    # Rows 1 and 4 of the test set are those of b; texts have one to three words in turn.
    assert (len(whole.test), len(data.test)) == (6, 4)
    rows = torch.arange(4)
    assert data.test.inputs.fetch(rows)["attention_mask"].sum(1).tolist() == [1, 3, 1, 3]
    assert data.test.targets.fetch(rows).tolist() == [0, 0, 1, 1]
    assert data.test.numbers.tolist() == [0, 2, 3, 5]
    assert (data.test.clients.tolist(), whole.test.clients.tolist()) == ([0, 2, 0, 2], [0, 1, 2, 0, 1, 2])
    assert len(federated(source, Iid(num_clients=3), held_out=(1,)).test) == 6


def test_a_test_set_of_other_clients_causes_a_warning(tmp_path, caplog):
    source = clinics(tmp_path)
    assert federated(source).test.clients.tolist() == [0, 1, 2, 0, 1, 2]
    assert not caplog.records
    raw = read(source, seed=0)
    elsewhere = replace(raw.test, dataset=raw.test.dataset.map(lambda row: {"clinic": f"{row['clinic']}-2"}))
    data = federate(replace(raw, test=elsewhere), Natural(), text_modality(), seed=0)
    assert data.test.clients.tolist() == [-1] * 6
    (record,) = caplog.records
    assert record.getMessage() == (
        "column 'clinic' of the test set has no client that is trained with ('a', 'b', 'c'): there are no measures by "
        "client."
    )


def test_rows_that_are_cut_off_the_training_set_are_left_out_as_well(tmp_path):
    source = clinics(tmp_path).model_copy(update={"test_source": None, "test_fraction": 0.5})
    raw = read(source, seed=0)
    left = [clinic for clinic in raw.test.dataset["clinic"] if clinic != "b"]
    assert 0 < len(left) < 15
    assert len(federated(source, held_out=("b",)).test) == len(left)


def test_bad_rows_of_such_a_test_set_keep_their_numbers(tmp_path):
    source = clinics(tmp_path)
    content = (tmp_path / "test.csv").read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join([*content[:-1], '"",1,c']))
    with pytest.raises(DataError, match=r"(?s)the test set of .* rows 5\n"):
        federated(source, held_out=("b",))


def test_a_test_set_need_not_say_whose_its_rows_are(tmp_path):
    source = clinics(tmp_path)
    (tmp_path / "test.csv").write_text("text,mood\ngood,0\ngood good,1\n")
    assert len(federated(source, held_out=("b",)).test) == 2


def test_a_test_set_of_nothing_but_clients_that_are_held_out_is_refused(tmp_path):
    source = clinics(tmp_path)
    (tmp_path / "test.csv").write_text("text,mood,clinic\ngood,0,b\ngood good,1,b\n")
    problem = "every row of the test set belongs to a held-out client: 'b'"
    with pytest.raises(DataError, match=problem) as caught:
        federated(source, held_out=("b",))
    assert "data.test_source" in caught.value.hint


@pytest.mark.shared
def test_cifar_100_is_read_in_seconds_with_its_published_clients(shared_dir):
    start = time.monotonic()
    source = DataSource(source=str(shared_dir / "data" / "cifar100"), client_column="client")
    raw = read(source, seed=0)
    data = federate(raw, Natural(num_clients=100), Images.from_preprocessor({}, 224, 3), seed=0)
    seconds = time.monotonic() - start
    assert (len(data.train), len(data.test), len(data.class_names)) == (25000, 5000, 100)
    assert data.train.inputs.raw.shape == (25000, 3, 32, 32)
    assert raw.train.dataset.select(data.partition[17].tolist()).unique("client") == [17]
    # Five on an idle machine; the bound is for one that decodes with every attempt of every format.
    assert seconds < 60
