"""The parts of a federation: `Runtime` runs clients, `Federation` is constant over rounds, `Standing` changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Generator

from fedelta.aggregation.base import Aggregation
from fedelta.aggregation.means import Uniform, UniformDeltas
from fedelta.codecs.changes import Mirror
from fedelta.codecs.channel import Channel
from fedelta.data.clients import Clients
from fedelta.errors import ConfigError, RoundError
from fedelta.federation.forms import Forms
from fedelta.federation.pairs import NO_RANKS, Pairs
from fedelta.federation.records import Attendance, Rejection, Reply
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec
from fedelta.privacy.central import Central
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.state import PrivacyState
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, State, Strategy, Whole, is_private
from fedelta.tasks.base import Evaluation


class Runtime(Protocol):
    """Runs clients, and stores what they keep between rounds."""

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterable[Reply]:
        """Sends each client its payload and returns their replies, in any order.

        A client that fails gives a reply with a `fault`; a client that cannot be reached gives none. The round loop
        checks all values and types: it rejects a malformed reply, and both replies of a client that sent two.
        """

    def accept(self, client_ids: Iterable[int]) -> None:
        """Tells these clients that their replies are in the mean of this round."""

    def snapshot(self, folder: Path, round: int) -> str:
        """Writes what clients keep to disk and returns a mark, with which `restore` finds this state.

        Args:
            folder: the run's folder for snapshots; a runtime with another place for them may ignore it.
            round: number of the round that has ended.
        """

    def restore(self, folder: Path, mark: str) -> None:
        """Goes back to the snapshot of `mark`; the empty mark means that no client keeps anything.

        Raises:
            CheckpointError: the snapshot is missing or was changed.
        """


@dataclass(frozen=True)
class Thorough:
    """An evaluation that takes too long for every round, with measures that others lack.

    Args:
        evaluate: as that of `Federation`.
        every: number of rounds between such evaluations; 0 for none before the last round.
        at_the_end: whether the last round has one.
    """

    evaluate: Callable[[Params], Evaluation | None]
    every: int
    at_the_end: bool = True

    def is_due(self, round: int, *, is_last: bool) -> bool:
        """Whether this round has one."""
        return (is_last and self.at_the_end) or bool(self.every and round % self.every == 0)


@dataclass(frozen=True)
class Federation:
    """Everything that stays the same from round to round.

    Args:
        strategy: draws cohorts and combines deltas.
        runtime: runs clients.
        channel: the codecs of both directions.
        spec: what is tuned; a strategy may send more (`wire`).
        clients: all clients that a cohort may be drawn from.
        seed: of the run; cohorts are streams of it.
        evaluate: gives the measures of server params, or None if there are none at present; None if the server does not
            evaluate.
        effective_steps: number of examples of a client to `Update.effective_steps`. The server computes it, because a
            number from the client could not be checked.
        evaluate_every: number of rounds between evaluations; the last round is always evaluated.
        thorough: takes the place of `evaluate` in some rounds; None: in none.
        byte_budget: the run ends after the round in which its payloads reach this many bytes; None for no limit.
        tiers: which client holds which tensors; None if every client holds all of them.
        has_plugin: whether strategy or mean are from a plug-in, so that their results are checked (contract.py).
        attendance: tells what each site did since the last call, by name; nothing if clients run on this machine.
        site_of: client id to its site; empty if clients run on this machine.
        privacy: what is guaranteed, and how it is counted; None: nothing.
        central: adds the noise of client-level privacy; None: the server adds none.
        pairs: the low-rank pairs of the model, and how they are combined; None: as all other tensors.
        replies_once: whether the runtime gives no client's reply twice, as one on this machine does; a reply then
            counts as soon as it is its turn.

    Raises:
        ConfigError: the strategy reads single updates, but the aggregation gives only sums; or client-level privacy
            does not fit the strategy, its mean or the tensors.
    """

    strategy: Strategy
    runtime: Runtime
    channel: Channel
    spec: ParamSpec
    clients: Clients
    seed: int
    evaluate: Callable[[Params], Evaluation | None] | None
    effective_steps: Callable[[int], float]
    evaluate_every: int = 1
    thorough: Thorough | None = None
    byte_budget: int | None = None
    tiers: Tiers | None = None
    has_plugin: bool = False
    attendance: Callable[[], Sequence[Attendance]] = tuple
    site_of: Mapping[int, str] = field(default_factory=dict)
    privacy: Guarantee | None = None
    central: Central | None = None
    replies_once: bool = False
    pairs: Pairs | None = None

    def __post_init__(self) -> None:
        if self.central is not None and (problems := _not_private(self)):
            raise ConfigError(problems, hint="change these, or choose another `privacy.unit`.")
        if self.pairs is not None and self.pairs.ranks and self.channel.down.feeds_back:
            raise ConfigError(
                [f"`codec.down.name` is {self.channel.down.name!r}, but the ranks of clients differ"],
                hint="what a client of a lower rank gets is a part of the tensors: choose 'float16' for downloads.",
            )
        if self.strategy.reads == "each" and self.aggregation.only_sums:
            raise ConfigError(
                [_sums_problem(self.strategy, self.aggregation)],
                hint="choose a strategy that needs only the sum, such as 'fedavg', or another aggregation.",
            )

    @cached_property
    def aggregation(self) -> Aggregation:
        """What combines the deltas of a round, if it is not `central`."""
        return self.strategy.mean

    @cached_property
    def min_replies(self) -> int:
        """Fewest usable replies with which a round counts: the larger of what the strategy and its mean need.

        0 with client-level privacy: a round that does not count would tell who was there.
        """
        return 0 if self.central is not None else max(self.strategy.min_replies, self.aggregation.min_values)

    @cached_property
    def wire(self) -> ParamSpec:
        """Every tensor that can travel: what is tuned, and what the strategy sends in addition."""
        steering = self.strategy.steering
        return self.spec if steering is None else steering.extend(self.spec)

    @cached_property
    def forms(self) -> Forms | Whole:
        """The forms of the payloads of the run."""
        return Whole(self.wire) if self.pairs is None else Forms(self.wire)

    @cached_property
    def rank_of(self) -> Callable[[int], int | None]:
        """Gives the rank of a client's pairs; None if all clients have that of the server."""
        return (NO_RANKS if self.pairs is None else self.pairs.ranks).get

    @cached_property
    def in_order(self) -> Sequence[int]:
        """All clients as a strategy gets them: ascending, or in an order that is drawn once if they take turns."""
        numbers = self.clients.numbers
        return in_turns(self.seed, numbers) if self.strategy.sampling == "cyclic" else numbers

    @cached_property
    def draws(self) -> Callable[[int], Generator]:
        """Gives the stream from which the cohort of a round is drawn, at its start."""
        if self.central is not None:
            return partial(self.central.randomness.generator, "cohort")
        return partial(stream, self.seed, "cohort")


