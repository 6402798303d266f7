"""The one loop: plan, send, train, check, combine, evaluate.

Whatever differs between algorithms, byte formats and places where clients run is behind the protocols that a
`Federation` holds. Replies are taken in ascending client id, so that no result depends on their order of arrival: one
that comes early waits as bytes, and a single one is decoded at a time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

from fedelta.aggregation.base import Aggregation, Update
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.data.clients import Clients
from fedelta.errors import ConfigError, PayloadError, RoundError, SpecError
from fedelta.federation.records import LOST, Claim, Rejection, Reply, RoundOutcome, Transfer
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec, add, is_finite, norm, select
from fedelta.seeds import stream
from fedelta.strategies.base import Combined, RoundPlan, State, Strategy
from fedelta.tasks.base import Evaluation

_CALM_DOWN = "lower `client.lr` or `strategy.server_lr`."


class Runtime(Protocol):
    """Where clients run, and where what they keep between rounds is."""

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterable[Reply]:
        """Sends each client its payload and gives their replies, in any order.

        A client that fails gives a reply with a `fault`; one that cannot be reached gives none.
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


def federate(federation: Federation, standing: Standing) -> Iterator[RoundOutcome]:
    """Runs the rounds that are left and yields each when it is complete.

    Raises:
        RoundError: too few usable replies, or params that are no longer finite.
    """
    num_rounds = federation.strategy.num_rounds
    while standing.rounds_done < num_rounds and not _spent(federation, standing.bytes_sent):
        outcome = _round(federation, standing)
        yield outcome
        bytes_sent = standing.bytes_sent + sum(transfer.payload_bytes for transfer in outcome.transfers)
        standing = Standing(outcome.params, outcome.state, outcome.round, bytes_sent, outcome.claimed)


def _round(federation: Federation, standing: Standing) -> RoundOutcome:
    """The next round."""
    params, state, round = standing.params, standing.state, standing.rounds_done + 1
    cohort = stream(federation.seed, "cohort", round)
    plan = federation.strategy.plan(state, round, federation.clients.numbers, federation.spec, cohort)
    if federation.tiers is not None:
        plan = federation.tiers.restrict(plan)
    payloads, sent = _send(federation, plan, {**state, **params})
    intake = _Intake(federation, plan, standing.claimed)
    for reply in federation.runtime.run(plan, payloads):
        intake.take(reply)
        del reply  # its payload may be as large as the model, and the next one is being made
    intake.close()
    if counts := _enough(federation, plan, intake):
        params, state = intake.combine(params, state)
    _require_finite(round, {**state, **params})
    accepted = intake.accepted if counts else []
    federation.runtime.accept(each.client_id for each in accepted)
    transfers = [transfer for transfer in sent if transfer.client_id not in intake.unreached] + intake.transfers
    rejections = intake.rejections
    if not counts:
        rejections += [Rejection(each.client_id, "too few replies", "void round") for each in intake.accepted]
    bytes_sent = standing.bytes_sent + sum(transfer.payload_bytes for transfer in transfers)
    return RoundOutcome(
        round=round,
        params=params,
        state=state,
        cohort=plan.cohort,
        rejections=tuple(sorted(rejections, key=lambda rejection: rejection.client_id)),
        transfers=tuple(transfers),
        num_examples=sum(each.num_examples for each in accepted),
        train_loss=_train_loss(accepted),
        evaluation=_evaluation(federation, params, round, bytes_sent),
        delta_norm=median(each.delta_norm for each in accepted) if accepted else None,
        simulated_seconds=intake.simulated_seconds,
        synced_fraction=_synced_fraction(federation.spec, plan, accepted),
        logged={name: tuple(state[name].tolist()) for name in federation.strategy.logged},
        claims=tuple(intake.claims),
        claimed=intake.claimed if counts else standing.claimed,
    )


def _send(federation: Federation, plan: RoundPlan, tensors: Params) -> tuple[dict[int, bytes], list[Transfer]]:
    """Encodes each client's download from params and state; clients that get the same tensors share one payload."""
    encoded: dict[tuple[str, ...], tuple[bytes, dict[str, int]]] = {}
    payloads: dict[int, bytes] = {}
    transfers = []
    for client_id in plan.cohort:
        names = plan.download[client_id]
        if names not in encoded:
            encoded[names] = _encode(plan.round, select(tensors, names), federation)
        payloads[client_id], groups = encoded[names]
        transfers.append(Transfer(plan.round, client_id, "down", len(payloads[client_id]), groups))
    return payloads, transfers


