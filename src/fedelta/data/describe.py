"""The lines of `fedelta check` about the data: numbers of examples, classes, clients, and some examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from fedelta.data.batches import FederatedData
from fedelta.data.glance import bounded
from fedelta.tasks.targets import Targets, strata_of

_NUM_SHOWN = 20


def describe(data: FederatedData, evaluated: str, kinds_word: str) -> Iterator[str]:
    """Yields lines of text about the data of a federation.

    Args:
        data: of all clients.
        evaluated: name of the evaluation rows, such as "test".
        kinds_word: for several strata, such as "classes" (`Task.stratum`).
    """
    rows = {**data.partition, **data.held_out}
    num_used = sum(len(client_rows) for client_rows in rows.values())
    used = f", {num_used:,} of them the clients'" if num_used < len(data.train) else ""
    yield f"examples: {len(data.train):,} training{used}, {len(data.test):,} {evaluated}"
    if data.skipped:
        yield f"left out, because they cannot be read: {len(data.skipped):,}"
        yield from (f"  {each.file or f'row {each.row}'} ({each.set}): {each.reason}" for each in data.skipped)
    if kinds := data.strata_names or data.class_names:
        yield _kinds(data, kinds, evaluated, kinds_word)
    yield from _clients(data, rows)
    client_of = {row: client for client, client_rows in rows.items() for row in client_rows.tolist()}
    for example in data.shown:
        client = f", {data.clients.called(client_of[example.row])}" if example.row in client_of else ""
        yield f"  {example.example} is {example.target}{client}"


def _kinds(data: FederatedData, kinds: Sequence[str], evaluated: str, word: str) -> str:
    """The training and evaluation examples of each class or stratum."""
    counts = zip(kinds, _counts(data.train.targets, len(kinds)), _counts(data.test.targets, len(kinds)), strict=True)
    words = [f"{name!r} {training:,} + {held:,}" for name, training, held in counts]
    return f"{word}: {len(kinds)}, each with its training + {evaluated} examples: {bounded(words, _NUM_SHOWN)}"


def _counts(targets: Targets, num_kinds: int) -> list[int]:
    counts: list[int] = strata_of(targets).bincount(minlength=num_kinds).tolist()
    return counts


def _clients(data: FederatedData, rows: Mapping[int, Tensor]) -> Iterator[str]:
    sizes = [len(client_rows) for client_rows in rows.values()]
    held_out = f", {len(data.held_out)} of them held out" if data.held_out else ""
    words = [f"{data.names.get(client, client)!r} {len(rows[client]):,}" for client in sorted(rows)]
    yield (
        f"clients: {len(rows)} with {min(sizes):,} to {max(sizes):,} examples{held_out}: {bounded(words, _NUM_SHOWN)}"
    )
