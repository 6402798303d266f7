"""Settles what the configuration leaves to the training data: the settings of the task that follow from its targets."""

from __future__ import annotations

from functools import reduce
from operator import add
from pathlib import Path

from fedelta.config import Config
from fedelta.data.batches import FederatedData
from fedelta.inference.adapter_settings import read_settings
from fedelta.inference.directory import SETTINGS
from fedelta.settings.base import changed
from fedelta.tasks.base import Sums, Task
from fedelta.tasks.contract import settled_of, statistics_of


def adopting(config: Config, adapter: str | Path | None = None) -> Config:
    """Returns `config` with a task whose open settings are those of a tuned model, if that was for the same task.

    Args:
        config: of the run.
        adapter: directory of the tuned model; by default the one that the run starts from, if any.
    """
    place = adapter or config.model.adapter
    before = None if place is None else read_settings(Path(place) / SETTINGS).task
    if before is None or before.name != config.task.name or not config.task.automatic:
        return config
    return with_task(config, changed(config.task, {name: getattr(before, name) for name in config.task.automatic}))


def settled(config: Config, data: FederatedData) -> Config:
    """Returns `config` with a task that is ready to train and to measure.

    Args:
        config: of the run.
        data: of all clients; held-out clients share nothing.

    Raises:
        ConfigError: the task does not fit the targets.
    """
    sums, task = Sums(), config.task
    if task.automatic:
        targets = data.train.targets
        by_client = (targets.select(data.partition[client]) for client in sorted(data.partition))
        sums = reduce(add, (statistics_of(task, of_client, data.class_names) for of_client in by_client), sums)
    return with_task(config, settled_of(task, sums, data.class_names))


def with_task(config: Config, task: Task) -> Config:
    """Returns `config` with another task."""
    return config.model_copy(update={"task": task})