def _encode(round: int, tensors: Params, federation: Federation) -> tuple[bytes, dict[str, int]]:
    try:
        return encode(tensors, federation.wire, federation.channel.down)
    except PayloadError as error:
        raise RoundError(f"round {round}: {error.message}", hint=error.hint or _CALM_DOWN) from error


class _Accepted(NamedTuple):
    """What is kept of a reply whose update was added."""

    client_id: int
    num_examples: int
    train_loss: float
    delta_norm: float


class _Intake:
    """The replies of a round: each is decoded, checked and added when all clients before it have had their turn.

    Args:
        federation: what stays the same.
        plan: of the round.
        claimed: client id to the number of examples of its last accepted reply.
    """

    def __init__(self, federation: Federation, plan: RoundPlan, claimed: Mapping[int, int]) -> None:
        self.accepted: list[_Accepted] = []
        self.rejections: list[Rejection] = []
        self.transfers: list[Transfer] = []
        self.claims: list[Claim] = []
        self.claimed = dict(claimed)
        self.unreached: set[int] = set()
        self.simulated_seconds: float | None = None
        self._federation, self._plan = federation, plan
        self._turns = deque(plan.cohort)
        self._waiting: dict[int, Reply] = {}
        self._statistics = frozenset(federation.spec.statistics)
        self._trained = federation.aggregation.start(federation.wire)
        self._measured = federation.aggregation.of_statistics.start(federation.wire)
        self._updates: list[Update] = []  # only for a strategy that looks at each

    def take(self, reply: Reply) -> None:
        """A reply has come; those whose turn it is are added."""
        if reply.simulated_seconds is not None:
            self.simulated_seconds = max(self.simulated_seconds or 0.0, reply.simulated_seconds)
        if reply.client_id in self._waiting or reply.client_id not in self._turns:
            self._reject(reply, "a reply that nobody asked for")
            return
        self._waiting[reply.client_id] = reply
        while self._turns and self._turns[0] in self._waiting:
            self._add(self._waiting.pop(self._turns.popleft()))

    def close(self) -> None:
        """No more replies come."""
        while self._turns:
            client_id = self._turns.popleft()
            if client_id in self._waiting:
                self._add(self._waiting.pop(client_id))
            else:
                self.rejections.append(Rejection(client_id, "no reply", "no reply"))
        self.transfers.sort(key=lambda transfer: transfer.client_id)

    def combine(self, params: Params, state: State) -> tuple[Params, State]:
        """The strategy's update of what is trained, and the mean of statistics.

        A server's step that goes beyond the mean, or that an optimizer scales, has no meaning for a mean and a
        variance: a variance would even leave the positive numbers.
        """
        federation, round = self._federation, self._plan.round
        mean = self._trained.finish(stream(federation.seed, "aggregation", round))
        combined = Combined(mean, tuple(each.client_id for each in self.accepted), tuple(self._updates))
        params, state = federation.strategy.update(state, params, self._plan, combined, federation.spec)
        if not self._statistics:
            return params, state
        return add(params, self._measured.finish(stream(federation.seed, "statistics", round))), state

    def _add(self, reply: Reply) -> None:
        if reply.fault is not None and not reply.fault.reached:
            self.unreached.add(reply.client_id)
        try:
            update, groups = _open(self._federation, self._plan, reply)
        except (PayloadError, SpecError) as error:
            self._reject(reply, error.message)
            return
        self._transferred(reply, groups)
        self._note_claim(reply, update)
        trained = {name: tensor for name, tensor in update.delta.items() if name not in self._statistics}
        tuned = {name: tensor for name, tensor in trained.items() if name in self._federation.spec}
        self.accepted.append(_Accepted(update.client_id, update.num_examples, reply.metrics["train_loss"], norm(tuned)))
        self._trained.add(replace(update, delta=trained))
        if self._statistics:
            measured = {name: tensor for name, tensor in update.delta.items() if name in self._statistics}
            self._measured.add(replace(update, delta=measured))
        if self._federation.strategy.reads == "each":
            self._updates.append(replace(update, delta=trained))

    def _note_claim(self, reply: Reply, update: Update) -> None:
        """A number of examples that has changed, or that counts for less than was claimed."""
        before = self.claimed.get(reply.client_id)
        if before not in (None, reply.num_examples) or update.num_examples != reply.num_examples:
            self.claims.append(Claim(reply.client_id, reply.num_examples, before, update.num_examples))
        self.claimed[reply.client_id] = reply.num_examples

    def _reject(self, reply: Reply, reason: str) -> None:
        """The reply cannot be used; its bytes count all the same."""
        cause = "refused" if reply.fault is None else reply.fault.cause
        self.rejections.append(Rejection(reply.client_id, reason, cause))
        self._transferred(reply, {})

    def _transferred(self, reply: Reply, groups: Mapping[str, int]) -> None:
        if reply.payload:
            self.transfers.append(Transfer(self._plan.round, reply.client_id, "up", len(reply.payload), groups))


