"""What every strategy has in common: how long the run is, whom a round asks, and where a state begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator

from fedelta.aggregation.base import Reads
from fedelta.params import Params, ParamSpec
from fedelta.settings import Settings
from fedelta.strategies.base import RoundPlan, State, Steering


class Rounds(Settings):
    """Fields of every strategy, without behaviour; see `Strategy` for the rest.

    Args:
        clients_per_round: size of the cohort, M, drawn uniformly without replacement.
        num_rounds: length of the run.
        min_replies: fewest usable replies with which a round counts.
        max_examples: a client that claims more has the weight of so many: a number that the server cannot check.
    """

    clients_per_round: int = Field(default=8, ge=1)  # FedPEFT's headline setting: 8 of 64
    num_rounds: int = Field(default=50, ge=1)  # FedPEFT
    min_replies: int = Field(default=1, ge=1)  # our choice: a round counts if anyone answers
    max_examples: int = Field(default=1_000_000, ge=1)  # our choice: far more than a client of the papers has
    logged: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Reads] = "sum"
    steering: ClassVar[Steering | None] = None

    @property
    def local_steps(self) -> int | None:
        """None: the section `[client]` says it."""
        return None


def uniform(rounds: Rounds, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator) -> RoundPlan:
    """A uniform cohort; every shared tensor goes down and comes up."""
    order = torch.randperm(len(client_ids), generator=generator).tolist()
    cohort = sorted(client_ids[index] for index in order[: rounds.clients_per_round])
    everything = dict.fromkeys(cohort, spec.shared)
    return RoundPlan(round, download=everything, upload=everything, num_clients=len(client_ids))


def filled(params: Params, spec: ParamSpec, name: str, value: float = 0.0) -> State:
    """`name/TENSOR` for each tensor that is trained and travels: its shape, float64, all `value`."""
    return {
        f"{name}/{tensor}": torch.full_like(params[tensor], value, dtype=torch.float64)
        for tensor in spec.shared
        if spec.tensors[tensor].trained
    }
