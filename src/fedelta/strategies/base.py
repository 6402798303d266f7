"""What a strategy is: it plans rounds and combines the deltas that come back.

A strategy is a frozen value; whatever it remembers between rounds is a `State` that it returns and gets back,
so that a checkpoint holds it and a resumed run continues with the same bits. A local rule is the client's side
of an algorithm: it corrects the gradient of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

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
        num_holders: how many of them hold the tensor of a name; None: all hold all.
    """

    round: int
    download: Mapping[int, tuple[str, ...]]
    upload: Mapping[int, tuple[str, ...]]
    num_clients: int
    num_holders: Callable[[str], int] | None = None

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
        effective_steps: how many times the learning rate its gradients went into `delta` (`Sgd.effective_steps`).
    """

    client_id: int
    num_examples: int
    delta: Params
    effective_steps: float = 1.0


class Mean(Protocol):
    """One value from the clients' deltas."""

    @property
    def of_statistics(self) -> Mean:
        """The mean for statistics, which the round loop takes."""

    def of(self, updates: Sequence[Update]) -> Params:
        """Float64 tensors, each over the updates that hold it; `updates` come in ascending client id."""


class Memory(Protocol):
    """What clients remember between rounds for a strategy, and how it steers their steps."""

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
    def memory(self) -> Memory | None:
        """What clients remember for this strategy; None: nothing."""

    @property
    def mean(self) -> Mean:
        """How deltas become one."""

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
    def local_steps(self) -> int | None:
        """Local steps of a round, where the strategy says it; None: the section `[client]` does."""

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the tensors of the state that are written down after each round; one number a group."""

    @property
    def layerwise(self) -> bool:
        """Whether it gains by letting groups travel at different times, and so nothing where there is one group."""

    def within(
        self, budget_bytes: float, spec: ParamSpec, num_clients: int, bytes_of: Callable[[tuple[str, ...]], int]
    ) -> Strategy:
        """The strategy with what it plans by a budget for the whole run.

        Args:
            budget_bytes: of all payloads.
            spec: what is tuned.
            num_clients: of the federation.
            bytes_of: names of tensors of `spec` to the bytes that they take, down to one client and up again.

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
        self, state: State, params: Params, plan: RoundPlan, updates: Sequence[Update], spec: ParamSpec
    ) -> tuple[Params, State]:
        """The next server params and state. `updates` come in ascending client id; inputs are not changed.

        Statistics are not among the deltas: the round loop takes their mean.
        """


class LocalRule(Protocol):
    """A correction of the gradient in every local step, on stacked lanes.

    Shapes: K lanes, P tuned scalars.
    """

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        """Changes `grads_KP` in place, before the optimizer sees it."""
