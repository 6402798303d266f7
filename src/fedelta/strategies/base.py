"""What a strategy is: it plans rounds and combines the deltas that come back.

A strategy is a frozen value; whatever it remembers between rounds is a `State` that it returns and gets back,
so that a checkpoint holds it and a resumed run continues with the same bits. A local rule is the client's side
of an algorithm: it corrects the gradient of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from fedelta.aggregation.base import Aggregation, Reads, Update
from fedelta.params import Params, ParamSpec

State = dict[str, Tensor]


@dataclass(frozen=True)
class RoundPlan:
    """Who takes part in a round and which tensors travel, by client id.

    A tensor that does not go down is the one that the client has kept from the round before; one that does not come up
    stays with it, as long as it is in the cohort.

    Args:
        round: number of the round, from 1.
        download: client id to the names of the tensors that go down to it.
        upload: client id to the names of the tensors that must come up from it; the keys are the cohort.
        num_clients: of the whole federation, N; the cohort is drawn from them.
        num_holders: name of a tensor to how many of them hold it; None: all hold all.
    """

    round: int
    download: Mapping[int, tuple[str, ...]]
    upload: Mapping[int, tuple[str, ...]]
    num_clients: int
    num_holders: Mapping[str, int] | None = None

    @property
    def cohort(self) -> tuple[int, ...]:
        """Ids of the clients of this round, ascending."""
        return tuple(sorted(self.upload))


def uniform(
    clients_per_round: int, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
) -> RoundPlan:
    """A uniform cohort, drawn without replacement; every shared tensor goes down and comes up."""
    order = torch.randperm(len(client_ids), generator=generator).tolist()
    cohort = sorted(client_ids[index] for index in order[:clients_per_round])
    everything = dict.fromkeys(cohort, spec.shared)
    return RoundPlan(round, download=everything, upload=everything, num_clients=len(client_ids))


@dataclass(frozen=True)
class Combined:
    """What the accepted replies of a round came to.

    Args:
        mean: what the aggregation made of the deltas of what is trained: float64, each over the clients that sent it.
        client_ids: whose replies they were, ascending.
        updates: the single updates, ascending, for a strategy that reads each; none for the others.
    """

    mean: Params
    client_ids: tuple[int, ...]
    updates: tuple[Update, ...] = ()


class Steering(Protocol):
    """The client's side of a strategy: what it remembers between rounds, and how that steers its local steps."""

    def extend(self, spec: ParamSpec) -> ParamSpec:
        """`spec`, and behind it what travels beside the tensors of the model."""

    def start(self, spec: ParamSpec) -> Params:
        """What a client remembers before its first round, for the `spec` of the model."""

    def offset(self, received: Params, remembered: Params) -> Params:
        """What is added to the gradient in every local step, by name of the model's tensors."""

    def beside(self, received: Params, delta: Params, step_length: float) -> Params:
        """What is sent beside `delta`.

        Args:
            received: the decoded download.
            delta: local minus anchor.
            step_length: learning rate times effective steps, so that `-delta / step_length` is the mean gradient.
        """

    def remember(self, remembered: Params, sent: Params) -> Params:
        """What is remembered once the reply was accepted; `sent` as the server decoded it."""


class Strategy(Protocol):
    """How cohorts are drawn, what travels, and how deltas are combined."""

    @property
    def name(self) -> str:
        """What configurations call it."""

    @property
    def steering(self) -> Steering | None:
        """What clients remember for this strategy, and what they do with it; None: nothing."""

    @property
    def mean(self) -> Aggregation:
        """How deltas become one."""

    @property
    def reads(self) -> Reads:
        """What `update` looks at: the mean alone ("sum"), or the single updates too ("each")."""

    @property
    def num_rounds(self) -> int:
        """Number of rounds of the run."""

    @property
    def clients_per_round(self) -> int:
        """Size of a cohort."""

    @property
    def min_replies(self) -> int:
        """Fewest usable replies with which a round counts."""

    @property
    def max_examples(self) -> int:
        """The most examples that count of what a client claims to have."""

    @property
    def local_steps(self) -> int | None:
        """Local steps of a round, where the strategy says it; None: the section `[client]` does."""

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the tensors of the state that are written down after each round; one number a group."""

    @property
    def layerwise(self) -> bool:
        """Whether it gains by letting groups travel at different times, and so nothing where there is one group."""

    def within(
        self, budget_bytes: float, spec: ParamSpec, num_clients: int, exchange_bytes: Callable[[tuple[str, ...]], int]
    ) -> Strategy:
        """The strategy with what it plans by a budget for the whole run.

        Args:
            budget_bytes: of all payloads.
            spec: what is tuned.
            num_clients: of the federation.
            exchange_bytes: names of tensors of `spec` to the bytes of a download and an upload that hold them.

        Raises:
            ConfigError: it cannot keep to the budget.
        """

    def init(self, params: Params, spec: ParamSpec) -> State:
        """The state before round 1."""

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """Who takes part in `round` and which tensors travel."""

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The next server params and state; inputs are not changed.

        Statistics are not among the deltas: the round loop takes their mean.
        """


class LocalRule(Protocol):
    """A correction of the gradient in every local step, on stacked lanes.

    Shapes: K lanes, P tuned scalars.
    """

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        """Changes `grads_KP` in place, before the optimizer sees it."""
