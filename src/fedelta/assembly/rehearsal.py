"""One round on a few rows, for `fedelta check`.

It plans, downloads, trains two steps for each client of the cohort, replies, averages and evaluates, and computes all
measures of a finished model. The code is that of a run: what would fail there fails here, before a file is written.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedelta.assembly.run import Assembly
from fedelta.assembly.site import details, evaluate
from fedelta.data.batches import Examples
from fedelta.data.validation import RowsOf
from fedelta.federation.base import Standing
from fedelta.federation.memory import Memories
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.modalities.base import Inputs
from fedelta.modalities.stores import evenly_spaced
from fedelta.settings.base import changed

_ROWS = 3  # per client: a batch of two and a shorter one, so that lanes differ in length
_STEPS = 2  # the second step runs on what the first has left in the model
_CLIENTS = 16
_EVALUATED = 8
_CHUNK = 4096


def rehearse(assembly: Assembly) -> RoundOutcome:
    """Returns the outcome of the round. Do not run the assembly afterwards: its caches hold only a few rows.

    Raises:
        FedeltaError: the error that a run would raise.
    """
    site, federation = assembly.site, assembly.federation
    engine = copy.copy(site.engine)
    engine.client = engine.client.model_copy(
        update={"local_epochs": None, "local_steps": _STEPS, "batch_size": _ROWS - 1}
    )
    longest = _longest(assembly.data.train.inputs)
    partition = {client: torch.cat([longest, rows])[:_ROWS] for client, rows in site.partition.items()}
    test, strategy = _first(assembly.data.test), assembly.strategy
    small_site = replace(site, engine=engine, partition=partition, memories=Memories(), test=test)
    cohort = min(strategy.clients_per_round, max(_CLIENTS, strategy.min_replies, engine.lanes.num + 1))
    strategy = changed(strategy, {"clients_per_round": cohort})
    rehearsed = replace(
        federation,
        strategy=strategy,
        runtime=small_site,
        evaluate=lambda params: evaluate(small_site, params),
        evaluate_every=1,
        thorough=None,
        byte_budget=None,
    )
    state = strategy.init(assembly.params, assembly.spec)
    outcome = next(federate(rehearsed, Standing(assembly.params, state)))
    details(small_site, outcome.params, test, assembly.data.class_names)
    return outcome


def _first(data: Examples) -> Examples:
    """The longest row of `data`, and some rows spread over it."""
    rows = torch.cat([_longest(data.inputs), evenly_spaced(len(data), _EVALUATED)])
    clients = None if data.clients is None else data.clients[rows]
    return Examples(RowsOf(data.inputs, rows), data.targets.select(rows), clients=clients)


def _longest(inputs: Inputs) -> Tensor:
    """The row with the most tokens, int64 [1]; int64 [0] if inputs have no length."""
    if "attention_mask" not in inputs.fetch(torch.tensor([0])):
        return torch.empty(0, dtype=torch.int64)
    lengths = [inputs.fetch(rows)["attention_mask"].sum(1) for rows in _chunks(len(inputs))]
    return torch.cat(lengths).topk(1).indices


def _chunks(num_rows: int) -> Sequence[Tensor]:
    chunks: Sequence[Tensor] = torch.arange(num_rows).split(_CHUNK)
    return chunks