def in_turns(seed: int, client_ids: Sequence[int]) -> Sequence[int]:
    """The order in which clients take turns."""
    places = torch.randperm(len(client_ids), generator=stream(seed, "turns"))
    return tuple(client_ids[place] for place in places.tolist())


def _not_private(federation: Federation) -> list[str]:
    """Why the federation cannot have client-level privacy."""
    strategy, problems = federation.strategy, []
    if not is_private(strategy):
        problems.append(
            f"`strategy.name` is {strategy.name!r}, which does not say that it is private (`private`), but "
            f"`privacy.unit` is 'client'"
        )
    if not isinstance(strategy.mean, Uniform | UniformDeltas):
        problems.append(
            f"`strategy.mean.name` is {strategy.mean.name!r}, expected 'uniform' with `privacy.unit = 'client'`: "
            f"how much one client changes another mean has no limit"
        )
    if statistics := federation.spec.statistics:
        problems.append(
            f"{len(statistics)} running statistics of batch norms travel, first `{statistics[0]}`, which "
            f"`privacy.unit = 'client'` cannot cover"
        )
    if federation.byte_budget is not None:
        problems.append(
            "`byte_budget_mib` ends a run when so many bytes have travelled, which tells how many clients were there; "
            "`privacy.unit = 'client'` does not cover it"
        )
    return problems


def _sums_problem(strategy: Strategy, aggregation: Aggregation) -> str:
    return (
        f"`strategy.name` is {strategy.name!r}, which reads the update of each client, but the aggregation "
        f"{aggregation.name!r} gives only their sum"
    )


@dataclass(frozen=True)
class Standing:
    """The state of a run between two rounds.

    Args:
        params: the server's params, float32.
        state: the strategy's state.
        rounds_done: number of finished rounds.
        bytes_sent: payload bytes of these rounds, both directions.
        claimed: client id to the number of examples in its last accepted reply.
        privacy: what has been released.
        mirror: what clients hold, if downloads carry changes; else empty.
    """

    params: Params
    state: State
    rounds_done: int = 0
    bytes_sent: int = 0
    claimed: Mapping[int, int] = field(default_factory=dict)
    privacy: PrivacyState = field(default_factory=PrivacyState)
    mirror: Mirror = field(default_factory=Mirror)


def too_few(federation: Federation, plan: RoundPlan, num_usable: int, rejections: Sequence[Rejection]) -> RoundError:
    """The error for a round with too few usable replies; it lists the reasons of the first five rejections."""
    shown = sorted(rejections, key=lambda rejection: rejection.client_id)[:5]
    reasons = "".join(
        f"\n  - {federation.clients.called(rejection.client_id)}: {rejection.reason}" for rejection in shown
    )
    minimum = f"`strategy.min_replies` is {federation.min_replies}"
    if federation.min_replies > federation.strategy.min_replies:
        minimum = f"the mean {federation.aggregation.name!r} needs {federation.min_replies}"
    return RoundError(
        f"round {plan.round}: {num_usable} of {len(plan.cohort)} replies are usable, {minimum}.{reasons}",
        hint="if losses are not finite, lower `client.lr` or warm up over a few rounds "
        "(`client.schedule.warmup_rounds`).",
    )
