"""Divides a cohort into packs: clients that one call of the engine trains together, in whatever process.

Sums in a step may differ in their last bits with the clients that share it. So packs follow from the clients' work, the
number of lanes and what the machine could compute side by side, and not from how many processes there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

MOST_PER_LANE = 2
"""Clients of a pack for each lane. More than one, so that a pack can have many short clients where another has few long
ones: on the demo the longer of two packs then takes 2% more than half of their time, and 7% with one. Not more, because
the replies of a pack are in memory together."""


def packs_of(
    work: Mapping[int, float], *, lanes: int, places: int, depths: Mapping[int, int] | None = None
) -> list[tuple[int, ...]]:
    """The packs, that with the most work first, and so are the client ids of each.

    Packs are as even in their work as the longest client allows. Only clients of one depth share a pack.

    Args:
        work: client id to its work, in any unit.
        lanes: clients of a pack that are trained at a time; it has at most `MOST_PER_LANE` times as many.
        places: how many packs the machine can train side by side.
        depths: client id to the number of blocks that it runs; None if all run the whole model.

    >>> packs_of({1: 10, 2: 90, 3: 20, 4: 10, 5: 40}, lanes=4, places=2)
    [(2,), (5, 3, 1, 4)]
    """
    by_depth: dict[int, list[int]] = {}
    for client_id in sorted(work, key=lambda client_id: (-work[client_id], client_id)):
        by_depth.setdefault(depths[client_id] if depths else 0, []).append(client_id)
    packs = [pack for clients in by_depth.values() for pack in _dealt(clients, work, lanes, places)]
    return sorted(packs, key=lambda pack: (-_sum(pack, work), pack))


def num_packs(num_clients: int, lanes: int, places: int) -> int:
    """The number of packs of so many clients of one depth; for the arguments see `packs_of`."""
    fewest = -(-num_clients // lanes)
    # Rounded up, so that all workers have the same number of packs.
    return min(num_clients, -(-fewest // places) * places) if fewest >= places else fewest


def _dealt(clients: Sequence[int], work: Mapping[int, float], lanes: int, places: int) -> list[tuple[int, ...]]:
    """`clients`, the longest first, each dealt to the pack with the least work that has room."""
    packs: list[list[int]] = [[] for _ in range(num_packs(len(clients), lanes, places))]
    open_packs = [(0.0, number) for number in range(len(packs))]  # a heap
    for client_id in clients:
        done, number = heappop(open_packs)
        packs[number].append(client_id)
        if len(packs[number]) < lanes * MOST_PER_LANE:
            heappush(open_packs, (done + work[client_id], number))
    return list(map(tuple, packs))


def _sum(pack: Sequence[int], work: Mapping[int, float]) -> float:
    return sum(work[client_id] for client_id in pack)
