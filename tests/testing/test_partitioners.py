"""A partitioner that breaks a contract is told by it."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
import torch
from tests.testing.broken import broken
from torch import Tensor

from fedelta.data.division import ClientIds
from fedelta.errors import refuse
from fedelta.seeds import stream
from fedelta.settings import Settings
from fedelta.testing import check


class Strides(Settings):
    """Every n-th row of a seeded order."""

    name: Literal["strides"] = "strides"
    goes_by_kind: ClassVar[bool] = False
    goes_by_client: ClassVar[bool] = False
    num_clients: int

    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        refuse("`[partition]`", ["too few rows"] if len(labels) < self.num_clients else [])
        order = torch.randperm(len(labels), generator=stream(seed, "partition"))
        return {client: order[client :: self.num_clients].sort().values for client in range(self.num_clients)}


class FromOne(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        return {client + 1: rows for client, rows in super().divide(labels, client_ids, seed).items()}


class Fewer(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        return {0: super().divide(labels, client_ids, seed)[0]}


class Lists(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        return {client: rows.tolist() for client, rows in super().divide(labels, client_ids, seed).items()}


class Beyond(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        return {client: rows + 1 for client, rows in super().divide(labels, client_ids, seed).items()}


class Unsorted(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        return {client: rows.flip(0) for client, rows in super().divide(labels, client_ids, seed).items()}


class Hungry(Strides):
    """The last client gets nothing."""

    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        rows = super().divide(labels, client_ids, seed)
        return rows | {self.num_clients - 1: torch.zeros(0, dtype=torch.int64)}


class Overlapping(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        rows = super().divide(labels, client_ids, seed)
        return rows | {0: torch.cat([rows[0], rows[1][:3]]).sort().values}


class Global(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        return super().divide(labels, client_ids, int(torch.randint(100, ())))


_divided: list[int] = []


class Counting(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        _divided.append(1)
        return super().divide(labels, client_ids, seed + len(_divided))


class Marking(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        labels[0] = 0
        labels[1] = 1
        return super().divide(labels, client_ids, seed)


class Printing(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        print("dividing")  # noqa: T201  what is broken
        return super().divide(labels, client_ids, seed)


class Failing(Strides):
    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        labels[3]
        return super().divide(labels, client_ids, seed)


NUMBERED = "clients are numbered from zero in order"
NUMBERS = "rows are ascending numbers of rows that there are"


@pytest.mark.parametrize(
    ("partitioner", "sentence", "problem"),
    [
        (FromOne, NUMBERED, "The clients are [1, 2, 3, 4, 5], expected [0, 1, 2, 3, 4]"),
        (Fewer, NUMBERED, "`num_clients` is 5, and there are 1"),
        (Lists, NUMBERS, "The rows of client 0 are list, expected int64"),
        (Beyond, NUMBERS, "has a row that does not exist: there are 200"),
        (Unsorted, NUMBERS, "are not in ascending order"),
        (Hungry, "no client is empty", "The clients [4] have no rows"),
        (Overlapping, "no row belongs to two clients", "3 rows are given twice"),
        (Global, "the seed alone decides", "draws from the global generator of torch"),
        (Counting, "the seed alone decides", "the second time clients have other rows"),
        (Marking, "labels are not changed", "changes the labels in place"),
        (Printing, "nothing is printed", "It prints 'dividing"),
        (Failing, "what cannot be divided is refused with an error of ours", "ends with IndexError"),
    ],
)
def test_a_broken_partitioner_breaks_its_contract(partitioner: type[Strides], sentence: str, problem: str):
    assert problem in broken(partitioner, only=sentence)[sentence]


def test_a_partitioner_that_keeps_every_contract_passes():
    check(Strides)
