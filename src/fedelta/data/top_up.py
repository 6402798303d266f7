"""Giving clients that drew too few rows some of the rows of those that drew the most (see `Dirichlet`)."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor


def top_up(rows: Mapping[int, Tensor], labels: Tensor, min_size: int) -> dict[int, Tensor]:
    """Moves single rows from the largest clients to those below `min_size`; changes no input.

    A small client, in ascending order of their ids, takes from the largest client that has more than `min_size`
    rows and one of a label that the small client holds, of equals the lowest id, its first such row. Where
    nobody has such a row, it takes the first row of the largest client.

    Args:
        rows: client id to its rows, int64, ascending; together at least `min_size` for each client.
        labels: int64 of shape [N], the label of each row.
        min_size: fewest rows of a client, at least 1.

    Returns:
        Client id to its rows (int64, ascending).

    >>> rows = {0: torch.tensor([0, 1, 2, 3]), 1: torch.tensor([4])}
    >>> top_up(rows, torch.tensor([5, 5, 6, 6, 6]), min_size=2)
    {0: tensor([0, 1, 3]), 1: tensor([2, 4])}
    """
    label_of = labels.tolist()
    held = {client: of_client.tolist() for client, of_client in rows.items()}
    large = {client: of_client for client, of_client in held.items() if len(of_client) > min_size}
    spare = _spare(large, label_of, min_size)
    for client in sorted(held.keys() - large.keys()):
        own_labels = {label_of[row] for row in held[client]}
        while len(held[client]) < min_size:
            row = _take(spare, own_labels)
            held[client].append(row)
            own_labels.add(label_of[row])
    for client, of_label in spare.rows.items():
        held[client] = [row for of_one in of_label.values() for row in of_one]
    return {client: torch.tensor(sorted(of_client), dtype=torch.int64) for client, of_client in held.items()}


@dataclass(frozen=True)
class _Spare:
    """What the large clients still have; changed by `_take`.

    Args:
        rows: client id to label to rows, ascending.
        sizes: client id to number of rows.
        heaps: label to (-size, client id) of each client that has rows of it and more than `min_size` in all.
            Sizes only fall, so an entry that is out of date stands too far in front, never too far back.
        min_size: a client keeps as many rows.
    """

    rows: dict[int, dict[int, deque[int]]]
    sizes: dict[int, int]
    heaps: dict[int, list[tuple[int, int]]]
    min_size: int


def _spare(large: Mapping[int, Sequence[int]], label_of: Sequence[int], min_size: int) -> _Spare:
    rows: dict[int, dict[int, deque[int]]] = {}
    heaps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for client, of_client in large.items():
        of_label: dict[int, deque[int]] = defaultdict(deque)
        for row in of_client:
            of_label[label_of[row]].append(row)
        for label in of_label:
            heaps[label].append((-len(of_client), client))
        rows[client] = dict(of_label)
    for heap in heaps.values():
        heapq.heapify(heap)
    return _Spare(rows, {client: len(of_client) for client, of_client in large.items()}, dict(heaps), min_size)


def _take(spare: _Spare, wanted: Set[int]) -> int:
    """Removes one row from `spare`, of the `wanted` labels where there is one, and returns it."""
    for labels in (wanted & spare.heaps.keys(), spare.heaps.keys()):
        largest = [entry for label in labels if (entry := _largest(spare, label)) is not None]
        if largest:
            break
    # There is one as long as min_size rows for each client exist.
    _, giver = min(largest)
    of_label = spare.rows[giver]
    label = min((label for label in labels if of_label.get(label)), key=lambda label: of_label[label][0])
    spare.sizes[giver] -= 1
    return of_label[label].popleft()


def _largest(spare: _Spare, label: int) -> tuple[int, int] | None:
    """(-size, client id) of the largest client that can give a row of `label`."""
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
