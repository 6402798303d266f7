"""Topping up small clients, against its rule written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedelta.data.top_up import top_up


def by_the_rule(rows: dict[int, Tensor], labels: Tensor, min_size: int) -> dict[int, Tensor]:
    """What the docstring says, by sorting all clients for every row."""
    held = {client: of_client.tolist() for client, of_client in rows.items()}
    label_of = labels.tolist()
    for client in sorted(held):
        own_labels = {label_of[row] for row in held[client]}
        while len(held[client]) < min_size:
            largest_first = sorted(held, key=lambda other: (-len(held[other]), other))
            givers = [other for other in largest_first if len(held[other]) > min_size]
            fitting = ((g, row) for g in givers for row in held[g] if label_of[row] in own_labels)
            giver, row = next(fitting, None) or (givers[0], held[givers[0]][0])
            held[giver].remove(row)
            held[client].append(row)
            own_labels.add(label_of[row])
    return {client: torch.tensor(sorted(of_client)) for client, of_client in held.items()}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("min_size", [1, 4, 10])
def test_random_clients_are_topped_up_by_the_rule(seed, min_size):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 1 + seed % 7, (120,), generator=generator)
    # Squares: many rows for few clients, none for some.
    owner = (torch.rand(120, generator=generator).square() * 12 * torch.rand(120, generator=generator)).long()
    rows = {client: (owner == client).nonzero().flatten() for client in range(12)}
    topped, expected = top_up(rows, labels, min_size), by_the_rule(rows, labels, min_size)
    assert topped.keys() == expected.keys()
    assert all(topped[client].tolist() == expected[client].tolist() for client in expected)
    assert all(of_client.dtype == torch.int64 for of_client in topped.values())


def test_a_client_without_rows_takes_from_the_largest_then_of_the_same_label():
    rows = {0: torch.tensor([], dtype=torch.int64), 1: torch.tensor([0, 1]), 2: torch.tensor([2, 3, 4, 5])}
    labels = torch.tensor([7, 7, 8, 9, 8, 9])
    # Row 2 first, of label 8 from then on: row 4.
    assert top_up(rows, labels, 2)[0].tolist() == [2, 4]
    assert rows[2].tolist() == [2, 3, 4, 5]
