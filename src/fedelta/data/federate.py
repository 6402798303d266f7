"""From rows to federated data: inputs for a model, and the rows of each client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from fedelta.data.batches import Examples, FederatedData
from fedelta.data.columns import input_keys
from fedelta.data.division import divide
from fedelta.data.partition import Natural, PartitionSettings
from fedelta.data.sources import RawData
from fedelta.data.stored import StoredColumn
from fedelta.data.validation import RowsOf, hold_back
from fedelta.errors import DataError, refuse
from fedelta.modalities.base import Modality
from fedelta.tasks.targets import strata_of


def adapted(modality: Modality, raw: RawData) -> Modality:
    """What a model takes, with what section `[data]` says of it.

    Raises:
        DataError: the model takes another kind of input.
    """
    prepared = modality.prepared(raw.preparation)
    if prepared.name != raw.modality.name:
        raise DataError(
            f"column {raw.columns.input!r} holds {raw.modality.plural}, but the model takes {prepared.plural}",
            hint=f"choose another `model.source` (recordings go to image classifiers), or set `data.{input_keys()}`",
        )
    return prepared


def federate(
    raw: RawData,
    settings: PartitionSettings,
    modality: Modality,
    *,
    seed: int,
    held_out: Callable[[Sequence[int]], Collection[int]] = lambda _: (),
) -> FederatedData:
    """The data of all clients, ready for a model.

    Args:
        raw: what `read` returned.
        settings: section `[partition]`.
        modality: of the model; used as `adapted` to the data.
        seed: of the run.
        held_out: all client ids to those that no round asks; they give up no row for validation either.

    Raises:
        DataError: the data cannot be divided like that, an input is unreadable, the model takes another kind of input,
            or no client can give up a row for validation.
    """
    modality = adapted(modality, raw)
    client, limit = raw.columns.client, raw.source.max_memory_mib
    # Before the inputs: an impossible division is found at once, decoding takes a while.
    client_ids = None if client is None else raw.train[client][:]
    if raw.train_targets.strata is None and settings.goes_by_kind:
        problem = f"name is {settings.name!r}, which divides by classes, but the task has none"
        refuse("`[partition]`", [problem], hint="use 'iid', 'quantity' or 'natural'")
    strata = strata_of(raw.train_targets)
    rows = divide(settings, strata, client_ids, seed=seed, row_numbers=raw.train_row_numbers)
    unseen_ids = held_out(sorted(rows))
    unseen = {client: rows.pop(client) for client in sorted(unseen_ids)}
    origin = f"the training set of data source {raw.source.source!r}"
    column = StoredColumn.of(raw.train, raw.columns.input, origin=origin, numbers=raw.train_row_numbers)
    train = modality.store(column, limit)
    if raw.source.evaluate_on == "validation":
        before = rows
        rows, held = hold_back(before, raw.source.validation_fraction, seed=seed)
        numbers = raw.train_row_numbers[held]
        owner = _owners(before, len(strata))
        evaluated = Examples(RowsOf(train, held), raw.train_targets.select(held), numbers, owner[held])
    else:
        origin = f"the test set of data source {(raw.source.test_source or raw.source.source)!r}"
        column = StoredColumn.of(raw.test, raw.columns.input, origin=origin, numbers=raw.test_row_numbers)
        clients = _clients_of_test(raw, client_ids, rows) if isinstance(settings, Natural) else None
        evaluated = Examples(modality.store(column, limit), raw.test_targets, raw.test_row_numbers, clients)
    return FederatedData(
        train=Examples(train, raw.train_targets, raw.train_row_numbers),
        test=evaluated,
        class_names=raw.class_names,
        partition=rows,
        unseen=unseen,
        strata_names=raw.strata_names,
    )


def _owners(rows: Mapping[int, Tensor], num_rows: int) -> Tensor:
    """The client of each row, int64; -1 where it is of none."""
    owner = torch.full((num_rows,), -1)
    for client_id, of_client in rows.items():
        owner[of_client] = client_id
    return owner


def _clients_of_test(raw: RawData, client_ids: Sequence[object] | None, rows: Mapping[int, Tensor]) -> Tensor | None:
    """The client of each test row, int64, -1 for a client that does not train; None where the test set does not say.

    Args:
        raw: what was read.
        client_ids: of the training rows, as they stand there.
        rows: client id to its rows of the training data.
    """
    if client_ids is None or raw.columns.client not in raw.test.column_names:
        return None
    number_of = {client_ids[int(of_client[0])]: client_id for client_id, of_client in rows.items()}
    return torch.tensor([number_of.get(name, -1) for name in raw.test[raw.columns.client][:]])
