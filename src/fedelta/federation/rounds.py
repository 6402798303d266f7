"""The one loop: plan, send, train, check, combine, evaluate.

Whatever differs between algorithms, byte formats and places where clients run is behind the protocols that a
`Federation` holds. Replies wait as bytes until all have come, so that of two of one client neither counts, and are then
taken in ascending client id, so that no result depends on their order of arrival; a single one is decoded at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple

from fedelta.aggregation.base import Aggregation, Update
from fedelta.codecs.wire import decode, encode
from fedelta.errors import PayloadError, RoundError, SpecError
from fedelta.federation.base import Federation, Runtime, Standing, too_few
from fedelta.federation.records import LOST, Claim, Rejection, Reply, RoundOutcome, Transfer
from fedelta.federation.replies import shown, well_formed, whole
from fedelta.params import Params, ParamSpec, add, is_finite, norm, select
from fedelta.seeds import stream
from fedelta.strategies.base import Combined, RoundPlan, State
from fedelta.tasks.base import Evaluation

# Payloads beyond this wait in a file: a cohort of whole models need not fit into memory.
_WAITING_BYTES = 256 * 2**20
_CALM_DOWN = "lower `client.lr` or `strategy.server_lr`."


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
    _gather(federation.runtime, plan, payloads, intake)
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
        synced_fraction=_synced_fraction(federation.spec, intake.used if counts else frozenset()),
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


def _gather(runtime: Runtime, plan: RoundPlan, payloads: Mapping[int, bytes], intake: _Intake) -> None:
    with SpooledTemporaryFile(max_size=_WAITING_BYTES) as file:
        waiting = _Waiting(file)
        for reply in runtime.run(plan, payloads):
            intake.take(reply, waiting)
            del reply  # its payload may be as large as the model, and the next one is being made
        intake.close(waiting)


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


class _Waiting:
    """Replies of a round; their payloads are in `file`, one behind the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._replies: dict[int, list[tuple[Reply, int, int]]] = {}

    def keep(self, reply: Reply) -> None:
        start = self._file.seek(0, 2)
        of_client = self._replies.setdefault(reply.client_id, [])
        if not of_client:  # of a second one only the length is of interest
            self._file.write(reply.payload)
        of_client.append((replace(reply, payload=b""), start, len(reply.payload)))

    def lengths(self, client_id: int) -> list[int]:
        """Of the payloads of a client's replies."""
        return [length for _, _, length in self._replies.get(client_id, ())]

    def first(self, client_id: int) -> Reply:
        """The first reply of a client that has one."""
        reply, start, length = self._replies[client_id][0]
        self._file.seek(start)
        return replace(reply, payload=self._file.read(length))


