"""The client's part of a round: open the download, train, encode the delta, keep what does not travel.

A tensor that the plan does not send down is the one that the client kept. One that the plan does not ask for stays with
it, trained, beside its anchor, which is the value that was last downloaded; when it is asked for later, its delta tells
all that happened since. A client that leaves the cohort drops such tensors.

In simulation one call serves a whole cohort through the lane engine; on a site the cohort is that site alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, repeat
from pathlib import Path

from torch import Generator, Tensor

from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.work import Job, Trained
from fedelta.errors import PayloadError
from fedelta.federation.memory import Drift, Memories, Memory
from fedelta.federation.records import Fault, Reply
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec, is_finite, select
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, Steering


@dataclass(frozen=True)
class Site:
    """Some clients in this process: a `Runtime` with everything that stays with them.

    Downloads and replies are the bytes that would travel, so that sizes and rounding are those of a deployment.

    Args:
        engine: holds the model and the training data.
        partition: client id to rows.
        channel: how tensors become bytes.
        seed: of the run; batch orders are streams of it.
        num_rounds: length of the run, for the learning-rate schedule.
        start: the tensors that never travel, as a client has them before its first round.
        steering: the clients' side of the strategy; None: nothing.
        tiers: how deep each client runs; None: all of them through the whole model.
        memories: what clients keep between rounds.
    """

    engine: LaneEngine
    partition: Mapping[int, Tensor]
    channel: Channel
    seed: int
    num_rounds: int
    start: Params = field(default_factory=dict)
    steering: Steering | None = None
    tiers: Tiers | None = None
    memories: Memories = field(default_factory=Memories)

    @cached_property
    def wire(self) -> ParamSpec:
        """Everything that can travel."""
        return self.engine.spec if self.steering is None else self.steering.extend(self.engine.spec)

    @cached_property
    def blank(self) -> Memory:
        """What a client has before its first round."""
        return Memory(self.start, {} if self.steering is None else self.steering.start(self.engine.spec))

    def memory_of(self, client_id: int) -> Memory:
        """What the client has."""
        return self.memories.of(client_id) or self.blank

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        """See `Runtime.run`; yields replies in the order in which clients finish."""
        lr = self.engine.client.lr_in(plan.round, self.num_rounds)
        self.memories.begin(plan.cohort)
        opened: dict[bytes, Params] = {}  # most strategies send all clients the same bytes
        under_way: dict[int, _Work] = {}
        for client_id in sorted(payloads):
            payload = payloads[client_id]
            try:
                if payload not in opened:
                    opened[payload], _ = decode(payload, self.wire, self.channel.down)
                under_way[client_id] = _work(self, plan, client_id, opened[payload])
            except PayloadError as error:
                yield Reply(client_id, 0, b"", fault=Fault(f"download refused: {error.message}"))
        for trained in self.engine.train([work.job for work in under_way.values()], lr, plan.round):
            yield _reply(self, plan, under_way.pop(trained.client_id), trained, lr)

    def accept(self, client_ids: Iterable[int]) -> None:
        """See `Runtime.accept`."""
        self.memories.commit(client_ids)

    def snapshot(self, folder: Path, round: int) -> str:
        """See `Runtime.snapshot`."""
        return self.memories.snapshot(folder, round)

    def restore(self, folder: Path, mark: str) -> None:
        """See `Runtime.restore`."""
        self.memories.restore(folder, mark)

    def held(self, client_id: int) -> tuple[str, ...]:
        """Names of the tensors that the client has: all, or those of the blocks that it runs."""
        names = self.engine.spec.names
        return names if self.tiers is None else tuple(name for name in names if self.tiers.owns(client_id, name))


@dataclass(frozen=True)
class _Work:
    """A job, and what is needed again when it is done.

    Args:
        job: for the engine.
        received: the decoded download.
        memory: what the client kept before the round.
    """

    job: Job
    received: Params
    memory: Memory


def _work(site: Site, plan: RoundPlan, client_id: int, received: Params) -> _Work:
    memory, held = site.memory_of(client_id), site.held(client_id)
    at_hand = {name: drift.anchor for name, drift in memory.adrift.items()} | received | memory.local_only
    if lacking := [name for name in held if name not in at_hand]:
        missing = f"{len(lacking)} of {len(held)} tensors"
        raise PayloadError(f"{missing} are missing that the client has not kept, first `{lacking[0]}`")
    rows, client = site.partition[client_id], site.engine.client
    steps_before = (plan.round - 1) * (client.local_steps or 0)
    epoch, skip = divmod(steps_before, client.epoch_steps(len(rows)))

    def epochs(purpose: str) -> Iterator[Generator]:
        if client.local_steps is None:
            return repeat(stream(site.seed, purpose, plan.round, client_id))
        return (stream(site.seed, purpose, "epoch", number, client_id) for number in count(epoch + 1))

    job = Job(
        client_id,
        rows,
        anchor=select(at_hand, held),
        order=epochs("batches"),
        noise=stream(site.seed, "dropout", plan.round, client_id),
        augmentation=epochs("augmentation"),
        skip=skip,
        local={name: memory.adrift[name].value for name in held if name in memory.adrift and name not in received},
        kept=tuple(name for name in held if name not in plan.upload[client_id]),
        offset={} if site.steering is None else site.steering.offset(received, memory.remembered),
        depth=None if site.tiers is None else site.tiers.depths[client_id],
        exits=stream(site.seed, "exits", plan.round, client_id),
    )
    return _Work(job, received, memory)


def _reply(site: Site, plan: RoundPlan, work: _Work, trained: Trained, lr: float) -> Reply:
    """The reply; what the client will keep if it is accepted is staged, unless it has diverged."""
    client_id, num_examples = trained.client_id, len(site.partition[trained.client_id])
    metrics = {"train_loss": trained.train_loss}
    delta = {name: tensor.cpu() for name, tensor in trained.delta.items()}
    if site.steering is not None:
        step_length = lr * site.engine.client.effective_steps(num_examples)
        delta |= site.steering.beside(work.received, delta, step_length)
    sent = select(delta, plan.upload[client_id])
    if site.channel.up.feeds_back:
        sent = _made_good(sent, work.memory.residual)
    try:
        payload, _ = encode(sent, site.wire, site.channel.up)
    except PayloadError as error:
        return Reply(client_id, num_examples, b"", metrics, fault=Fault(str(error)))
    unsent = {name: tensor.cpu() for name, tensor in trained.kept.items() if site.engine.spec.tensors[name].shared}
    if not all(map(is_finite, unsent.values())):
        fault = Fault("tensors that are sent later are NaN or infinite")
        return Reply(client_id, num_examples, b"", metrics, fault)
    site.memories.stage(client_id, _memory_after(site, work, trained, sent=sent, payload=payload, unsent=unsent))
    return Reply(client_id, num_examples, payload, metrics)


def _memory_after(site: Site, work: _Work, trained: Trained, *, sent: Params, payload: bytes, unsent: Params) -> Memory:
    """What the client keeps once `payload`, which holds `sent`, was accepted, and `unsent` is not sent yet."""
    before, steering, feeds_back = work.memory, site.steering, site.channel.up.feeds_back
    local_only = {name: tensor.cpu() for name, tensor in trained.kept.items() if name not in unsent}
    # As the server decodes it: otherwise both would drift apart by what the codec rounds off.
    decoded = decode(payload, site.wire, site.channel.up)[0] if steering is not None or feeds_back else {}
    return Memory(
        local_only=local_only if all(map(is_finite, local_only.values())) else before.local_only,
        remembered={} if steering is None else steering.remember(before.remembered, decoded),
        # Cloned: the anchor may be a view of the whole download.
        adrift={name: Drift(tensor, work.job.anchor[name].clone()) for name, tensor in unsent.items()},
        residual=before.residual | {name: sent[name] - decoded[name] for name in sent} if feeds_back else {},
    )


def _made_good(delta: Params, residual: Params) -> Params:
    """`delta`, with what earlier uploads left out of the same tensors."""
    return {name: tensor + residual[name] if name in residual else tensor for name, tensor in delta.items()}
