"""Batches: every row once in each epoch, in an order that the generators alone decide."""

from __future__ import annotations

from itertools import count, islice

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedelta.data.batches import batches
from fedelta.seeds import stream

ROWS = st.lists(st.integers(0, 500), min_size=1, max_size=30, unique=True)


def epochs(seed: int):
    """A generator for each epoch."""
    return (stream(seed, "batches", "epoch", number) for number in count(1))


@given(rows=ROWS, batch_size=st.integers(1, 8), num_epochs=st.integers(1, 4), seed=st.integers(0, 1000))
def test_each_epoch_has_every_row_once_and_a_ragged_batch_at_its_end(
    rows: list[int], batch_size: int, num_epochs: int, seed: int
):
    per_epoch = -(-len(rows) // batch_size)
    result = list(batches(torch.tensor(rows), batch_size, num_epochs * per_epoch, epochs(seed)))
    for start in range(0, len(result), per_epoch):
        epoch = result[start : start + per_epoch]
        assert sorted(torch.cat(epoch).tolist()) == sorted(rows)
        assert [len(batch) for batch in epoch[:-1]] == [batch_size] * (per_epoch - 1)
        assert len(epoch[-1]) == (len(rows) - 1) % batch_size + 1


@given(
    rows=ROWS, batch_size=st.integers(1, 8), num_steps=st.integers(1, 12), done=st.integers(0, 12),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_a_client_that_goes_on_has_the_batches_that_it_would_have_had(
    rows: list[int], batch_size: int, num_steps: int, done: int, seed: int
):
    # As `federation/client.py` goes on: the generators of the epoch in which it stands, and what it had of it skipped.
    whole = list(batches(torch.tensor(rows), batch_size, done + num_steps, epochs(seed)))
    epoch, skip = divmod(done, -(-len(rows) // batch_size))
    rest = list(batches(torch.tensor(rows), batch_size, num_steps, islice(epochs(seed), epoch, None), skip))
    assert len(rest) == num_steps
    assert all(torch.equal(left, right) for left, right in zip(whole[done:], rest, strict=True))


@given(rows=ROWS, batch_size=st.integers(1, 8), seed=st.integers(0, 1000))
def test_the_order_depends_on_the_generators_alone(rows: list[int], batch_size: int, seed: int):
    first, again = (list(batches(torch.tensor(rows), batch_size, 5, epochs(seed))) for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
