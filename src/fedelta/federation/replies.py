"""Replies of a round: checked, decoded and added up in ascending client id.

Ascending client id makes the result independent of the order of arrival: a reply waits as bytes until it is its turn.
Where a client could send two replies, of which neither counts, all wait until all have come. One reply at a time is
decoded.
No value in a reply is trusted (form.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from fedelta.aggregation.base import Aggregation, Update
from fedelta.codecs.wire import Decoder
from fedelta.errors import PayloadError, RoundError, SpecError
from fedelta.federation.base import Federation, Runtime, Standing
from fedelta.federation.contract import check_mean, check_update
from fedelta.federation.form import LARGEST_FLOAT32, safe_repr, well_formed, whole_number
from fedelta.federation.records import Claim, Rejection, Reply, Transfer
from fedelta.params import Params, add, rough_norm, select
from fedelta.seeds import stream
from fedelta.strategies.base import CombinedUpdates, Form, RoundPlan, State

# Payloads beyond it wait in a file: a cohort of whole models may not fit into memory.
_WAITING_BYTES = 256 * 2**20


Complete = Callable[[Collection[int]], tuple[RoundPlan, Mapping[int, bytes]]]


class Accepted(NamedTuple):
    """What is kept of a reply whose update was added to the mean."""

    client_id: int
    num_examples: int
    train_loss: float | None
    delta_norm: float


class Intake:
    """Takes the replies of one round, and combines those that are accepted.

    Args:
        federation: what stays the same from round to round.
        plan: of the round.
        standing: before the round.

    Attributes:
        accepted: replies in the mean, ascending.
        rejections: replies that do not count.
        transfers: uploads that travelled, ascending by client.
        claims: numbers of examples that need a note.
        claimed: client id to the number of examples in its last accepted reply.
        unreached: clients to which no download travelled.
        simulated_seconds: the longest simulated time of a reply; None without any.
        next_norm: the clipping norm of the next round, once the replies are combined; None without client-level
            privacy.
        labels: of the noise of this round and earlier ones, once the replies are combined (`Released.labels`).
    """

    def __init__(self, federation: Federation, plan: RoundPlan, standing: Standing) -> None:
        self.accepted: list[Accepted] = []
        self.rejections: list[Rejection] = []
        self.transfers: list[Transfer] = []
        self.claims: list[Claim] = []
        self.claimed = dict(standing.claimed)
        self.unreached: set[int] = set()
        self.simulated_seconds: float | None = None
        self.next_norm: float | None = None
        self.labels: tuple[str, ...] = ()
        self._federation, self._plan = federation, plan
        self._cohort = plan.cohort  # ascending
        self._turn = 0  # place in it of the next client whose reply is added
        self._strays: list[str] = []  # values that cannot be assigned to a client, in words
        self._statistics = frozenset(federation.spec.statistics)
        central, before = federation.central, standing.privacy
        self._noising = (
            None if central is None else central.start(plan, federation.wire, before.clipping_norm, before.labels)
        )
        self._running = federation.aggregation.start(federation.wire)
        self._measured = federation.aggregation.of_statistics.start(federation.wire)
        self._anchors, self._joining = standing.params, None
        if federation.pairs is not None and (federation.pairs.method.joins or federation.pairs.ranks):
            self._anchors = federation.pairs.as_decoded(standing.params, federation.channel.down)
            self._joining = federation.pairs.joining(federation.aggregation, standing.params, self._anchors)
        self._carried: Params = {}  # new values of what is carried beside the pairs of LoRA
        self._num_senders: Counter[str] = Counter()  # tensor name to the number of accepted replies that hold it
        self._updates: list[Update] = []  # filled only if the strategy reads single updates
        self._decoders: dict[int | None, Decoder] = {}  # by the rank of clients

    @property
    def clipping_norm(self) -> float | None:
        """C of the round; None without client-level privacy."""
        return None if self._noising is None else self._noising.clipping_norm

    @property
    def averaged(self) -> frozenset[str]:
        """Names of the tensors that enough clients sent to average them; with client-level privacy, those due."""
        if self._noising is not None:
            return frozenset(self._noising.due)
        return frozenset(self._averageable(self._num_senders, self._federation.aggregation))

    def gather(self, runtime: Runtime, payloads: Mapping[int, bytes], complete: Complete | None = None) -> None:
        """Runs the clients and takes all their replies.

        Args:
            runtime: runs the clients.
            payloads: client id to its download.
            complete: gives the plan and the downloads for clients that have forgotten what they kept; they are asked
                once more. None: their replies are rejected.
        """
        with TemporaryFile() as file:
            waiting = _Waiting(file)
            self._run(runtime, self._plan, payloads, waiting)
            if complete is not None and (forgetful := waiting.without_memory()):
                waiting.discard(forgetful)
                self._run(runtime, *complete(forgetful), waiting)
            while self._turn < len(self._cohort):
                self._take(waiting)
        self.transfers.sort(key=lambda transfer: transfer.client_id)

    def combine(self, params: Params, state: State) -> tuple[Params, State]:
        """The new server params and strategy state.

        The strategy updates what is trained. Statistics, such as the mean and variance of a batch norm, are averaged
        instead: a server optimizer could make a variance negative.
        """
        federation, round = self._federation, self._plan.round
        combined = self._combined()
        result = federation.strategy.update(state, params, self._plan, combined, federation.spec)
        if federation.has_plugin:
            check_update(federation, (state, params), result, combined, round)
        params, state = result
        params = params | self._carried
        if not self._statistics:
            return params, state
        measured = self._measured.finish(stream(federation.seed, "statistics", round))
        names = self._averageable(measured, federation.aggregation.of_statistics)
        return add(params, select(measured, names)), state

    def _combined(self) -> CombinedUpdates:
        federation, round = self._federation, self._plan.round
        client_ids = tuple(reply.client_id for reply in self.accepted)
        if self._noising is not None:
            released = self._noising.finish()
            self.next_norm, self.labels = released.clipping_norm, released.labels
            return CombinedUpdates(released.mean, client_ids, noised=released.noised)
        mean = self._running.finish(stream(federation.seed, "aggregation", round))
        if federation.has_plugin:
            check_mean(federation, mean, self.averaged - self._statistics, round)
        mean = select(mean, self._averageable(mean, federation.aggregation))
        if self._joining is None:
            return CombinedUpdates(mean, client_ids, tuple(self._updates))
        joined, self._carried = self._joining.finish(federation.seed, round)
        return CombinedUpdates(mean | joined, client_ids, tuple(self._updates), center=mean)

    def _run(self, runtime: Runtime, plan: RoundPlan, payloads: Mapping[int, bytes], waiting: _Waiting) -> None:
        for reply in runtime.run(plan, payloads):
            self._receive(reply, waiting)
            del reply  # frees its payload, perhaps a whole model, while the next reply is computed

    def _receive(self, reply: object, waiting: _Waiting) -> None:
        """Puts a reply of a client of the cohort to `waiting`; notes everything else that a runtime gave."""
        if not isinstance(reply, Reply):
            self._strays.append(safe_repr(type(reply)))
            return
        if type(reply) is not Reply or not _is_as_usual(reply):
            client_id = whole_number(reply.client_id)
            if client_id is None or abs(client_id) >= 2**63:
                self._strays.append(f"a reply with the client id {safe_repr(reply.client_id)}")
                return
            reply = well_formed(reply, client_id, needs_loss=self._federation.privacy is None)
        if reply.simulated_seconds is not None:
            self.simulated_seconds = max(self.simulated_seconds or 0.0, reply.simulated_seconds)
        if reply.client_id not in self._plan.upload:
            self._reject(reply, "a reply from a client outside of the cohort")
            return
        if self._federation.replies_once:
            self._take_in_turn(reply, waiting)
        else:
            waiting.put(reply)

    def _take_in_turn(self, reply: Reply, waiting: _Waiting) -> None:
        """Takes what can be taken before other replies come."""
        client_id, cohort = reply.client_id, self._cohort
        if waiting.lengths(client_id) or (self._turn and client_id <= cohort[self._turn - 1]):
            raise RoundError(
                f"round {self._plan.round}: the runtime gave two replies of client {client_id}, expected one at most."
            )
        waiting.put(reply, in_memory=client_id == cohort[self._turn])
        while self._turn < len(cohort) and waiting.has_answer(cohort[self._turn]):
            self._take(waiting)

    def _take(self, waiting: _Waiting) -> None:
        """Adds or rejects the reply of the next client of the cohort."""
        client_id = self._cohort[self._turn]
        self._turn += 1
        lengths = waiting.lengths(client_id)
        if len(lengths) == 1:
            self._add(waiting.pop(client_id))
            return
        if not lengths:
            strays = f"; received instead: {'; '.join(self._strays[:3])}" if self._strays else ""
            self.rejections.append(Rejection(client_id, f"no reply{strays}", "no reply"))
            return
        reason = f"{len(lengths)} replies with this client id, expected 1; none of them is used"
        self.rejections.append(Rejection(client_id, reason))
        for num_bytes in lengths:
            self._count_upload(client_id, num_bytes, {})

    def _averageable(self, names: Iterable[str], aggregation: Aggregation) -> list[str]:
        """Those of `names` that at least as many clients sent as the aggregation needs."""
        return [name for name in names if self._num_senders[name] >= aggregation.min_values]

    def _add(self, reply: Reply) -> None:
        """Adds the update of `reply` to the mean, or rejects it."""
        if reply.fault is not None and not reply.fault.reached:
            self.unreached.add(reply.client_id)
        try:
            update, groups, size = self._opened(reply)
        except (PayloadError, SpecError) as error:
            self._reject(reply, error.message)
            return
        self._count_upload(reply.client_id, len(reply.payload), groups)
        self._note_claim(reply, update)
        self._num_senders.update(update.delta.keys())
        trained, spec = update, self._federation.spec
        if self._statistics:
            measured = {name: tensor for name, tensor in update.delta.items() if name in self._statistics}
            self._measured.add(replace(update, delta=measured))
            rest = {name: tensor for name, tensor in update.delta.items() if name not in self._statistics}
            trained = replace(update, delta=rest)
        if size is None or trained is not update or not update.delta.keys() <= spec.tensors.keys():
            size = rough_norm({name: tensor for name, tensor in trained.delta.items() if name in spec})
        loss = None if self._federation.privacy is not None else reply.metrics["train_loss"]
        self.accepted.append(Accepted(update.client_id, update.num_examples, loss, size))
        (self._noising or self._running).add(trained)
        if self._joining is not None:
            self._joining.add(trained)
        if self._federation.strategy.reads == "each" and self._noising is None:
            self._updates.append(trained)

    def _opened(self, reply: Reply) -> tuple[Update, Mapping[str, int], float | None]:
        """The decoded reply, the bytes of its tensors by group, and the norm of all of them if it is known.

        Raises:
            PayloadError: the reply has a fault, or its payload cannot be decoded.
            SpecError: its tensors are not those of the plan.
        """
        if reply.fault is not None:
            raise PayloadError(reply.fault.reason)
        federation, asked = self._federation, self._plan.upload[reply.client_id]
        rank = federation.rank_of(reply.client_id)
        form = Form() if rank is None else Form(rank)
        spec = federation.forms.spec_of(form)
        if rank not in self._decoders:
            self._decoders[rank] = Decoder(spec, federation.channel.up)
        delta, flat, groups = self._decoders[rank].decode(reply.payload)
        size = None if flat is None else rough_norm({"flat": flat})
        # The decoder gives the shapes of the specification, and a norm is finite only if all numbers are.
        if size is None or not math.isfinite(size) or tuple(delta) != asked:
            spec.check(delta, asked)
        if rank is not None and federation.pairs is not None:
            delta = federation.pairs.padded(delta, self._anchors)
        num_examples = min(reply.num_examples, federation.strategy.max_examples)
        steps = federation.effective_steps(num_examples)
        return Update(reply.client_id, num_examples, delta, steps), groups, size

    def _note_claim(self, reply: Reply, update: Update) -> None:
        """Notes a number of examples that differs from the client's last one or from the weight that it gets."""
        previous = self.claimed.get(reply.client_id)
        if previous not in (None, reply.num_examples) or update.num_examples != reply.num_examples:
            self.claims.append(Claim(reply.client_id, reply.num_examples, previous, update.num_examples))
        self.claimed[reply.client_id] = reply.num_examples

    def _reject(self, reply: Reply, reason: str) -> None:
        """Notes a reply that cannot be used; its bytes have travelled and count."""
        cause = "refused" if reply.fault is None else reply.fault.cause
        self.rejections.append(Rejection(reply.client_id, reason, cause))
        self._count_upload(reply.client_id, len(reply.payload), {})

    def _count_upload(self, client_id: int, num_bytes: int, groups: Mapping[str, int]) -> None:
        if num_bytes:
            self.transfers.append(Transfer(self._plan.round, client_id, "up", num_bytes, groups))


