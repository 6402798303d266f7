"""What an aggregation is: it is given the updates of a round one after the other, and makes one value of them.

An aggregation is a frozen setting; `start` begins a `Running` one for each round. What only needs sums keeps sums, so
that a single decoded update is in memory, whatever the size of the cohort. What needs all values of a coordinate at
once, such as a median, says that it reads each update.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Generator

from fedelta.params import Params, ParamSpec
from fedelta.settings import Settings

# "sum": sums over the updates are enough. "each": single updates are looked at.
Reads = Literal["sum", "each"]


@dataclass(frozen=True)
class Update:
    """A reply that was decoded and found in order.

    Args:
        client_id: who sent it.
        num_examples: its weight in the mean.
        delta: local minus anchor, the tensors that the plan asked for.
        effective_steps: how many times the learning rate its gradients went into `delta` (`Sgd.effective_steps`).
    """

    client_id: int
    num_examples: int
    delta: Params
    effective_steps: float = 1.0


class Running(Protocol):
    """The aggregation of one round, under way."""

    def add(self, update: Update) -> None:
        """Takes one update; called in ascending client id. The update is not changed, and need not be kept."""

    def finish(self, generator: Generator) -> Params:
        """Float64 tensors, each over the updates that hold it; called once, after the last `add`.

        Args:
            generator: a stream of this round, for what an aggregation draws.
        """


class Aggregation(Protocol):
    """How the deltas of a round become one."""

    @property
    def name(self) -> str:
        """What configurations call it."""

    @property
    def reads(self) -> Reads:
        """What it needs of the updates."""

    @property
    def only_sums(self) -> bool:
        """Whether single updates must not be seen by anything else either, as under noise or secure sums."""

    @property
    def min_values(self) -> int:
        """Fewest values of a coordinate with which it does what it promises; the round loop uses no fewer."""

    @property
    def of_statistics(self) -> Aggregation:
        """The aggregation for statistics, which the round loop takes."""

    def start(self, spec: ParamSpec) -> Running:
        """The aggregation of a round of which nothing has come yet.

        Args:
            spec: of everything that can travel.
        """


class Mean(Settings):
    """What the means of a federation without noise or secure sums have in common, without behaviour."""

    reads: ClassVar[Reads] = "sum"
    only_sums: ClassVar[bool] = False
    min_values: ClassVar[int] = 1


def combine(aggregation: Aggregation, updates: Iterable[Update], spec: ParamSpec, generator: Generator) -> Params:
    """What `aggregation` makes of `updates`, which come in ascending client id."""
    running = aggregation.start(spec)
    for update in updates:
        running.add(update)
    return running.finish(generator)
