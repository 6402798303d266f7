"""From rows to federated data: inputs for a model, and the rows of each client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from fedelta.data.batches import FederatedData, LabelledData
from fedelta.data.columns import input_keys
from fedelta.data.division import divide
from fedelta.data.partition import PartitionSettings
from fedelta.data.sources import RawData
from fedelta.data.stored import StoredColumn
from fedelta.data.validation import RowsOf, hold_back
from fedelta.errors import DataError
from fedelta.modalities.base import Modality


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
    rows = divide(settings, raw.train_labels, client_ids, seed=seed, row_numbers=raw.train_row_numbers)
    unseen_ids = held_out(sorted(rows))
    unseen = {client: rows.pop(client) for client in sorted(unseen_ids)}
    origin = f"the training set of data source {raw.source.source!r}"
    column = StoredColumn.of(raw.train, raw.columns.input, origin=origin, numbers=raw.train_row_numbers)
    train = modality.store(column, limit)
    if raw.source.evaluate_on == "validation":
        rows, held = hold_back(rows, raw.source.validation_fraction, seed=seed)
        evaluated = LabelledData(RowsOf(train, held), raw.train_labels[held])
    else:
        origin = f"the test set of data source {(raw.source.test_source or raw.source.source)!r}"
        column = StoredColumn.of(raw.test, raw.columns.input, origin=origin, numbers=raw.test_row_numbers)
        evaluated = LabelledData(modality.store(column, limit), raw.test_labels)
    return FederatedData(
        train=LabelledData(train, raw.train_labels),
        test=evaluated,
        class_names=raw.class_names,
        partition=rows,
        unseen=unseen,
    )
