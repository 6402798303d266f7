"""Examples as the engine sees them: rows that can be fetched by index, and the order of batches."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from fedelta.data.clients import Clients, Name
from fedelta.data.glance import Shown
from fedelta.modalities.base import Inputs
from fedelta.tasks.targets import Targets


@dataclass(frozen=True)
class Examples:
    """Inputs and what is to be predicted of them.

    Args:
        inputs: N rows.
        targets: N rows.
        numbers: what the data set calls each row, int64 of shape [N]; None: 0 to N - 1.
        clients: number of the client that each row is from, int64 of shape [N], -1 where it is of none; None where rows
            do not say.
    """

    inputs: Inputs
    targets: Targets
    numbers: Tensor | None = None
    clients: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class FederatedData:
    """Training data divided among clients, and a test set that belongs to nobody.

    Args:
        train: rows of all clients.
        test: rows for evaluation; with `data.evaluate_on = "validation"` those that the clients gave up.
        class_names: one name per class, in label order; nothing where the task has no classes.
        partition: client id (0, 1, ...) to its rows of `train`, int64; no row belongs to two clients.
        held_out: the same for the clients that take part in no round; no client is in both.
        strata_names: one name per kind of row (`Targets.strata`); nothing: they are the classes.
        names: client id to what the client is called; of all clients, or of none.
        shown: some training rows as people see them.
    """

    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    partition: Mapping[int, Tensor]
    held_out: Mapping[int, Tensor] = field(default_factory=dict)
    strata_names: tuple[str, ...] = ()
    names: Mapping[int, Name] = field(default_factory=dict)
    shown: tuple[Shown, ...] = ()

    @cached_property
    def clients(self) -> Clients:
        """Who all of them are.

        Raises:
            DataError: names that cannot be right (see `Clients`).
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
    """Yields `num_steps` batches of `rows`: a new random order each epoch, the last batch of an epoch ragged.

    >>> generators = itertools.repeat(torch.Generator().manual_seed(0))
    >>> [len(batch) for batch in batches(torch.arange(5), 2, 4, generators)]
    [2, 2, 1, 2]

    Args:
        rows: of one client, int64.
        batch_size: rows of a batch.
        num_steps: number of batches.
        generators: one for each epoch, which may all be the same.
        skip: batches of the first epoch that are left out.
    """
    epochs = (rows[torch.randperm(len(rows), generator=each)].split(batch_size) for each in generators)
    return itertools.islice(itertools.chain.from_iterable(epochs), skip, skip + num_steps)
