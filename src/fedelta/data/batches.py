"""The data of a federation, with rows that are fetched by index, and the order of batches."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from fedelta.data.clients import Clients, Name
from fedelta.data.glance import Shown
from fedelta.data.skipping import Skipped
from fedelta.modalities.base import Inputs
from fedelta.seeds import uniform_numbers
from fedelta.tasks.targets import Targets


@dataclass(frozen=True)
class Examples:
    """Inputs and targets of the same rows.

    Args:
        inputs: N rows.
        targets: N rows.
        numbers: number of each row in the data set, int64 of shape [N]; None: 0 to N - 1.
        clients: client number of each row, int64 of shape [N], -1 for none; None if unknown.
    """

    inputs: Inputs
    targets: Targets
    numbers: Tensor | None = None
    clients: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class FederatedData:
    """Training data divided among clients, and a test set that belongs to no client.

    Args:
        train: rows of all clients.
        test: rows for evaluation; with `data.evaluate_on = "validation"`, rows held back from the clients.
        class_names: in label order; empty if the task has no classes.
        partition: client id (0, 1, ...) to its rows of `train`, int64; no row belongs to two clients.
        held_out: the same for held-out clients, which take part in no round; no client is in both.
        strata_names: one per stratum (`Targets.strata`); empty if the strata are the classes.
        names: client id to the client's name; for all clients or for none.
        shown: some training rows for display.
        skipped: examples that could not be read and were left out.
    """

    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    partition: Mapping[int, Tensor]
    held_out: Mapping[int, Tensor] = field(default_factory=dict)
    strata_names: tuple[str, ...] = ()
    names: Mapping[int, Name] = field(default_factory=dict)
    shown: tuple[Shown, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def __repr__(self) -> str:
        num = len(self.partition) + len(self.held_out)
        return f"FederatedData({len(self.train):,} rows of {num:,} clients, {len(self.test):,} test rows)"

    @cached_property
    def clients(self) -> Clients:
        """All clients, including held-out ones.

        Raises:
            DataError: the names are invalid (see `Clients`).
        """
        return Clients.of([*self.partition, *self.held_out], self.names)

    def without(self, client_ids: Collection[int]) -> FederatedData:
        """A copy in which these clients are held out; no client id changes."""
        partition = {client: rows for client, rows in self.partition.items() if client not in client_ids}
        held_out = {client: rows for client, rows in self.partition.items() if client in client_ids}
        return replace(self, partition=partition, held_out={**self.held_out, **held_out})


def batches(
    rows: Tensor, batch_size: int, num_steps: int, generators: Iterator[Generator], skip: int = 0
) -> Iterator[Tensor]:
    """Yields `num_steps` batches of `rows` in a new random order each epoch; the last batch of an epoch may be smaller.

    >>> generators = itertools.repeat(torch.Generator().manual_seed(0))
    >>> [len(batch) for batch in batches(torch.arange(5), 2, 4, generators)]
    [2, 2, 1, 2]

    Args:
        rows: of one client, int64.
        batch_size: rows per batch.
        num_steps: number of batches.
        generators: one per epoch, which may all be the same object.
        skip: batches of the first epoch to leave out.
    """
    epochs = (_epoch(rows, batch_size, generator) for generator in generators)
    return itertools.islice(itertools.chain.from_iterable(epochs), skip, skip + num_steps)


def _epoch(rows: Tensor, batch_size: int, generator: Generator) -> Sequence[Tensor]:
    order = rows.index_select(0, torch.randperm(rows.shape[0], generator=generator))
    return (order,) if order.shape[0] <= batch_size else order.split(batch_size)


def poisson_batches(rows: Tensor, rate: float, num_steps: int, generator: Generator) -> Iterator[Tensor]:
    """Yields `num_steps` samples of `rows`, each with every row at probability `rate`, independently; some are empty.

    >>> generator = torch.Generator().manual_seed(3)
    >>> [batch.tolist() for batch in poisson_batches(torch.arange(5), 0.3, 4, generator)]
    [[0, 2, 4], [0], [1, 2], []]

    Args:
        rows: of one client, int64.
        rate: above 0 and at most 1.
        num_steps: number of samples.
        generator: of the client; whoever knows it knows the samples.
    """
    for _ in range(num_steps):
        yield rows[uniform_numbers(generator, len(rows)) < rate]