class _Intake:
    """The replies of a round: each is decoded, checked and added, in ascending client id, when all have come.

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
        self._strange: list[str] = []
        self._statistics = frozenset(federation.spec.statistics)
        self._trained = federation.aggregation.start(federation.wire)
        self._measured = federation.aggregation.of_statistics.start(federation.wire)
        self._num_sent: Counter[str] = Counter()
        self._updates: list[Update] = []  # only for a strategy that looks at each

    @property
    def used(self) -> frozenset[str]:
        """Names of the tensors that enough clients sent."""
        return frozenset(self._enough(self._num_sent, self._federation.aggregation))

    def take(self, reply: object, waiting: _Waiting) -> None:
        """A reply has come, or what a runtime takes for one."""
        if not isinstance(reply, Reply):
            self._strange.append(shown(type(reply)))
            return
        client_id = whole(reply.client_id)
        if client_id is None or abs(client_id) >= 2**63:
            self._strange.append(f"a reply under the client id {shown(reply.client_id)}")
            return
        reply = well_formed(reply, client_id)
        if reply.simulated_seconds is not None:
            self.simulated_seconds = max(self.simulated_seconds or 0.0, reply.simulated_seconds)
        if client_id in self._plan.upload:
            waiting.keep(reply)
        else:
            self._reject(reply, "a reply that nobody asked for")

    def close(self, waiting: _Waiting) -> None:
        """No more replies come than those that are `waiting`."""
        strange = f"; what came instead of replies: {'; '.join(self._strange[:3])}" if self._strange else ""
        for client_id in self._plan.cohort:
            lengths = waiting.lengths(client_id)
            if not lengths:
                self.rejections.append(Rejection(client_id, f"no reply{strange}", "no reply"))
            elif len(lengths) == 1:
                self._add(waiting.first(client_id))
            else:
                reason = f"{len(lengths)} replies came under this client id, of which none can be trusted"
                self.rejections.append(Rejection(client_id, reason))
                for length in lengths:
                    self._transferred(client_id, length, {})
        self.transfers.sort(key=lambda transfer: transfer.client_id)

    def combine(self, params: Params, state: State) -> tuple[Params, State]:
        """The strategy's update of what is trained, and the mean of statistics.

        A server's step that goes beyond the mean, or that an optimizer scales, has no meaning for a mean and a
        variance: a variance would even leave the positive numbers.
        """
        federation, round = self._federation, self._plan.round
        mean = self._trained.finish(stream(federation.seed, "aggregation", round))
        mean = select(mean, self._enough(mean, federation.aggregation))
        combined = Combined(mean, tuple(each.client_id for each in self.accepted), tuple(self._updates))
        params, state = federation.strategy.update(state, params, self._plan, combined, federation.spec)
        if not self._statistics:
            return params, state
        measured = self._measured.finish(stream(federation.seed, "statistics", round))
        return add(params, select(measured, self._enough(measured, federation.aggregation.of_statistics))), state

    def _enough(self, names: Iterable[str], aggregation: Aggregation) -> list[str]:
        """Those of `names` that as many clients sent as the aggregation needs."""
        return [name for name in names if self._num_sent[name] >= aggregation.min_values]

    def _add(self, reply: Reply) -> None:
        if reply.fault is not None and not reply.fault.reached:
            self.unreached.add(reply.client_id)
        try:
            update, groups = _open(self._federation, self._plan, reply)
        except (PayloadError, SpecError) as error:
            self._reject(reply, error.message)
            return
        self._transferred(reply.client_id, len(reply.payload), groups)
        self._note_claim(reply, update)
        self._num_sent.update(list(update.delta))
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
        self._transferred(reply.client_id, len(reply.payload), {})

    def _transferred(self, client_id: int, num_bytes: int, groups: Mapping[str, int]) -> None:
        if num_bytes:
            self.transfers.append(Transfer(self._plan.round, client_id, "up", num_bytes, groups))


def _open(federation: Federation, plan: RoundPlan, reply: Reply) -> tuple[Update, dict[str, int]]:
    """The decoded reply, and the bytes of its tensors by group."""
    if reply.fault is not None:
        raise PayloadError(reply.fault.reason)
    delta, groups = decode(reply.payload, federation.wire, federation.channel.up)
    federation.wire.check(delta, plan.upload[reply.client_id])
    num_examples = min(reply.num_examples, federation.strategy.max_examples)
    return Update(reply.client_id, num_examples, delta, federation.effective_steps(num_examples)), groups


def _spent(federation: Federation, bytes_sent: int) -> bool:
    return federation.byte_budget is not None and bytes_sent >= federation.byte_budget


def _enough(federation: Federation, plan: RoundPlan, intake: _Intake) -> bool:
    """Whether the round counts. It does not where clients were lost; where they were wrong instead, the run ends."""
    accepted, rejections = intake.accepted, intake.rejections
    min_replies = federation.min_replies
    if len(accepted) >= min_replies:
        return True
    lost = {rejection.client_id for rejection in rejections if rejection.cause in LOST}
    lost = lost.intersection(plan.cohort).difference(each.client_id for each in accepted)
    if len(accepted) + len(lost) >= min_replies:
        return False
    raise too_few(federation, plan, len(accepted), rejections)


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


def _synced_fraction(spec: ParamSpec, used: frozenset[str]) -> float:
    """The share of what is tuned and travels that was averaged: sum_l dim_l over the groups of this round, over all."""
    trained = {name: tensor.numel for name, tensor in spec.tensors.items() if tensor.trained and tensor.shared}
    return sum(numel for name, numel in trained.items() if name in used) / sum(trained.values())
