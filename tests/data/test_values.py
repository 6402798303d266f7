"""Which clients the values of a column name."""

from __future__ import annotations

import datetime
import json
import uuid
from decimal import Decimal

import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Json

from fedelta.data.files import load_splits
from fedelta.data.values import read_ids, values_of
from fedelta.errors import DataError

DAY, OTHER = datetime.date(2024, 2, 1), datetime.date(2024, 1, 31)
MIDNIGHT = datetime.datetime.combine(DAY, datetime.time())
SOME = uuid.UUID(int=7)


def dataset(values: list[object] | pa.Array) -> Dataset:
    return Dataset(pa.table({"who": values}))


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (["b", "a", "b"], ["b", "a", "b"], [1, 0, 1]),
        ([10, 9], [10, 9], [1, 0]),
        (["10", "9"], ["10", "9"], [0, 1]),
        ([2.0, 1.0], [2, 1], [1, 0]),  # a column of numbers that had a gap once
        ([True, False], ["true", "false"], [1, 0]),
        ([DAY, OTHER], ["2024-02-01", "2024-01-31"], [1, 0]),
        ([MIDNIGHT], ["2024-02-01"], [0]),
        ([MIDNIGHT + datetime.timedelta(hours=8), MIDNIGHT], ["2024-02-01T08:00:00", "2024-02-01"], [1, 0]),
        # Two hashes that float64 takes for one.
        (pa.array([2**64 - 1, 2**64 - 2], pa.uint64()), [2**64 - 1, 2**64 - 2], [1, 0]),
        ([Decimal(2**80 + 1), Decimal(2**80)], [2**80 + 1, 2**80], [1, 0]),
        ([SOME.bytes, SOME.bytes], [str(SOME)] * 2, [0, 0]),
    ],
)
def test_ids_are_texts_or_whole_numbers_to_the_last_digit(values, names, codes):
    ids = read_ids(dataset(values), "who", "training set", torch.arange(len(values)))
    assert (ids.names, ids.codes, ids.notes) == (names, codes, ())


def test_class_labels_are_named_and_keep_their_order():
    labels = Dataset.from_dict({"who": [1, 0]}, features=Features({"who": ClassLabel(names=["z", "a"])}))
    ids = read_ids(labels, "who", "training set", torch.arange(2))
    assert (ids.names, ids.codes) == (["a", "z"], [1, 0])


def test_values_of_several_types_in_json_are_texts_as_they_were_written(tmp_path):
    values = ["007", 7, "a", None, '"a" it said', [1]]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"who": value}) + "\n" for value in values))
    mixed = load_splits(str(tmp_path / "d.jsonl"), None).rows["train"]
    assert mixed.features == Features({"who": Json()})
    assert values_of(mixed, "who") == ["007", "7", "a", None, '"a" it said', [1]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None, None], "2 rows have no client id, first row 14 "),
        ([1.0, float("nan")], "1 rows have no client id, first row 14 "),
        (["a", " "], "1 rows have no client id, first row 14 "),
        (["1", "NA", "2"], "1 rows have no client id, first row 14 "),  # elsewhere numbers
        ([0.5, 1.5], "2 rows have a client id of type float, first row 7 .* with 0.5; expected a text"),
        ([2.0**60, 1.0], "(?s)of type float.*hint: .*above 2.53 different ids become equal"),
        ([[1], [2]], "2 rows have a client id of type list, first row 7 "),
        ([{"a": 1}], "1 rows have a client id of type dict"),
        ([b"abc"], "1 rows have a client id of type bytes"),
        ([Decimal("1.5")], "of type Decimal"),
    ],
)
def test_invalid_ids_are_refused_with_the_number_of_their_row(values, message):
    with pytest.raises(DataError, match=message) as caught:
        read_ids(dataset(values), "who", "test set", torch.tensor([7, 14, 21])[: len(values)])
    assert "test set, column 'who' (`data.client_column`)" in str(caught.value)


def test_a_null_word_among_names_is_a_name_with_a_note():
    ids = read_ids(dataset(["DE", "NA", "NA"]), "who", "training set", torch.arange(3))
    assert ids.names == ["DE", "NA", "NA"]
    assert "2 rows belong to a client called 'NA'" in ids.notes[0]
