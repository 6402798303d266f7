"""Moves rows from the largest clients to clients that drew too few (see `Dirichlet`)."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor


def top_up(rows: Mapping[int, Tensor], labels: Tensor, min_size: int) -> dict[int, Tensor]:
    """Moves single rows from the largest clients to those below `min_size`; does not modify its inputs.

    Small clients are filled in ascending order of their ids. A small client takes a row from the largest client (of
    equals, the lowest id) that has more than `min_size` rows and a row with a label that the small client already has:
    the first such row. If there is no such client, it takes the first row of the largest client.

    Args:
        rows: client id to its rows, int64, ascending; in total at least `min_size` per client.
        labels: int64 of shape [N], the label of each row.
        min_size: minimum number of rows per client, at least 1.

    Returns:
        Client id to its rows (int64, ascending).

    >>> rows = {0: torch.tensor([0, 1, 2, 3]), 1: torch.tensor([4])}
    >>> top_up(rows, torch.tensor([5, 5, 6, 6, 6]), min_size=2)
    {0: tensor([0, 1, 3]), 1: tensor([2, 4])}
    """
    label_of = labels.tolist()
    held = {client: client_rows.tolist() for client, client_rows in rows.items()}
    large = {client: client_rows for client, client_rows in held.items() if len(client_rows) > min_size}
    spare = _spare(large, label_of, min_size)
    for client in sorted(held.keys() - large.keys()):
        client_labels = {label_of[row] for row in held[client]}
        while len(held[client]) < min_size:
            row = _take(spare, client_labels)
            held[client].append(row)
            client_labels.add(label_of[row])
    for client, by_label in spare.rows.items():
        held[client] = [row for label_rows in by_label.values() for row in label_rows]
    return {client: torch.tensor(sorted(client_rows), dtype=torch.int64) for client, client_rows in held.items()}


@dataclass(frozen=True)
class _Spare:
    """The rows of the large clients; modified by `_take`.

    Args:
        rows: client id to label to rows, ascending.
        sizes: client id to number of rows.
        heaps: label to (-size, client id) of each client that has rows of this label and more than `min_size` in
            total. Sizes only shrink, so an outdated entry is too far in front, never too far back.
        min_size: number of rows that a client keeps.
    """

    rows: dict[int, dict[int, deque[int]]]
    sizes: dict[int, int]
    heaps: dict[int, list[tuple[int, int]]]
    min_size: int


def _spare(large: Mapping[int, Sequence[int]], label_of: Sequence[int], min_size: int) -> _Spare:
    rows: dict[int, dict[int, deque[int]]] = {}
    heaps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for client, client_rows in large.items():
        by_label: dict[int, deque[int]] = defaultdict(deque)
        for row in client_rows:
            by_label[label_of[row]].append(row)
        for label in by_label:
            heaps[label].append((-len(client_rows), client))
        rows[client] = dict(by_label)
    for heap in heaps.values():
        heapq.heapify(heap)
    return _Spare(rows, {client: len(client_rows) for client, client_rows in large.items()}, dict(heaps), min_size)


def _take(spare: _Spare, preferred_labels: Set[int]) -> int:
    """Removes one row from `spare`, with one of the preferred labels if possible, and returns it."""
    for labels in (preferred_labels & spare.heaps.keys(), spare.heaps.keys()):
        largest = [entry for label in labels if (entry := _largest(spare, label)) is not None]
        if largest:
            break
    # Not empty, because there are at least min_size rows per client.
    _, client = min(largest)
    by_label = spare.rows[client]
    label = min((label for label in labels if by_label.get(label)), key=lambda label: by_label[label][0])
    spare.sizes[client] -= 1
    return by_label[label].popleft()


def _largest(spare: _Spare, label: int) -> tuple[int, int] | None:
    """(-size, client id) of the largest client that can give away a row of `label`."""
    heap = spare.heaps[label]
    while heap:
        size, client = heap[0]
        if spare.sizes[client] <= spare.min_size or not spare.rows[client][label]:
            heapq.heappop(heap)
        elif size != -spare.sizes[client]:
            heapq.heapreplace(heap, (-spare.sizes[client], client))
        else:
            return heap[0]
    return None
