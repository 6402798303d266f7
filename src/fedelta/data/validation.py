"""A validation set from the clients' training rows, for choosing hyperparameters without using the test set."""

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
    """A view of some rows of other inputs, without copying.

    Args:
        inputs: all rows.
        rows: int64 of shape [N], positions in `inputs`.
    """

    inputs: Inputs
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Keyword arguments of the model for `rows` (int64, one axis), counted within the view."""
        return self.inputs.fetch(self.rows[rows])


def hold_back(partition: Mapping[int, Tensor], fraction: float, *, seed: int) -> tuple[dict[int, Tensor], Tensor]:
    """Splits the rows of each client into training and validation rows.

    Of a client's n rows, `fraction` * n become validation rows, rounded to the nearest number (halves up), but at least
    one row is for training.

    Args:
        partition: client id to its rows, int64; not modified.
        fraction: share of each client's rows, in (0, 1).
        seed: of the run; the draw for a client depends only on it and the client's id.

    Returns:
        Client id to its training rows, and the validation rows of all clients; all int64, ascending.

    Raises:
        DataError: no client has enough rows.

    >>> train, validation = hold_back({0: torch.arange(10), 1: torch.tensor([10])}, 0.2, seed=0)
    >>> len(train[0]), len(train[1]), len(validation)
    (8, 1, 2)
    """
    train: dict[int, Tensor] = {}
    validation: list[Tensor] = []
    for client, rows in partition.items():
        count = min(math.floor(fraction * len(rows) + 0.5), len(rows) - 1)
        order = torch.randperm(len(rows), generator=stream(seed, "validation", client))
        validation.append(rows[order[:count]])
        train[client] = rows[order[count:]].sort().values
    if not any(len(rows) for rows in validation):
        largest = max(len(rows) for rows in partition.values())
        raise DataError(
            f"`data.validation_fraction` is {fraction}, which gives no validation rows: the largest client has "
            f"{largest} rows",
            hint="increase it, or use fewer clients",
        )
    return train, torch.cat(validation).sort().values
