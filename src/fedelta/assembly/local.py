"""How the clients of a simulation share this machine: in this process, or over worker processes."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import torch

from fedelta.config import Config
from fedelta.engine.packs import num_packs
from fedelta.federation.client import Site
from fedelta.machine import available_cores
from fedelta.runtimes.processes import Processes, Workers
from fedelta.runtimes.starting import Build, can_copy, can_start, copies, new_processes

logger = logging.getLogger("fedelta")

# Until a worker can train: a copy takes 20 to 60 ms, a new process imports torch, and reads model and data.
_COPY_SECONDS, _NEW_SECONDS = 0.1, 10.0


def shared_out(config: Config, site: Site) -> Site:
    """Returns `site` with its cohorts divided into packs that this machine can train side by side.

    The number of threads does not follow the clients that a round reaches, so that it is the same in every round.
    """
    places = config.runtime.places
    packs = _packs_of_cohort(config, site, places)
    # PyTorch takes a thread for each core that it sees, also where a quota leaves fewer.
    threads = min(torch.get_num_threads(), available_cores())
    return replace(site, places=places, threads=max(1, threads // packs))


def processes_of(config: Config, site: Site, build: Build | None) -> Processes | None:
    """Returns a runtime that may start workers for `site`; None if it trains alone.

    Args:
        config: of the run.
        site: with all clients.
        build: builds a worker's site from the configuration; None if model or data are the caller's.
    """
    runtime = config.runtime
    is_copied = can_copy(runtime.torch_device())
    packs = _packs_of_cohort(config, site, site.places)
    asked_for = runtime.name == "processes"
    # Without word from the user a run has as many workers as it may use threads: one in a comparison's processes.
    most = min(packs, site.places, site.places if asked_for or not is_copied else torch.get_num_threads())
    if isinstance(runtime.workers, int):
        most = runtime.workers
    problem = _problem(packs, can_train=is_copied or build is not None)
    if asked_for and problem is not None:
        logger.warning("`runtime.name` is 'processes', but clients train in this process: %s.", problem)
    if problem is not None or runtime.name == "simulation" or (most < 2 and not asked_for):
        return None
    start = copies if is_copied or build is None else partial(new_processes, build)
    seconds = _COPY_SECONDS if is_copied else _NEW_SECONDS
    return Processes(site, Workers(most, start, seconds, asked_for=asked_for, share_cache=is_copied))


def _packs_of_cohort(config: Config, site: Site, places: int) -> int:
    """The number of packs of a full cohort of one depth."""
    num_clients = min(config.strategy.clients_per_round, len(site.partition))
    return 1 if places == 1 else num_packs(num_clients, site.engine.clients_at_once, places)


def _problem(packs: int, *, can_train: bool) -> str | None:
    """Why no worker can train, in words; None if one can."""
    if packs == 1:
        return "all clients of a round train together (`runtime.lanes`)"
    if not can_start():
        return "it is itself a process that may start none"
    if not can_train:
        return "only a copy of it has your model and data, and a copy can train on Linux without a GPU only"
    return None
