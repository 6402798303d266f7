"""The one loop: plan, send, train, check, combine, evaluate.

Whatever differs between algorithms, byte formats and places where clients run is behind the protocols that a
`Federation` holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Protocol

from fedelta.codecs.base import Codec
from fedelta.codecs.wire import decode, encode
from fedelta.errors import PayloadError, RoundError, SpecError
from fedelta.federation.records import LOST, Rejection, Reply, RoundOutcome, Transfer
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec, add, is_finite, select
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, State, Strategy, Update
from fedelta.strategies.means import norm
from fedelta.tasks.base import Evaluation

_CALM_DOWN = "lower `client.lr` or `strategy.server_lr`."


class Runtime(Protocol):
    """Where clients run."""

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterable[Reply]:
        """Sends each client its payload and gives their replies, in any order.

        A client that fails gives a reply with a `fault`; one that cannot be reached gives none.
        """

    def accept(self, client_ids: Iterable[int]) -> None:
        """Tells these clients that their replies of this round entered the mean."""


@dataclass(frozen=True)
class Federation:
    """Everything that stays the same from round to round.

    Args:
        strategy: draws cohorts and combines deltas.
        runtime: runs clients.
        codec: of both directions.
        spec: what is tuned; strategies may let more travel (`wire`).
        client_ids: all clients, ascending.
        seed: of the run; cohorts are streams of it.
        evaluate: server params to the measures of the task; None: the server does not measure.
        effective_steps: number of examples of a client to `Update.effective_steps`. The server works it out itself:
            what a client claims could be anything.
        evaluate_every: rounds between evaluations; the last round is always evaluated.
        byte_budget: the run ends with the round in which its payloads reach this many bytes; None for no bound.
        tiers: who holds what; None: every client holds all that is tuned.
    """

    strategy: Strategy
    runtime: Runtime
    codec: Codec
    spec: ParamSpec
    client_ids: Sequence[int]
    seed: int
    evaluate: Callable[[Params], Evaluation] | None
    effective_steps: Callable[[int], float]
    evaluate_every: int = 1
    byte_budget: int | None = None
    tiers: Tiers | None = None

    @cached_property
    def wire(self) -> ParamSpec:
        """Everything that can travel: what is tuned, and what the strategy sends beside it."""
        memory = self.strategy.memory
        return self.spec if memory is None else memory.extend(self.spec)


def federate(
    federation: Federation, params: Params, state: State, *, rounds_done: int = 0, bytes_sent: int = 0
) -> Iterator[RoundOutcome]:
    """Runs the rounds after `rounds_done` and yields each when it is complete.

    Args:
        federation: what stays the same.
        params: server params, float32.
        state: of the strategy.
        rounds_done: rounds behind `params` and `state`.
        bytes_sent: payload bytes of those rounds.

    Raises:
        RoundError: too few usable replies, or params that are no longer finite.
    """
    num_rounds = federation.strategy.num_rounds
    if _spent(federation, bytes_sent):
        return
    for round in range(rounds_done + 1, num_rounds + 1):
        cohort = stream(federation.seed, "cohort", round)
        plan = federation.strategy.plan(state, round, federation.client_ids, federation.spec, cohort)
        if federation.tiers is not None:
            plan = federation.tiers.restrict(plan)
        payloads, sent = _send(federation, plan, {**state, **params})
        replies = sorted(federation.runtime.run(plan, payloads), key=lambda reply: (reply.client_id, reply.payload))
        accepted, rejections, transfers = _check(federation, plan, replies)
        unreached = {reply.client_id for reply in replies if not reply.reached}
        transfers = [transfer for transfer in sent if transfer.client_id not in unreached] + transfers
        if not _enough(federation.strategy.min_replies, plan, [reply for reply, _ in accepted], rejections):
            rejections += [Rejection(reply.client_id, "too few replies", "void round") for reply, _ in accepted]
            accepted = []
        updates = [update for _, update in accepted]
        if updates:
            params, state = _combine(federation, plan, updates, params, state)
        _require_finite(round, {**state, **params})
        federation.runtime.accept(update.client_id for update in updates)
        bytes_sent += sum(transfer.payload_bytes for transfer in transfers)
        last = round == num_rounds or _spent(federation, bytes_sent)
        is_due = last or round % federation.evaluate_every == 0
        evaluation = federation.evaluate(params) if federation.evaluate is not None and is_due else None
        if evaluation is not None and (name := evaluation.not_finite):
            value = evaluation.measures[name]
            raise RoundError(f"round {round}: the evaluation's `{name}` is {value}.", hint=_CALM_DOWN)
        yield RoundOutcome(
            round=round,
            params=params,
            state=state,
            cohort=plan.cohort,
            rejections=tuple(sorted(rejections, key=lambda rejection: rejection.client_id)),
            transfers=tuple(transfers),
            num_examples=sum(update.num_examples for update in updates),
            train_loss=_train_loss([reply for reply, _ in accepted]),
            evaluation=evaluation,
            delta_norm=_delta_norm(federation.spec, updates),
            simulated_seconds=_simulated_seconds(replies),
            synced_fraction=_synced_fraction(federation.spec, plan, updates),
            logged={name: tuple(state[name].tolist()) for name in federation.strategy.logged},
        )
        if last:
            return


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
        return encode(tensors, federation.wire, federation.codec)
    except PayloadError as error:
        raise RoundError(f"round {round}: {error.message}", hint=error.hint or _CALM_DOWN) from error


def _check(
    federation: Federation, plan: RoundPlan, replies: Sequence[Reply]
) -> tuple[list[tuple[Reply, Update]], list[Rejection], list[Transfer]]:
    """Decodes the replies; one that cannot be used is rejected with its reason, and its bytes count all the same."""
    accepted: dict[int, tuple[Reply, Update]] = {}
    rejections, transfers = [], []
    for reply in replies:
        groups: dict[str, int] = {}
        try:
            if reply.client_id not in plan.upload or reply.client_id in accepted:
                raise SpecError("a reply that nobody asked for")
            update, groups = _open(federation, plan, reply)
            accepted[reply.client_id] = (reply, update)
        except (PayloadError, SpecError) as error:
            rejections.append(Rejection(reply.client_id, error.message, reply.cause))
        if reply.payload:
            transfers.append(Transfer(plan.round, reply.client_id, "up", len(reply.payload), groups))
    answered = {reply.client_id for reply in replies}
    rejections += [
        Rejection(client_id, "no reply", "no reply") for client_id in plan.cohort if client_id not in answered
    ]
    return list(accepted.values()), rejections, transfers


def _open(federation: Federation, plan: RoundPlan, reply: Reply) -> tuple[Update, dict[str, int]]:
    """The decoded reply, and the bytes of its tensors by group."""
    if reply.fault is not None:
        raise PayloadError(reply.fault)
    if reply.num_examples < 1:
        raise SpecError(f"the client claims {reply.num_examples} examples, expected at least 1")
    if not math.isfinite(loss := reply.metrics.get("train_loss", math.nan)):
        raise SpecError(f"the client's metric `train_loss` is {loss}, expected a finite number")
    delta, groups = decode(reply.payload, federation.wire, federation.codec)
    federation.wire.check(delta, plan.upload[reply.client_id])
    return Update(reply.client_id, reply.num_examples, delta, federation.effective_steps(reply.num_examples)), groups


def _combine(
    federation: Federation, plan: RoundPlan, updates: Sequence[Update], params: Params, state: State
) -> tuple[Params, State]:
    """The strategy's update of what is trained, and the mean of statistics.

    A server's step that goes beyond the mean, or that an optimizer scales, has no meaning for a mean and a variance: a
    variance would even leave the positive numbers.
    """
    statistics = set(federation.spec.statistics)
    if not statistics:
        return federation.strategy.update(state, params, plan, updates, federation.spec)
    trained, measured = [], []
    for update in updates:
        trained.append(replace(update, delta={n: t for n, t in update.delta.items() if n not in statistics}))
        measured.append(replace(update, delta={n: t for n, t in update.delta.items() if n in statistics}))
    params, state = federation.strategy.update(state, params, plan, trained, federation.spec)
    return add(params, federation.strategy.mean.of_statistics.of(measured)), state


def _spent(federation: Federation, bytes_sent: int) -> bool:
    return federation.byte_budget is not None and bytes_sent >= federation.byte_budget


def _enough(min_replies: int, plan: RoundPlan, accepted: Sequence[Reply], rejections: Sequence[Rejection]) -> bool:
    """Whether the round counts. It does not where clients were lost; where they were wrong instead, the run ends."""
    if len(accepted) >= min_replies:
        return True
    lost = {rejection.client_id for rejection in rejections if rejection.cause in LOST}
    lost = lost.intersection(plan.cohort).difference(reply.client_id for reply in accepted)
    if len(accepted) + len(lost) >= min_replies:
        return False
    reasons = "".join(f"\n  - client {rejection.client_id}: {rejection.reason}" for rejection in rejections[:5])
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


def _train_loss(replies: Sequence[Reply]) -> float | None:
    """Mean of the clients' training losses over the accepted replies, weighted by examples."""
    total = sum(reply.num_examples * reply.metrics["train_loss"] for reply in replies)
    return total / sum(reply.num_examples for reply in replies) if replies else None


def _delta_norm(spec: ParamSpec, updates: Sequence[Update]) -> float | None:
    """Median length of the deltas of what is trained."""
    lengths = [
        norm({name: tensor for name, tensor in update.delta.items() if name in spec and spec.tensors[name].trained})
        for update in updates
    ]
    return median(lengths) if lengths else None


def _synced_fraction(spec: ParamSpec, plan: RoundPlan, updates: Sequence[Update]) -> float:
    """The share of what is tuned and travels that was averaged: sum_l dim_l over the groups of this round, over all."""
    came_up = {name for update in updates for name in plan.upload[update.client_id] if name in spec}
    trained = {name: tensor.numel for name, tensor in spec.tensors.items() if tensor.trained and tensor.shared}
    return sum(numel for name, numel in trained.items() if name in came_up) / sum(trained.values())


def _simulated_seconds(replies: Sequence[Reply]) -> float | None:
    """The time of the client that the round waited for longest."""
    return max((each.simulated_seconds for each in replies if each.simulated_seconds is not None), default=None)
