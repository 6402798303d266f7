"""The rows of very many clients in two tensors instead of one tensor for each client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

# With fewer clients a dictionary is small, and faster to look up.
MANY_CLIENTS = 10_000


class ManyRows(Mapping[int, Tensor]):
    """Client id to its rows, int64, as views of one tensor: a tensor of its own takes 760 bytes more.

    Args:
        rows_of: client id to its rows, int64 of one dimension.
    """

    def __init__(self, rows_of: Mapping[int, Tensor]) -> None:
        lengths = torch.tensor([len(rows) for rows in rows_of.values()])
        self._rows = torch.cat([*rows_of.values()])
        self._ends = lengths.cumsum(0)
        ids = list(rows_of)
        self._places: range | dict[int, int] = range(len(ids))
        if ids != list(self._places):
            self._places = {client_id: place for place, client_id in enumerate(ids)}

    def __getitem__(self, client_id: int) -> Tensor:
        if client_id not in self._places:  # a range would take -1 for its last
            raise KeyError(client_id)
        place = self._places[client_id]
        start = int(self._ends[place - 1]) if place else 0
        return self._rows[start : int(self._ends[place])]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def compact(rows_of: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    """The same with less memory, if these are the rows of many clients."""
    if len(rows_of) < MANY_CLIENTS or isinstance(rows_of, ManyRows):
        return rows_of
    fits = all(isinstance(rows, Tensor) and rows.dim() == 1 and rows.dtype == torch.int64 for rows in rows_of.values())
    return ManyRows(rows_of) if fits else rows_of
