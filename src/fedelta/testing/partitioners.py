"""Contracts of partitioners, tried on 200 rows of ten labels and six natural clients."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedelta.data.division import Partitioner
from fedelta.errors import DataError
from fedelta.seeds import stream
from fedelta.testing.contract import BreachError, no_global_draws, require, same_bits

NUM_ROWS, NUM_LABELS = 200, 10


@dataclass(frozen=True)
class PartitionTrial:
    """A partitioner and the rows that it is tried on.

    Args:
        partition: the partitioner to test.
    """

    partition: Partitioner

    @cached_property
    def labels(self) -> Tensor:
        """From 29 rows of label 0 to 11 rows of label 9, shuffled."""
        order = torch.randperm(NUM_ROWS, generator=stream(0, "rows"))
        return torch.arange(NUM_LABELS).repeat_interleave(torch.arange(29, 10, -2))[order]

    @cached_property
    def rows(self) -> Mapping[int, Tensor]:
        """The rows of each client for seed 3."""
        return self.divided(3)

    def divided(self, seed: int, labels: Tensor | None = None) -> Mapping[int, Tensor]:
        """The rows of each client."""
        labels = self.labels if labels is None else labels
        owners = [f"site {row % 6}" for row in range(len(labels))]
        return self.partition.divide(labels, owners, seed)


def clients_are_numbered_from_zero_in_order(trial: PartitionTrial) -> None:
    """0, 1, ..., `num_clients` of them."""
    ids = list(trial.rows)
    require(ids == list(range(len(ids))), f"The clients are {ids}, expected {list(range(len(ids)))}.")
    number = trial.partition.num_clients
    require(number in (None, len(ids)), f"`num_clients` is {number}, and there are {len(ids)}.")


def rows_are_ascending_numbers_of_rows_that_there_are(trial: PartitionTrial) -> None:
    """int64, one axis."""
    for client, rows in trial.rows.items():
        kind = (rows.dtype, rows.dim()) if isinstance(rows, Tensor) else type(rows).__name__
        require(kind == (torch.int64, 1), f"The rows of client {client} are {kind}, expected int64 of one axis.")
        inside = bool(((rows >= 0) & (rows < NUM_ROWS)).all())
        require(inside, f"Client {client} has a row that does not exist: there are {NUM_ROWS}.")
        require(bool((rows.diff() >= 0).all()), f"The rows of client {client} are not in ascending order.")


def no_client_is_empty(trial: PartitionTrial) -> None:
    """A client without rows cannot train."""
    empty = [client for client, rows in trial.rows.items() if not len(rows)]
    require(not empty, f"The clients {empty} have no rows.")


def no_row_belongs_to_two_clients(trial: PartitionTrial) -> None:
    """And none twice to one client."""
    counts = torch.cat(list(trial.rows.values())).bincount(minlength=NUM_ROWS)
    twice = (counts > 1).nonzero().flatten().tolist()
    require(not twice, f"{len(twice)} rows are given twice, first row {(twice or [0])[0]}.")


def the_seed_alone_decides(trial: PartitionTrial) -> None:
    """The division does not depend on earlier ones, and no global generator is used."""
    with no_global_draws():
        first = {client: rows.clone() for client, rows in trial.divided(3).items()}
        trial.divided(4)
        again = trial.divided(3)
    same = first.keys() == again.keys() and all(same_bits(first[client], rows) for client, rows in again.items())
    require(same, "With the same seed, the second time clients have other rows.")


def labels_are_not_changed(trial: PartitionTrial) -> None:
    """The training set still needs them."""
    before = trial.labels.clone()
    trial.divided(3)
    require(same_bits(trial.labels, before), "It changes the labels in place.")


def nothing_is_printed(trial: PartitionTrial) -> None:
    """Standard output is for results."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trial.divided(3)
    require(not printed.getvalue(), f"It prints {printed.getvalue()[:80]!r}.")


def what_cannot_be_divided_is_refused_with_an_error_of_ours(trial: PartitionTrial) -> None:
    """A single row is either divided, or refused with a `DataError`."""
    try:
        rows = trial.divided(3, torch.zeros(1, dtype=torch.int64))
    except DataError:
        return
    except Exception as error:  # a partitioner may raise anything
        raise BreachError(f"A single row ends with {type(error).__name__}: {error}, expected a DataError.") from error
    empty = [client for client, of_client in rows.items() if not len(of_client)]
    require(not empty, f"Of a single row, the clients {empty} get none; refuse that with a DataError.")


CHECKS: tuple[Callable[[PartitionTrial], None], ...] = (
    clients_are_numbered_from_zero_in_order,
    rows_are_ascending_numbers_of_rows_that_there_are,
    no_client_is_empty,
    no_row_belongs_to_two_clients,
    the_seed_alone_decides,
    labels_are_not_changed,
    nothing_is_printed,
    what_cannot_be_divided_is_refused_with_an_error_of_ours,
)
