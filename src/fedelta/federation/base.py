"""What a federation is made of: where clients run, what stays the same from round to round, and where a run stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from fedelta.aggregation.base import Aggregation
from fedelta.codecs.channel import Channel
from fedelta.data.clients import Clients
from fedelta.errors import ConfigError, RoundError
from fedelta.federation.records import Rejection, Reply
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec
from fedelta.strategies.base import RoundPlan, State, Strategy
from fedelta.tasks.base import Evaluation


class Runtime(Protocol):
    """Where clients run, and where what they keep between rounds is."""

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterable[Reply]:
        """Sends each client its payload and gives their replies, in any order.

        A client that fails gives a reply with a `fault`; one that cannot be reached gives none. What comes is checked
        by the round loop, types included: a reply that is badly made is refused, and two of one client both are.
        """

    def accept(self, client_ids: Iterable[int]) -> None:
        """Tells these clients that their replies of this round entered the mean."""

    def snapshot(self, folder: Path, round: int) -> str:
        """Makes what clients keep durable, as it is after `round`, and gives a mark by which `restore` finds it.

        Args:
            folder: of the run, for a runtime that has no place of its own.
            round: that has ended.
        """

    def restore(self, folder: Path, mark: str) -> None:
        """Goes back to the snapshot of `mark`; the empty mark is that of clients that keep nothing.

        Raises:
            CheckpointError: it is not there, or was altered.
        """


@dataclass(frozen=True)
class Federation:
    """Everything that stays the same from round to round.

    Args:
        strategy: draws cohorts and combines deltas.
        runtime: runs clients.
        channel: how tensors become bytes.
        spec: what is tuned; strategies may let more travel (`wire`).
        clients: all that may be asked.
        seed: of the run; cohorts are streams of it.
        evaluate: server params to the measures of the task; None: the server does not measure.
        effective_steps: number of examples of a client to `Update.effective_steps`. The server works it out itself:
            what a client claims could be anything.
        evaluate_every: rounds between evaluations; the last round is always evaluated.
        byte_budget: the run ends with the round in which its payloads reach this many bytes; None for no bound.
        tiers: who holds what; None: every client holds all that is tuned.
        around: what is put around the strategy's own mean, such as noise; None: nothing.

    Raises:
        ConfigError: the strategy looks at single updates, and the aggregation gives sums only.
    """

    strategy: Strategy
    runtime: Runtime
    channel: Channel
    spec: ParamSpec
    clients: Clients
    seed: int
    evaluate: Callable[[Params], Evaluation] | None
    effective_steps: Callable[[int], float]
    evaluate_every: int = 1
    byte_budget: int | None = None
    tiers: Tiers | None = None
    around: Callable[[Aggregation], Aggregation] | None = None

    def __post_init__(self) -> None:
        if self.strategy.reads == "each" and self.aggregation.only_sums:
            raise ConfigError(
                [_looks_at_each(self.strategy, self.aggregation)],
                hint="choose a strategy to which the sum is enough, such as 'fedavg', or another aggregation.",
            )

    @cached_property
    def aggregation(self) -> Aggregation:
        """How the deltas of a round become one."""
        return self.strategy.mean if self.around is None else self.around(self.strategy.mean)

    @cached_property
    def min_replies(self) -> int:
        """Fewest usable replies with which a round counts: the strategy's, or what its mean needs if that is more."""
        return max(self.strategy.min_replies, self.aggregation.min_values)

    @cached_property
    def wire(self) -> ParamSpec:
        """Everything that can travel: what is tuned, and what the strategy sends beside it."""
        steering = self.strategy.steering
        return self.spec if steering is None else steering.extend(self.spec)


def _looks_at_each(strategy: Strategy, aggregation: Aggregation) -> str:
    return (
        f"`strategy.name` is {strategy.name!r}, which looks at each client's update, but the aggregation "
        f"{aggregation.name!r} only gives their sum"
    )


@dataclass(frozen=True)
class Standing:
    """Where a run stands between two rounds.

    Args:
        params: of the server, float32.
        state: of the strategy.
        rounds_done: rounds behind them.
        bytes_sent: payload bytes of those rounds.
        claimed: client id to the number of examples that it last claimed to have.
    """

    params: Params
    state: State
    rounds_done: int = 0
    bytes_sent: int = 0
    claimed: Mapping[int, int] = field(default_factory=dict)


def too_few(federation: Federation, plan: RoundPlan, num_usable: int, rejections: Sequence[Rejection]) -> RoundError:
    """The end of a run in which clients were wrong, not lost; with the first reasons."""
    first = sorted(rejections, key=lambda rejection: rejection.client_id)[:5]
    reasons = "".join(f"\n  - {federation.clients.called(each.client_id)}: {each.reason}" for each in first)
    least = f"`strategy.min_replies` is {federation.min_replies}"
    if federation.min_replies > federation.strategy.min_replies:
        least = f"the mean {federation.aggregation.name!r} needs {federation.min_replies}"
    return RoundError(
        f"round {plan.round}: {num_usable} of {len(plan.cohort)} replies are usable, {least}.{reasons}",
        hint="if losses are not finite, lower `client.lr` or warm up over a few rounds "
        "(`client.schedule.warmup_rounds`).",
    )
