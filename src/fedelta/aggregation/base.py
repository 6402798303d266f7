"""The protocols of an aggregation, which takes the updates of a round one after the other and combines them.

An aggregation is a frozen setting; its `start` makes a `Running` aggregation for each round. An aggregation that needs
only sums keeps only sums, so that one decoded update is in memory, whatever the size of the cohort. One that needs all
values of a coordinate at once, such as a median, has `reads` = "each".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Generator

from fedelta.params import Params, ParamSpec
from fedelta.settings import Settings

# "sum": needs only sums over the updates. "each": needs every single update.
Reads = Literal["sum", "each"]


@dataclass(frozen=True)
class Update:
    """A decoded and accepted reply.

    Args:
        client_id: number of the client.
        num_examples: weight in the mean.
        delta: local minus anchor, of the tensors in the plan's upload.
        effective_steps: sum of the weights of its gradients in `delta`, in units of the learning rate
            (`Sgd.effective_steps`).
    """

    client_id: int
    num_examples: int
    delta: Params
    effective_steps: float = 1.0


class Running(Protocol):
    """The unfinished aggregation of one round."""

    def add(self, update: Update) -> None:
        """Takes one update without changing it; called in ascending client id."""

    def finish(self, generator: Generator) -> Params:
        """The combined tensors in float64, each over the updates that hold it; called once, after the last `add`.

        Args:
            generator: a stream of this round, for an aggregation that draws random numbers.
        """


class Aggregation(Protocol):
    """Combines the deltas of a round into one."""

    @property
    def name(self) -> str:
        """Its name in configurations."""

    @property
    def reads(self) -> Reads:
        """Whether it needs only sums over the updates, or each of them."""

    @property
    def only_sums(self) -> bool:
        """Whether no other part of the server may see single updates, as under noise or secure aggregation."""

    @property
    def min_values(self) -> int:
        """Fewest values of a coordinate that it can combine; with fewer the round loop keeps the server's tensor."""

    @property
    def of_statistics(self) -> Aggregation:
        """The aggregation of the running statistics of norms."""

    def start(self, spec: ParamSpec) -> Running:
        """The aggregation of a round, before the first update.

        Args:
            spec: all tensors that can travel.
        """


class Mean(Settings):
    """Defaults of the means that need only sums and let single updates be seen."""

    reads: ClassVar[Reads] = "sum"
    only_sums: ClassVar[bool] = False
    min_values: ClassVar[int] = 1


def combine(aggregation: Aggregation, updates: Iterable[Update], spec: ParamSpec, generator: Generator) -> Params:
    """The result of `aggregation` for `updates`, which must be in ascending client id."""
    running = aggregation.start(spec)
    for update in updates:
        running.add(update)
    return running.finish(generator)