class _Waiting:
    """Replies by client, each with the length of its payload and its place in `file`; None: in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._num_in_memory = 0  # bytes
        self._replies: dict[int, list[tuple[Reply, int, int | None]]] = {}

    def put(self, reply: Reply, *, in_memory: bool = False) -> None:
        of_client, num_bytes = self._replies.setdefault(reply.client_id, []), len(reply.payload)
        if not of_client and (in_memory or self._num_in_memory + num_bytes <= _WAITING_BYTES):
            self._num_in_memory += num_bytes
            of_client.append((reply, num_bytes, None))
            return
        start = self._file.seek(0, 2)
        if not of_client:  # a second reply is never read; only its length is counted
            self._file.write(reply.payload)
        of_client.append((replace(reply, payload=b""), num_bytes, start))

    def without_memory(self) -> list[int]:
        """The clients whose only reply says that they have forgotten what they kept, ascending."""
        return sorted(client_id for client_id in self._replies if self._forgot(client_id))

    def has_answer(self, client_id: int) -> bool:
        """Whether a client has replied, and not that it has forgotten what it kept."""
        return client_id in self._replies and not self._forgot(client_id)

    def discard(self, client_ids: Iterable[int]) -> None:
        """Drops the replies of these clients, which have no payload."""
        for client_id in client_ids:
            del self._replies[client_id]

    def lengths(self, client_id: int) -> list[int]:
        """The payload bytes of each reply of a client."""
        return [num_bytes for _, num_bytes, _ in self._replies.get(client_id, ())]

    def pop(self, client_id: int) -> Reply:
        """The reply of a client that has sent one; it waits no longer."""
        [(reply, num_bytes, start)] = self._replies.pop(client_id)
        if start is None:
            self._num_in_memory -= num_bytes
            return reply
        self._file.seek(start)
        return replace(reply, payload=self._file.read(num_bytes))

    def _forgot(self, client_id: int) -> bool:
        (reply, _, _), *others = self._replies[client_id]
        return not others and reply.fault is not None and reply.fault.cause == "forgot"


def _is_as_usual(reply: Reply) -> bool:
    """Whether all values have the types and ranges of almost every reply; form.py looks at all others."""
    metrics = reply.metrics
    return (
        type(metrics) is dict
        and len(metrics) == 1
        and type(loss := metrics.get("train_loss")) is float
        and abs(loss) <= LARGEST_FLOAT32
        and type(reply.client_id) is type(reply.num_examples) is int
        and abs(reply.client_id) < 2**63
        and 1 <= reply.num_examples < 2**63
        and type(reply.payload) is bytes
        and reply.fault is None
        and reply.simulated_seconds is None
    )
