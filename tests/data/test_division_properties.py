"""Properties of every partitioner, whatever the labels and the numbers of clients are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedelta.data.division import Partitioner
from fedelta.data.label_skew import Dirichlet, Pathological
from fedelta.data.partition import Iid, Natural, Quantity
from fedelta.data.top_up import top_up
from fedelta.errors import DataError
from fedelta.seeds import stream

ALPHAS = st.sampled_from((0.05, 0.5, 5.0))


@st.composite
def partitioners(draw: st.DrawFn) -> Partitioner:
    num_clients, min_size = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    return draw(
        st.one_of(
            st.builds(Iid, num_clients=st.just(num_clients)),
            st.builds(Quantity, num_clients=st.just(num_clients), alpha=ALPHAS, min_size=st.just(min_size)),
            st.builds(
                Dirichlet, num_clients=st.just(num_clients), alpha=ALPHAS, min_size=st.just(min_size),
                self_balancing=st.booleans(),
            ),
            st.builds(Pathological, num_clients=st.just(num_clients), labels_per_client=st.integers(1, 3)),
            st.builds(Natural, num_clients=st.one_of(st.none(), st.integers(1, 12))),
        )
    )  # fmt: skip


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def owners(labels: Sequence[int]) -> list[int]:
    """The natural client of each row, about five rows each."""
    return [(7 * row) % (1 + len(labels) // 5) for row in range(len(labels))]


def divided(partitioner: Partitioner, labels: Sequence[int], seed: int) -> dict[int, Tensor] | None:
    """The rows of each client; None where that is refused."""
    try:
        return partitioner.divide(torch.tensor(labels), owners(labels), seed)
    except DataError:
        return None


@settings(max_examples=60)
@given(partitioner=partitioners(), labels=LABELS, seed=st.integers(0, 1000))
def test_no_row_has_two_clients_no_client_is_empty_and_the_seed_decides(
    partitioner: Partitioner, labels: list[int], seed: int
):
    rows = divided(partitioner, labels, seed)
    again = divided(partitioner, labels, seed)
    if rows is None:
        assert again is None
        return
    assert list(rows) == list(range(len(rows)))
    assert len(rows) == (partitioner.num_clients or len(set(owners(labels))))
    placed = torch.cat(list(rows.values()))
    assert len(placed.unique()) == len(placed)
    assert all(len(of_client) and torch.equal(of_client, of_client.sort().values) for of_client in rows.values())
    assert {client: of_client.tolist() for client, of_client in rows.items()} == {
        client: of_client.tolist() for client, of_client in again.items()
    }
    if isinstance(partitioner, Iid | Quantity | Dirichlet) or partitioner == Natural():
        assert placed.sort().values.tolist() == list(range(len(labels)))


@settings(max_examples=60)
@given(partitioner=partitioners(), labels=LABELS, seed=st.integers(0, 1000))
def test_sizes_are_those_that_each_partitioner_promises(partitioner: Partitioner, labels: list[int], seed: int):
    rows = divided(partitioner, labels, seed)
    sizes = sorted(len(of_client) for of_client in (rows or {}).values())
    if rows is None:
        return
    if isinstance(partitioner, Iid):
        assert sizes[-1] - sizes[0] <= 1
    elif isinstance(partitioner, Quantity | Dirichlet):
        assert sizes[0] >= partitioner.min_size
    elif isinstance(partitioner, Pathological):
        held = [{labels[row] for row in of_client.tolist()} for of_client in rows.values()]
        assert {len(of_client) for of_client in held} == {partitioner.labels_per_client}
    else:
        own = [{owners(labels)[row] for row in of_client.tolist()} for of_client in rows.values()]
        assert all(len(of_client) == 1 for of_client in own)
        assert own == sorted(own, key=min)


@given(labels=st.lists(st.integers(0, 3), min_size=12, max_size=40), seed=st.integers(0, 1000), data=st.data())
def test_equal_shares_do_not_depend_on_labels(labels: list[int], seed: int, data: st.DataObject):
    others = data.draw(st.permutations(labels))
    for partitioner in (Iid(num_clients=5), Quantity(num_clients=4, alpha=0.5, min_size=2)):
        rows, again = divided(partitioner, labels, seed), divided(partitioner, others, seed)
        assert rows is not None
        assert again is not None
        assert [of_client.tolist() for of_client in rows.values()] == [
            of_client.tolist() for of_client in again.values()
        ]


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=8), seed=st.integers(0, 1000), data=st.data())
def test_topping_up_moves_as_few_rows_as_it_can(sizes: list[int], seed: int, data: st.DataObject):
    total = sum(sizes)
    min_size = data.draw(st.integers(1, max(1, total // len(sizes))))
    if total < min_size * len(sizes):
        return
    order = torch.randperm(total, generator=stream(seed, "rows"))
    labels = torch.randint(0, 3, (total,), generator=stream(seed, "labels"))
    rows = {client: part.sort().values for client, part in enumerate(order.split(sizes))}
    topped = top_up(rows, labels, min_size)
    assert torch.cat(list(topped.values())).sort().values.tolist() == list(range(total))
    for client, size in enumerate(sizes):
        before, after = set(rows[client].tolist()), set(topped[client].tolist())
        if size < min_size:  # it keeps what it had, and gets what it lacks
            assert before <= after
            assert len(after) == min_size
        else:  # it gets nothing, and gives what it has to spare at most
            assert after <= before
            assert len(after) >= min_size
