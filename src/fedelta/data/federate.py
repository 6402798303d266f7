"""Turns the rows that were read into federated data: inputs for a model, and the rows of each client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta.data.batches import Examples, FederatedData
from fedelta.data.clients import Clients, Name
from fedelta.data.columns import target_column
from fedelta.data.dialogues import counted
from fedelta.data.division import Partitioner, divide
from fedelta.data.glance import NUM_READ, Glance, Shown, shown
from fedelta.data.sources import RawData
from fedelta.data.stored import StoredColumn
from fedelta.data.validation import RowsOf, hold_back
from fedelta.errors import DataError, listed, refuse
from fedelta.modalities.base import Inputs, Modality
from fedelta.modalities.stores import evenly_spaced
from fedelta.tasks.targets import strata_of

logger = logging.getLogger("fedelta")
_NUM_SHOWN = 5


def adapted(modality: Modality, raw: RawData) -> Modality:
    """The model's modality, adapted to section `[data]` and to the training examples.

    Raises:
        DataError: the model takes another kind of input.
    """
    prepared = modality.prepared(raw.preparation)
    if prepared.name != raw.modality.name:
        raise DataError(
            f"column {raw.columns.input!r} holds {raw.modality.plural}, but the model takes {prepared.plural}",
            hint="choose another `model.source` (recordings go to image classifiers), or set the column of its "
            "inputs in `[data]`",
        )
    column = _column(raw)
    return prepared.fitted(column.select(evenly_spaced(len(column), NUM_READ)) if raw.at_a_glance else column)


@dataclass(frozen=True)
class Division:
    """How the training rows are divided, before any example is decoded.

    Args:
        rows: client number to its rows, int64.
        held_out: the same for held-out clients.
        ids: client number to the id of the client in the data; empty if clients are no natural ones.
        validation: rows for evaluation, int64; None if a test set is evaluated.
        owner: client of each row before validation rows were held back, int64; -1 for none.
    """

    rows: Mapping[int, Tensor]
    held_out: Mapping[int, Tensor]
    ids: Mapping[int, Name]
    validation: Tensor | None
    owner: Tensor

    @property
    def clients(self) -> Clients:
        """All clients, including held-out ones."""
        return Clients.of([*self.rows, *self.held_out], self.ids)


def divided(
    raw: RawData,
    partitioner: Partitioner,
    *,
    seed: int,
    held_out: Callable[[Clients], Collection[int]] = lambda _: (),
    numbered: Callable[[Clients], Mapping[int, int]] | None = None,
) -> Division:
    """The rows of each client; arguments and errors as for `federate`."""
    rows = _division(raw, partitioner, seed)
    ids = natural_ids(raw, rows) if partitioner.goes_by_client else {}
    clients = Clients.of(rows, ids)
    held_out_rows = {client: rows.pop(client) for client in sorted(held_out(clients))}
    if numbered is not None:
        number_of = numbered(clients.only(rows))
        rows = {number: rows[client] for client, number in sorted(number_of.items(), key=lambda pair: pair[1])}
        ids = {number: ids[client] for client, number in number_of.items() if client in ids}
        held_out_rows = {}
    owner, validation = _owners(rows, len(raw.train)), None
    if raw.source.evaluate_on == "validation":
        rows, validation = hold_back(rows, raw.source.validation_fraction, seed=seed)
    return Division(rows, held_out_rows, ids, validation, owner)


def federate(
    raw: RawData,
    partitioner: Partitioner,
    modality: Modality,
    *,
    seed: int,
    held_out: Callable[[Clients], Collection[int]] = lambda _: (),
    numbered: Callable[[Clients], Mapping[int, int]] | None = None,
) -> FederatedData:
    """The data of all clients, ready for a model.

    Args:
        raw: what `read` returned.
        partitioner: section `[partition]`.
        modality: of the model; used as `adapted` to the data.
        seed: of the run.
        held_out: gives the ids of the held-out clients among all clients. None of their rows become validation rows,
            and if the test set names clients, rows of held-out natural clients are left out of it.
        numbered: for a site that has only some of a federation's clients: gives those to keep of the clients that are
            not held out, with the number of each in the federation. None keeps all clients and their numbers.

    Raises:
        DataError: the data cannot be divided this way, an input is unreadable, the model takes another kind of input,
            or no client has a row to spare for validation.
    """
    modality = adapted(modality, raw)
    # Before the inputs, because decoding takes a while and an impossible division should be found at once.
    division = divided(raw, partitioner, seed=seed, held_out=held_out, numbered=numbered)
    ids_of, rows, validation = division.ids, division.rows, division.validation
    train_inputs = _inputs(raw, _column(raw), modality)
    train = Examples(train_inputs, counted(train_inputs, raw.train.targets), raw.train.numbers)
    if validation is not None:
        inputs, targets = RowsOf(train.inputs, validation), train.targets.select(validation)
        evaluated = Examples(inputs, targets, raw.train.numbers[validation], division.owner[validation])
    else:
        raw = raw.without_test_rows_of({ids_of[client] for client in division.held_out if client in ids_of})
        evaluated = evaluation_set(raw, modality, {ids_of[client]: client for client in rows if client in ids_of})
    return FederatedData(
        train=train,
        test=evaluated,
        class_names=raw.class_names,
        partition=rows,
        held_out=division.held_out,
        strata_names=raw.strata_names,
        names=division.clients.names,
        shown=_shown(raw),
        skipped=raw.skipped,
    )


def evaluation_set(raw: RawData, modality: Modality, client_of: Mapping[Name, int]) -> Examples:
    """The test set; its rows have client numbers if it has the column of client ids.

    Args:
        raw: what was read.
        modality: of the model, as `adapted` to the data.
        client_of: client id in the data to client number; empty if there are no ids.
    """
    origin = f"the test set of data source {(raw.source.test_source or raw.source.source)!r}"
    column = StoredColumn.of(raw.test.dataset, raw.columns.input, origin=origin, numbers=raw.test.numbers)
    ids = raw.test_ids if client_of else None
    by_name = {str(name): client for name, client in client_of.items()}
    clients = None if ids is None else torch.tensor([by_name.get(str(client_id), -1) for client_id in ids.names])
    if clients is not None and not (clients >= 0).any():
        logger.warning(
            "column %r of the test set has no client that is trained with (%s): there are no measures by client.",
            raw.columns.client,
            listed(sorted(by_name)),
        )
    inputs = _inputs(raw, column, modality)
    return Examples(inputs, counted(inputs, raw.test.targets), raw.test.numbers, clients)


def natural_ids(raw: RawData, rows: Mapping[int, Tensor]) -> dict[int, Name]:
    """Client number to the client id of its rows; for a column of class labels, the name of the label."""
    ids = raw.train_ids
    return {} if ids is None else {client: ids.names[int(of_client[0])] for client, of_client in rows.items()}


def _division(raw: RawData, partitioner: Partitioner, seed: int) -> dict[int, Tensor]:
    """The training rows of each client."""
    if raw.train.targets.strata is None and partitioner.goes_by_kind:
        problem = f"name is {partitioner.name!r}, which divides by classes, but the task has none"
        refuse("`[partition]`", [problem], hint="use 'iid', 'quantity' or 'natural'")
    ids = raw.train_ids if partitioner.goes_by_client else None
    for note in () if ids is None else ids.notes:
        logger.warning("%s", note)
    codes = None if ids is None else ids.codes
    return divide(partitioner, strata_of(raw.train.targets), codes, seed=seed)


def _column(raw: RawData) -> StoredColumn:
    """The training examples."""
    origin = f"the training set of data source {raw.source.source!r}"
    return StoredColumn.of(raw.train.dataset, raw.columns.input, origin=origin, numbers=raw.train.numbers)


def _inputs(raw: RawData, column: StoredColumn, modality: Modality) -> Inputs:
    """The model's inputs for a column."""
    store = Glance.of if raw.at_a_glance else _stored
    return store(column, modality, raw.source.max_memory_mib)


def _stored(column: StoredColumn, modality: Modality, max_memory_mib: int) -> Inputs:
    return modality.store(column, max_memory_mib)


def _shown(raw: RawData) -> tuple[Shown, ...]:
    """Some training rows, from the first to the last."""
    rows = evenly_spaced(len(raw.train), _NUM_SHOWN)
    labels = target_column(raw.train.dataset.select(rows.tolist()), raw.columns.labels, "training set")
    values = [_named(value, labels.class_names) for value in labels.values]
    return shown(_column(raw), values, rows)


def _named(value: object, class_names: Sequence[str] | None) -> object:
    """A target for display: class labels by their names, also in lists."""
    if isinstance(value, list):
        return [_named(item, class_names) for item in value]
    if class_names is not None and isinstance(value, int) and 0 <= value < len(class_names):
        return class_names[value]
    return value


def _owners(rows: Mapping[int, Tensor], num_rows: int) -> Tensor:
    """The client of each row, int64; -1 for none."""
    owner = torch.full((num_rows,), -1)
    for client, of_client in rows.items():
        owner[of_client] = client
    return owner
