"""The rows of many clients: the same as those of a dictionary."""

from __future__ import annotations

import pytest
import torch
from tests.builders import tiny_data
from torch import Tensor, tensor

from fedelta.data.batches import FederatedData
from fedelta.data.rows import MANY_CLIENTS, ManyRows, compact

ROWS = {0: tensor([4, 1]), 1: tensor([], dtype=torch.int64), 2: tensor([7])}


@pytest.mark.parametrize("rows_of", [ROWS, {5: ROWS[0], 3: ROWS[1], 9: ROWS[2]}], ids=["range", "others"])
def test_many_rows_are_those_of_the_dictionary_in_its_order(rows_of: dict[int, Tensor]):
    many = ManyRows(rows_of)
    assert list(many) == list(rows_of)
    assert {client: rows.tolist() for client, rows in many.items()} == {c: r.tolist() for c, r in rows_of.items()}
    assert len(many) == 3


@pytest.mark.parametrize("client", [-1, 3, 100])
def test_a_client_that_is_not_there_has_no_rows(client: int):
    with pytest.raises(KeyError):
        ManyRows(ROWS)[client]


def test_data_of_many_clients_keep_their_rows_in_one_tensor_and_of_few_as_they_are():
    many = dict(enumerate(torch.arange(MANY_CLIENTS).split(1)))
    data = FederatedData(tiny_data(), tiny_data(), ("a", "b", "c"), many, held_out=ROWS)
    assert isinstance(data.partition, ManyRows)
    assert data.partition[MANY_CLIENTS - 1].tolist() == [MANY_CLIENTS - 1]
    assert data.held_out is ROWS
    assert isinstance(data.without({0, 7}).partition, dict)  # now fewer


def test_what_are_no_rows_is_left_for_those_who_check_it():
    broken = dict.fromkeys(range(MANY_CLIENTS), tensor(1.5))
    assert compact(broken) is broken
