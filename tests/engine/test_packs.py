"""Cohorts are divided into packs by work, lanes and cores, and by nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedelta.engine.packs import MOST_PER_LANE, num_packs, packs_of
from fedelta.engine.threads import arithmetic_threads, computed_with


@given(
    st.dictionaries(st.integers(0, 99), st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(1, 5),
)
def test_every_client_is_in_one_pack_and_no_pack_has_more_clients_than_it_may(work, lanes, places):
    packs = packs_of(work, lanes=lanes, places=places)
    assert sorted(client_id for pack in packs for client_id in pack) == sorted(work)
    assert all(len(pack) <= lanes * MOST_PER_LANE for pack in packs)
    assert all(list(pack) == sorted(pack, key=lambda client: (-work[client], client)) for pack in packs)
    sums = [sum(work[client_id] for client_id in pack) for pack in packs]
    assert sums == sorted(sums, reverse=True)
    assert packs == packs_of(dict(reversed(work.items())), lanes=lanes, places=places)


def test_clients_of_one_pack_run_equally_many_blocks():
    packs = packs_of({0: 1, 1: 1, 2: 1, 3: 1}, lanes=4, places=2, depths={0: 1, 1: 2, 2: 1, 3: 2})
    assert packs == [(0, 2), (1, 3)]


@pytest.mark.parametrize(
    ("num_clients", "lanes", "places", "expected"),
    [
        (10, 4, 2, 4),  # three would leave one of two workers idle for a third of the time
        (10, 4, 4, 3),  # fewer than cores: each has several threads
        (3, 2, 2, 2),
        (3, 1, 2, 3),  # no more packs than clients
        (8, 8, 2, 1),
    ],
)
def test_all_workers_have_the_same_number_of_packs_if_there_are_enough(num_clients, lanes, places, expected):
    assert num_packs(num_clients, lanes, places) == expected


def test_packs_are_even_in_their_work():
    # 9 + 1 and 5 + 5
    assert packs_of({0: 9, 1: 5, 2: 5, 3: 1}, lanes=2, places=2) == [(0, 3), (1, 2)]


def test_a_pack_has_more_clients_than_lanes_where_another_has_a_long_one():
    # 10 and 3 + 3 + 3; with no more than two clients in each: 10 + 3 and 3 + 3
    assert packs_of({0: 3, 1: 3, 2: 10, 3: 3}, lanes=2, places=2) == [(2,), (0, 1, 3)]


def test_what_happens_between_two_items_has_as_many_threads_as_before():
    before = torch.get_num_threads()
    inside, outside = [], []
    for number in computed_with(3, (torch.get_num_threads() for _ in range(2))):
        inside.append(number)
        outside.append(torch.get_num_threads())
    assert (inside, outside) == ([3, 3], [before, before])


def test_threads_are_as_before_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="no"), arithmetic_threads(before + 1):
        raise ValueError("no")
    assert torch.get_num_threads() == before
