"""The settings that all strategies share: length of the run, size of a cohort, and which replies count."""

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
from fedelta.strategies.base import Sampling, State, Steering

# The annotation of a strategy's `mean`.
ChosenMean = Annotated[Aggregation, Chosen(MEANS)]


class Rounds(Settings):
    """The fields of every strategy, with defaults for the optional members of `Strategy`.

    Args:
        clients_per_round: M, the size of the cohort, or with Poisson sampling its mean.
        sampling: how the cohort is drawn: `fixed`, uniformly without replacement; `poisson`, every client with
            probability M / N; or `cyclic`, clients take turns in an order that is drawn once.
        num_rounds: length of the run.
        min_replies: fewest usable replies with which a round counts.
        max_examples: upper limit of a client's weight in the mean. The server cannot check how many examples a client
            has.
    """

    clients_per_round: int = Field(default=8, ge=1)  # FedPEFT's headline setting: 8 of 64
    sampling: Sampling = "fixed"  # FedAvg
    num_rounds: int = Field(default=50, ge=1)  # FedPEFT
    min_replies: int = Field(default=1, ge=1)  # our choice: a round counts if one client answers
    max_examples: int = Field(default=1_000_000, ge=1)  # our choice: far more than a client of the papers has
    logged: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Reads] = "sum"
    private: ClassVar[bool] = False
    steering: ClassVar[Steering | None] = None
    layerwise: ClassVar[bool] = False

    @property
    def cohort_rounds(self) -> int:
        """1: a new cohort in every round."""
        return 1

    @property
    def local_steps(self) -> int | None:
        """None: section `[client]` sets the number of steps."""
        return None

    def within(
        self, budget_bytes: float, spec: ParamSpec, num_clients: int, exchange_bytes: Callable[[tuple[str, ...]], int]
    ) -> Self:
        """Itself: most strategies do not plan by a budget."""
        return self

    def problems(self, context: Context) -> list[str]:
        """Reports cohorts of an impossible size; see `cohort_problems`."""
        return cohort_problems(self, context)


def cohort_problems(rounds: Rounds, context: Context) -> list[str]:
    """Problems with the size of a cohort: more clients than there are, or fewer than `min_replies`."""
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
    """A state tensor `name/TENSOR` for each tensor that is trained and travels: same shape, float64, all `value`."""
    return {
        f"{name}/{tensor}": torch.full_like(params[tensor], value, dtype=torch.float64)
        for tensor in spec.shared
        if spec.tensors[tensor].trained
    }
