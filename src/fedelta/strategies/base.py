"""What a strategy is: it plans rounds and combines the deltas that come back.

A strategy is a frozen value; whatever it remembers between rounds is a `State` that it returns and gets back,
so that a checkpoint holds it and a resumed run continues with the same bits. A local rule is the client's side
of an algorithm: it corrects the gradient of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

from fedelta.params import Params, ParamSpec

State = dict[str, Tensor]


@dataclass(frozen=True)
class RoundPlan:
    """Who takes part in a round and which tensors travel, by client id.

    Args:
        round: number of the round, from 1.
        download: client id to the names of the tensors that go down to it.
        upload: client id to the names of the tensors that must come up from it; the keys are the cohort.
    """

    round: int
    download: Mapping[int, tuple[str, ...]]
    upload: Mapping[int, tuple[str, ...]]

    @property
    def cohort(self) -> tuple[int, ...]:
        """Ids of the clients of this round, ascending."""
        return tuple(sorted(self.upload))


@dataclass(frozen=True)
class Update:
    """A reply that was decoded and found in order.

    Args:
        client_id: who sent it.
        num_examples: its weight in the mean.
        delta: local minus anchor, the tensors that the plan asked for.
    """

    client_id: int
    num_examples: int
    delta: Params


class Strategy(Protocol):
    """How cohorts are drawn, what travels, and how deltas are combined."""

    @property
    def num_rounds(self) -> int:
        """Number of rounds of the run."""

    @property
    def clients_per_round(self) -> int:
        """Size of a cohort."""

    @property
    def min_replies(self) -> int:
        """Fewest usable replies with which a round counts."""

    def init(self, params: Params, spec: ParamSpec) -> State:
        """The state before round 1."""

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """Who takes part in `round` and which tensors travel."""

    def update(self, state: State, params: Params, plan: RoundPlan, updates: Sequence[Update]) -> tuple[Params, State]:
        """The next server params and state. `updates` come in ascending client id; inputs are not changed.

        Statistics are not among the deltas: the round loop averages them.
        """


class LocalRule(Protocol):
    """A correction of the gradient in every local step, on stacked lanes.

    Shapes: K lanes, P tuned scalars.
    """

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        """Changes `grads_KP` in place, before the optimizer sees it."""