def _open(federation: Federation, plan: RoundPlan, reply: Reply) -> tuple[Update, dict[str, int]]:
    """The decoded reply, and the bytes of its tensors by group."""
    if reply.fault is not None:
        raise PayloadError(reply.fault.reason)
    if reply.num_examples < 1:
        raise SpecError(f"the client claims {reply.num_examples} examples, expected at least 1")
    if not math.isfinite(loss := reply.metrics.get("train_loss", math.nan)):
        raise SpecError(f"the client's metric `train_loss` is {loss}, expected a finite number")
    delta, groups = decode(reply.payload, federation.wire, federation.channel.up)
    federation.wire.check(delta, plan.upload[reply.client_id])
    num_examples = min(reply.num_examples, federation.strategy.max_examples)
    return Update(reply.client_id, num_examples, delta, federation.effective_steps(num_examples)), groups


def _spent(federation: Federation, bytes_sent: int) -> bool:
    return federation.byte_budget is not None and bytes_sent >= federation.byte_budget


def _enough(federation: Federation, plan: RoundPlan, intake: _Intake) -> bool:
    """Whether the round counts. It does not where clients were lost; where they were wrong instead, the run ends."""
    accepted, rejections = intake.accepted, intake.rejections
    min_replies, clients = federation.strategy.min_replies, federation.clients
    if len(accepted) >= min_replies:
        return True
    lost = {rejection.client_id for rejection in rejections if rejection.cause in LOST}
    lost = lost.intersection(plan.cohort).difference(each.client_id for each in accepted)
    if len(accepted) + len(lost) >= min_replies:
        return False
    first = sorted(rejections, key=lambda rejection: rejection.client_id)[:5]
    reasons = "".join(f"\n  - {clients.called(rejection.client_id)}: {rejection.reason}" for rejection in first)
    raise RoundError(
        f"round {plan.round}: {len(accepted)} of {len(plan.cohort)} replies are usable, "
        f"`strategy.min_replies` is {min_replies}.{reasons}",
        hint="if losses are not finite, lower `client.lr` or warm up over a few rounds "
        "(`client.schedule.warmup_rounds`).",
    )


def _require_finite(round: int, params: Params) -> None:
    broken = [name for name, tensor in params.items() if not is_finite(tensor)]
    if broken:
        raise RoundError(
            f"round {round}: {len(broken)} of {len(params)} tensors of the server are no longer finite, "
            f"first {broken[:3]}.",
            hint=_CALM_DOWN,
        )


def _evaluation(federation: Federation, params: Params, round: int, bytes_sent: int) -> Evaluation | None:
    """Measures of the round, where it is one of those that are evaluated."""
    last = round == federation.strategy.num_rounds or _spent(federation, bytes_sent)
    if federation.evaluate is None or not (last or round % federation.evaluate_every == 0):
        return None
    evaluation = federation.evaluate(params)
    if name := evaluation.not_finite:
        value = evaluation.measures[name]
        raise RoundError(f"round {round}: the evaluation's `{name}` is {value}.", hint=_CALM_DOWN)
    return evaluation


def _train_loss(accepted: Sequence[_Accepted]) -> float | None:
    """Mean of the clients' training losses over the accepted replies, weighted by examples."""
    total = sum(each.num_examples * each.train_loss for each in accepted)
    return total / sum(each.num_examples for each in accepted) if accepted else None


def _synced_fraction(spec: ParamSpec, plan: RoundPlan, accepted: Sequence[_Accepted]) -> float:
    """The share of what is tuned and travels that was averaged: sum_l dim_l over the groups of this round, over all."""
    came_up = {name for each in accepted for name in plan.upload[each.client_id] if name in spec}
    trained = {name: tensor.numel for name, tensor in spec.tensors.items() if tensor.trained and tensor.shared}
    return sum(numel for name, numel in trained.items() if name in came_up) / sum(trained.values())
