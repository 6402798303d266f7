"""A validation set from the clients' own rows, for choosing hyperparameters without a look at the test set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta.errors import DataError
from fedelta.modalities.base import Inputs
from fedelta.seeds import stream


@dataclass(frozen=True)
class RowsOf:
    """Some rows of other inputs; nothing is copied or decoded again.

    Args:
        inputs: all rows.
        rows: int64 of shape [N], places in `inputs`.
    """

    inputs: Inputs
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Keyword arguments of the model for `rows` (int64, one axis), counted within the view."""
        return self.inputs.fetch(self.rows[rows])


def hold_back(partition: Mapping[int, Tensor], fraction: float, *, seed: int) -> tuple[dict[int, Tensor], Tensor]:
    """What the clients train on, and the rows that they give up for validation.

    A client of n rows gives up the whole number nearest to `fraction` * n, of two the larger, and keeps at least one.

    Args:
        partition: client id to its rows, int64; left as it is.
        fraction: share of each client's rows, in (0, 1).
        seed: of the run; which rows of a client are drawn depends on it and on the client's id alone.

    Returns:
        Client id to the rows it keeps, and the rows of all that were given up; all int64, ascending.

    Raises:
        DataError: no client has enough rows to give one up.

    >>> kept, given = hold_back({0: torch.arange(10), 1: torch.tensor([10])}, 0.2, seed=0)
    >>> len(kept[0]), len(kept[1]), len(given)
    (8, 1, 2)
    """
    kept: dict[int, Tensor] = {}
    given: list[Tensor] = []
    for client, rows in partition.items():
        count = min(math.floor(fraction * len(rows) + 0.5), len(rows) - 1)
        order = torch.randperm(len(rows), generator=stream(seed, "validation", client))
        given.append(rows[order[:count]])
        kept[client] = rows[order[count:]].sort().values
    if not any(len(rows) for rows in given):
        largest = max(len(rows) for rows in partition.values())
        raise DataError(
            f"`data.validation_fraction` is {fraction}, but the largest client has {largest} rows and gives none up",
            hint="raise it, or have fewer clients",
        )
    return kept, torch.cat(given).sort().values
