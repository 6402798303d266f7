from __future__ import annotations

import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedelta.errors import PayloadError
from fedelta.runtimes.flower.envelope import travelled_bytes, unwrap, wrap
from fedelta.runtimes.remote.messages import Message

MANY = 10**6


@pytest.mark.parametrize("blobs", [(), (b"",), (b"ab", b"", b"cde"), (bytes(1000),)])
def test_a_message_comes_back_as_it_was(blobs: tuple[bytes, ...]):
    message = unwrap(wrap(Message("train", {"round": 3, "missing": None}, blobs)), MANY)
    assert (message.kind, message.manifest) == ("train", {"round": 3, "missing": None})
    assert tuple(map(bytes, message.blobs)) == blobs


def test_many_blobs_travel_as_one_array_of_bytes():
    records = wrap(Message("train", {}, [b"x" * 10] * 50))
    arrays = [array for record in records.array_records.values() for array in record.values()]
    assert [(array.dtype, array.shape) for array in arrays] == [("uint8", (500,))]


def test_the_same_message_has_another_id_each_time():
    # Flower's id of an object is a digest of its content.
    one, other = (wrap(Message("train", {"round": 1}, [b"ab"])) for _ in range(2))
    assert one.object_id != other.object_id


def test_the_bytes_that_travelled_are_those_of_manifest_and_array():
    records = wrap(Message("train", {}, [b"abc"]))
    text = records.config_records["manifest"]["text"]
    assert travelled_bytes(records) == len(text) + 128 + 3  # NumPy's header has 128 bytes


def test_records_of_another_program_are_refused():
    records = RecordDict({"metrics": MetricRecord({"loss": 1.0}), "blobs": ArrayRecord()})
    with pytest.raises(PayloadError, match=re.escape("a message has records ['blobs', 'metrics']")):
        unwrap(records, MANY)


def test_a_message_above_the_limit_is_refused_before_it_is_read():
    with pytest.raises(PayloadError, match="has 229 bytes, more than the 100 that are allowed"):
        unwrap(wrap(Message("train", {}, [bytes(101)])), 100)


@pytest.mark.parametrize(
    "array",
    [
        Array(np.zeros(3, np.float32)),
        Array(np.zeros((2, 2), np.uint8)),
        Array("uint8", (3,), "numpy.ndarray", b"abc"),
        Array("uint8", (3,), "numpy.ndarray", b""),
        # The header claims 9 bytes where 3 follow: NumPy would allocate what a header claims.
        Array("uint8", (3,), "numpy.ndarray", Array(np.zeros(3, np.uint8)).data.replace(b"(3,)", b"(9,)")),
    ],
)
def test_an_array_that_is_no_row_of_bytes_is_refused_without_numpy(array: Array, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(np, "load", None)
    records = wrap(Message("train", {}, []))
    records["blobs"] = ArrayRecord({"blobs": array})
    with pytest.raises(PayloadError, match="blobs are no array of bytes"):
        unwrap(records, MANY)


def test_a_manifest_that_is_no_text_is_refused():
    records = wrap(Message("train", {}, []))
    records["manifest"] = ConfigRecord({"text": 3})
    with pytest.raises(PayloadError, match="a manifest is no text"):
        unwrap(records, MANY)
