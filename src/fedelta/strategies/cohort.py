"""What every strategy has in common: how long the run is, whom a round asks, and where a state begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field

from fedelta.aggregation.base import Aggregation, Reads
from fedelta.catalog import MEANS
from fedelta.params import Params, ParamSpec
from fedelta.settings import Context, Settings
from fedelta.settings.registry import Chosen
from fedelta.strategies.base import State, Steering

# The annotation of a strategy's `mean`.
ChosenMean = Annotated[Aggregation, Chosen(MEANS)]


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
    layerwise: ClassVar[bool] = False

    @property
    def local_steps(self) -> int | None:
        """None: the section `[client]` says it."""
        return None

    def within(
        self, budget_bytes: float, spec: ParamSpec, num_clients: int, exchange_bytes: Callable[[tuple[str, ...]], int]
    ) -> Self:
        """The same: nothing is planned by the budget."""
        return self

    def problems(self, context: Context) -> list[str]:
        """See `cohort_problems`."""
        return cohort_problems(self, context)


def cohort_problems(rounds: Rounds, context: Context) -> list[str]:
    """Why cohorts of this size cannot be had."""
    problems = []
    num_clients = context.get("partition.num_clients")
    if num_clients is not None and rounds.clients_per_round > num_clients:
        problems.append(
            f"`strategy.clients_per_round` is {rounds.clients_per_round}, "
            f"more than `partition.num_clients` = {num_clients}"
        )
    if rounds.min_replies > rounds.clients_per_round:
        problems.append(
            f"`strategy.min_replies` is {rounds.min_replies}, "
            f"more than `strategy.clients_per_round` = {rounds.clients_per_round}"
        )
    return problems


def filled(params: Params, spec: ParamSpec, name: str, value: float = 0.0) -> State:
    """`name/TENSOR` for each tensor that is trained and travels: its shape, float64, all `value`."""
    return {
        f"{name}/{tensor}": torch.full_like(params[tensor], value, dtype=torch.float64)
        for tensor in spec.shared
        if spec.tensors[tensor].trained
    }
