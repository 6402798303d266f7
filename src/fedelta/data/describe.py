"""What `fedelta check` says of the data: how many, which classes, whose, and what some of them look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from fedelta.data.batches import FederatedData
from fedelta.data.glance import bounded
from fedelta.tasks.targets import Targets, strata_of

_NUM_SHOWN = 20


def describe(data: FederatedData, evaluated: str) -> Iterator[str]:
    """Lines about the data of a federation.

    Args:
        data: of all clients.
        evaluated: what its rows for evaluation are called, such as "test".
    """
    rows = {**data.partition, **data.held_out}
    used = sum(len(of_client) for of_client in rows.values())
    apart = f", {used:,} of them the clients'" if used < len(data.train) else ""
    yield f"examples: {len(data.train):,} training{apart}, {len(data.test):,} {evaluated}"
    noun = "classes" if data.class_names else "ranges"
    kinds = data.class_names or data.strata_names
    counts = zip(kinds, _counts(data.train.targets, len(kinds)), _counts(data.test.targets, len(kinds)), strict=True)
    words = [f"{name!r} {training:,} + {held:,}" for name, training, held in counts]
    yield f"{noun}: {len(kinds)}, each with its training + {evaluated} examples: {bounded(words, _NUM_SHOWN)}"
    yield from _clients(data, rows)
    owner = {row: client for client, of_client in rows.items() for row in of_client.tolist()}
    for each in data.shown:
        whose = f", {data.clients.called(owner[each.row])}" if each.row in owner else ""
        yield f"  {each.example} is {each.target}{whose}"


def _counts(targets: Targets, num_kinds: int) -> list[int]:
    counts: list[int] = strata_of(targets).bincount(minlength=num_kinds).tolist()
    return counts


def _clients(data: FederatedData, rows: Mapping[int, Tensor]) -> Iterator[str]:
    sizes = [len(of_client) for of_client in rows.values()]
    held_out = f", {len(data.held_out)} of them held out" if data.held_out else ""
    words = [f"{data.names.get(client, client)!r} {len(rows[client]):,}" for client in sorted(rows)]
    yield (
        f"clients: {len(rows)} with {min(sizes):,} to {max(sizes):,} examples{held_out}: {bounded(words, _NUM_SHOWN)}"
    )
