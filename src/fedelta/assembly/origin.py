"""What a run begins with, and whether what is found later is the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedelta.assembly.model import TunedModel
from fedelta.config import Config
from fedelta.data.batches import FederatedData
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


def origin_of(config: Config, model: TunedModel, data: FederatedData, tiers: Tiers | None) -> Origin:
    """What a run of `config` begins with.

    Args:
        config: of the run.
        model: with the tuning method that is really used.
        data: of all clients.
        tiers: of all clients; they may come from a file.
    """
    inputs = {**model.identity, **evaluated(data), **trained_on(data, tiers)}
    return Origin(settings_of(config.to_table({"tuning": model.tuning})), inputs)


def evaluated(data: FederatedData) -> dict[str, str]:
    """Digests of what a model is measured on."""
    return {CLASS_NAMES: digest_of_names(data.class_names), **digests_of(data.test, "test")}


def trained_on(data: FederatedData, tiers: Tiers | None) -> dict[str, str]:
    """Digests of what clients learn from, of who has which rows, and of how deep each runs."""
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


def check_origin(path: Path, checkpoint: Checkpoint, now: Origin, config: Config) -> None:
    """Refuses what is not that with which the run at `path` began.

    Args:
        path: of the run directory.
        checkpoint: of the run.
        now: settings and inputs as they are now; of the inputs those that matter.
        config: where they are from.

    Raises:
        CheckpointError: names all that differs.
    """
    source = config.data.source
    places = {
        "base": config.model.source or "random weights, which other versions of the libraries may draw otherwise",
        "model": config.model.source or "",
        "training": source,
        "test": config.data.test_source or source,
    }
    problems = other_settings(checkpoint.origin.settings, now.settings)
    problems += other_inputs(checkpoint.origin.inputs, now.inputs, places)
    refuse(f"run {str(path)!r}", problems)
