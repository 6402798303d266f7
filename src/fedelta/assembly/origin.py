"""Digests of what a run starts from, and the check that they have not changed when it is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedelta.assembly.model import TunedModel
from fedelta.config import Config
from fedelta.data.batches import Examples, FederatedData
from fedelta.data.digests import digests_of
from fedelta.federation.tiers import Tiers
from fedelta.params import bytes_of
from fedelta.record.checkpoint import Checkpoint
from fedelta.record.origin import (
    CLASS_NAMES,
    Origin,
    digest_of_names,
    other_inputs,
    other_settings,
    refuse,
    settings_of,
)


def origin_of(
    config: Config,
    model: TunedModel,
    data: FederatedData,
    tiers: Tiers | None,
    ranks: Mapping[int, int],
) -> Origin:
    """Returns the settings and the digests of the inputs that a run of `config` starts from.

    Args:
        config: of the run.
        model: whose tuning method may come from an adapter.
        data: of all clients.
        tiers: of all clients; they may come from a file.
        ranks: of the clients; likewise.
    """
    inputs = {**model.identity, **evaluated(data.test, data.class_names), **trained_on(data, tiers)}
    inputs |= ranked(ranks)
    return Origin(settings_of(config.to_table({"tuning": model.tuning})), inputs)


def evaluated(test: Examples | None, class_names: Sequence[str]) -> dict[str, str]:
    """Digests of the class names and of the test set, if there is one."""
    return {CLASS_NAMES: digest_of_names(class_names), **({} if test is None else digests_of(test, "test"))}


def ranked(ranks: Mapping[int, int]) -> dict[str, str]:
    """The digest of the ranks of the clients; also if all have that of the server, as ranks may be in a file."""
    return {"ranks of the clients": hashlib.sha256(repr(sorted(ranks.items())).encode()).hexdigest()}


def trained_on(data: FederatedData, tiers: Tiers | None) -> dict[str, str]:
    """Digests of the training set, of the rows of each client and of the clients' depths."""
    rows = hashlib.sha256()
    for clients in (data.partition, data.held_out):
        for client_id, of_client in sorted(clients.items()):
            rows.update(f"{client_id} {len(of_client)} ".encode())
            rows.update(bytes_of(of_client))
    depths = [] if tiers is None else sorted(tiers.depths.items())
    return {
        **digests_of(data.train, "training"),
        "training rows of each client": rows.hexdigest(),
        "depths of the clients": hashlib.sha256(repr(depths).encode()).hexdigest(),
    }


def check_origin(path: Path, checkpoint: Checkpoint, current: Origin, config: Config) -> None:
    """Raises if settings or inputs differ from those that the run at `path` started from.

    Args:
        path: run directory.
        checkpoint: of the run.
        current: settings as they are now, and those inputs that are to be compared.
        config: names the sources in messages.

    Raises:
        CheckpointError: names all differences.
    """
    source = config.data.source
    places = {
        "base": config.model.source or "random weights, which other versions of the libraries may draw otherwise",
        "model": config.model.source or "",
        "training": source,
        "test": config.data.test_source or source,
    }
    problems = other_settings(checkpoint.origin.settings, current.settings)
    problems += other_inputs(checkpoint.origin.inputs, current.inputs, places)
    refuse(f"run {str(path)!r}", problems)
