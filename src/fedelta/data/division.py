"""The protocol of partitioners, which divide training rows among clients, and the check of a division."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedelta.errors import PluginError
from fedelta.plugins import called

ClientIds = Sequence[int | str]


class Partitioner(Protocol):
    """Divides training rows among clients: section `[partition]`.

    Where the task has classes, the labels here are these; where it has none, they are the kinds of rows that it knows
    (`Targets.strata`), such as ranges of numbers.
    """

    @property
    def name(self) -> str:
        """Its name in configurations."""

    @property
    def num_clients(self) -> int | None:
        """Number of clients; None if the data determine it."""

    @property
    def goes_by_kind(self) -> bool:
        """Whether it reads the labels, so that it is refused for a task without strata."""

    @property
    def goes_by_client(self) -> bool:
        """Whether it reads `client_ids`, so that clients have the names in the data."""

    def divide(self, labels: Tensor, client_ids: ClientIds | None, seed: int) -> dict[int, Tensor]:
        """The rows of each client.

        Args:
            labels: int64 of shape [N], the label of each row; of a partitioner that does not go by kind they may all
                be 0.
            client_ids: the natural client of each row, N values; None where it does not go by client, or where the
                data name none.
            seed: of the run; draw from `stream(seed, "partition", ...)`.

        Returns:
            Client id (0, 1, ..., ascending) to its rows (int64, ascending). No client is empty and no row belongs to
            two clients; rows that no client has are not used.

        Raises:
            DataError: the data cannot be divided this way; lists all reasons.
        """


def divide(partitioner: Partitioner, labels: Tensor, client_ids: ClientIds | None, *, seed: int) -> dict[int, Tensor]:
    """The result of `Partitioner.divide`, checked.

    Raises:
        DataError: the data cannot be divided this way.
        PluginError: the result is not a valid division.
    """
    # A copy, because these may be the targets themselves.
    rows = partitioner.divide(labels.clone(), client_ids, seed)
    if problem := _problem(rows, len(labels)):
        raise PluginError(f"{called(partitioner)} made no division: {problem}.")
    return rows


def _problem(rows: object, num_rows: int) -> str | None:
    """The problem with a division of `num_rows` rows; None if it is valid."""
    if not isinstance(rows, Mapping):
        return f"it is {type(rows).__name__}, expected a dictionary of client number to rows"
    if not rows or list(rows) != list(range(len(rows))):
        return f"its clients are {list(rows)[:5]}, expected 0, 1, 2, ... in this order"
    for client, of_client in rows.items():
        if not isinstance(of_client, Tensor) or of_client.dtype != torch.int64 or of_client.dim() != 1:
            return f"the rows of client {client} are {type(of_client).__name__}, expected a tensor of int64 [n]"
        if not len(of_client):
            return f"client {client} has no rows, expected one at least"
        if not (of_client[1:] > of_client[:-1]).all() or of_client[0] < 0 or of_client[-1] >= num_rows:
            return f"the rows of client {client} are not ascending numbers from 0 to {num_rows - 1}"
    placed = torch.cat(list(rows.values()))
    if twice := len(placed) - len(placed.unique()):
        return f"{twice} rows belong to more than one client, expected none"
    return None
