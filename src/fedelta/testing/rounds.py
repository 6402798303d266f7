"""Rounds for testing a strategy, with random deltas and without a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch

from fedelta.aggregation.base import Update, combine
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.seeds import stream
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, Strategy
from fedelta.testing.contract import copied
from fedelta.testing.means import drawn

SPEC = ParamSpec({
    "first.weight": TensorSpec((3, 4), "first"),
    "first.bias": TensorSpec((3,), "first"),
    "norm.running_mean": TensorSpec((3,), "first", trained=False),  # a statistic, which the round loop combines
    "second.weight": TensorSpec((2, 3), "second"),
    "second.own": TensorSpec((2,), "second", shared=False),  # it stays with each client
    "third.scale": TensorSpec((), "third"),
})  # fmt: skip
# With gaps, as in a federation with held-out clients.
CLIENTS = (2, 3, 5, 7, 11, 13)
_EXAMPLES = {2: 10, 3: 30, 5: 5, 7: 20, 11: 1, 13: 8}


@dataclass(frozen=True)
class Played:
    """A finished round: its inputs and its results.

    Args:
        plan: of the round.
        combined: the combined updates.
        before: server params and state before the round.
        after: params and state after the round.
    """

    plan: RoundPlan
    combined: CombinedUpdates
    before: tuple[Params, State]
    after: tuple[Params, State]


@dataclass(frozen=True)
class StrategyTrial:
    """A strategy and a federation to test it in.

    Args:
        strategy: the strategy to test.
    """

    strategy: Strategy

    @cached_property
    def wire(self) -> ParamSpec:
        """All tensors that can travel."""
        steering = self.strategy.steering
        return SPEC if steering is None else steering.extend(SPEC)

    @cached_property
    def params(self) -> Params:
        """The server's tensors before round 1."""
        return drawn(SPEC, SPEC.names, "server")

    @property
    def rounds(self) -> Iterator[Played]:
        """The rounds of the run with random deltas; each is played on first use."""
        index = 0
        while True:
            if index == len(self._played):
                self._played.extend(islice(self._underway, 1))
            if index == len(self._played):
                return
            yield self._played[index]
            index += 1

    @property
    def last(self) -> Played:
        """The last round of the run."""
        return list(self.rounds)[-1]

    @cached_property
    def _underway(self) -> Iterator[Played]:
        return self.play()

    @cached_property
    def _played(self) -> list[Played]:
        return []

    def play(
        self,
        strategy: Strategy | None = None,
        standing: tuple[Params, State] | None = None,
        *,
        first: int = 1,
        still: bool = False,
        lost: Collection[int] = (),
        renamed: bool = False,
    ) -> Iterator[Played]:
        """Plays the rounds from `first` to the last, and yields them.

        Args:
            strategy: another value of the trial's strategy.
            standing: params and state to continue from; by default those before round 1.
            first: number of the first round.
            still: whether all deltas are zero.
            lost: clients that never reply.
            renamed: whether clients have other ids, and the clients of a cohort exchange their data.
        """
        strategy, clients = strategy or self.strategy, tuple(2 * client for client in CLIENTS) if renamed else CLIENTS
        params, state = standing or (copied(self.params), strategy.init(copied(self.params), SPEC))
        for round in range(first, strategy.num_rounds + 1):
            plan = strategy.plan(state, round, clients, SPEC, stream(0, "cohort", round))
            updates = self._updates(plan, still=still, renamed=renamed)
            updates = [update for update in updates if update.client_id not in lost]
            combined = _combined(strategy, updates, self.wire)
            before = (params, state)
            params, state = strategy.update(state, params, plan, combined, SPEC)
            yield Played(plan, combined, before, (params, state))

    def _updates(self, plan: RoundPlan, *, still: bool, renamed: bool) -> list[Update]:
        """The updates of the cohort, without statistics, which the round loop combines."""
        cohort = plan.cohort
        sources = [client // 2 for client in reversed(cohort)] if renamed else list(cohort)
        updates = []
        for client, source in zip(cohort, sources, strict=True):
            names = [name for name in plan.upload[client] if name not in SPEC.statistics]
            delta = drawn(self.wire, names, plan.round, source)
            if still:
                delta = {name: torch.zeros_like(tensor) for name, tensor in delta.items()}
            updates.append(Update(client, _EXAMPLES.get(source, 1), delta, effective_steps=2.0 + source % 3))
        return updates


def _combined(strategy: Strategy, updates: Sequence[Update], wire: ParamSpec) -> CombinedUpdates:
    mean = combine(strategy.mean, updates, wire, stream(0, "aggregation"))
    single = tuple(updates) if strategy.reads == "each" else ()
    return CombinedUpdates(mean, tuple(update.client_id for update in updates), single)
