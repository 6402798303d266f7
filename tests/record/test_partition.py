"""`partition.json`, written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.builders import tiny_data

from fedelta.data.batches import FederatedData
from fedelta.data.clients import Clients
from fedelta.errors import RunError
from fedelta.record.partition import partition_record, read_clients, read_partition


def written(folder: Path, record: object) -> Path:
    path = folder / "partition.json"
    path.write_text(json.dumps(record))
    return path


def federated(**fields: object) -> FederatedData:
    rows = dict(enumerate(torch.arange(12).split(4)))
    return FederatedData(tiny_data(num_rows=12), tiny_data(), ("x", "y", "z"), rows, **fields)


def test_who_holds_what_comes_back_with_names_and_clients_that_are_held_out(tmp_path):
    data = federated(names={0: "ann", 1: "bob", 2: "carl"}).without([1])
    result = read_partition(written(tmp_path, partition_record(data)))
    assert (result.class_names, set(result.counts), result.held_out) == (("x", "y", "z"), {0, 2}, {1})
    assert all(sum(row) == 4 for row in result.counts.values())
    assert result.clients == data.clients


def test_clients_without_names_have_none_in_the_file(tmp_path):
    record = partition_record(federated())
    assert list(record) == ["class_names", "clients"]
    assert read_clients(written(tmp_path, record)) == Clients.of(range(3))


def test_without_the_file_no_client_is_known(tmp_path):
    assert read_partition(tmp_path / "partition.json") is None
    assert read_clients(tmp_path / "partition.json") == Clients()


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({"0": "a"}, "is not valid: names are for all clients or for none"),
        ({"0": "a", "1": "a", "2": "b"}, "is not valid: several clients are called 'a'"),
        ({"zero": "a"}, "does not hold class names and counts"),
        (["a"], "does not hold class names and counts"),
    ],
)
def test_names_that_cannot_be_right_are_refused(tmp_path, names, problem):
    record = partition_record(federated()) | {"names": names}
    with pytest.raises(RunError, match=problem):
        read_partition(written(tmp_path, record))
