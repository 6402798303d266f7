"""The client's part of a round: open the download, train, encode the delta, keep what does not travel.

In simulation one call serves a whole cohort through the lane engine; on a site the cohort is that site alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedelta.codecs.base import Codec
from fedelta.codecs.wire import decode, encode
from fedelta.errors import PayloadError
from fedelta.federation.records import Reply
from fedelta.federation.training import Job, LaneEngine, Trained
from fedelta.params import Params, ParamSpec, is_finite, select
from fedelta.seeds import stream
from fedelta.strategies.base import Memory, RoundPlan


@dataclass(frozen=True)
class Site:
    """What stays with the clients: the engine with the data, and who owns which rows.

    Args:
        engine: holds the model and the training data.
        partition: client id to rows.
        codec: of both directions.
        seed: of the run; batch orders are streams of it.
        num_rounds: length of the run, for the learning-rate schedule.
        start: the tensors that never travel, as a client has them before its first round.
        kept: client id to these tensors after its last round; changed by `serve`, saved in checkpoints.
        memory: what the strategy lets clients remember; None: nothing.
        remembered: client id to what it remembers; changed by `serve`, saved in checkpoints.
    """

    engine: LaneEngine
    partition: Mapping[int, Tensor]
    codec: Codec
    seed: int
    num_rounds: int
    start: Params = field(default_factory=dict)
    kept: dict[int, Params] = field(default_factory=dict)
    memory: Memory | None = None
    remembered: dict[int, Params] = field(default_factory=dict)

    @property
    def wire(self) -> ParamSpec:
        """Everything that can travel."""
        return self.engine.spec if self.memory is None else self.memory.extend(self.engine.spec)

    def restore(self, kept: Mapping[int, Params], remembered: Mapping[int, Params]) -> None:
        """Puts back what a checkpoint held of the clients."""
        for own, saved in ((self.kept, kept), (self.remembered, remembered)):
            own.clear()
            own.update(saved)

    def own(self, client_id: int) -> Params:
        """The tensors of a client that never travel."""
        return self.kept.get(client_id, self.start)


def serve(site: Site, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
    """Yields the reply of every client of `payloads`, in the order in which they finish.

    Args:
        site: model and data.
        plan: of the round; says what each client sends.
        payloads: client id to its download.
    """
    spec, wire = site.engine.spec, site.wire
    lr = site.engine.client.lr_in(plan.round, site.num_rounds)
    opened: dict[bytes, Params] = {}  # most strategies send all clients the same bytes
    jobs, received = [], {}
    for client_id in sorted(payloads):
        payload = payloads[client_id]
        try:
            if payload not in opened:
                opened[payload], _ = decode(payload, wire, site.codec)
        except PayloadError as error:
            yield Reply(client_id, 0, b"", fault=f"download refused: {error.message}")
            continue
        received[client_id] = opened[payload]
        anchor = select(opened[payload], (name for name in spec if name in opened[payload])) | site.own(client_id)
        order, noise, augmentation = (
            stream(site.seed, purpose, plan.round, client_id) for purpose in ("batches", "dropout", "augmentation")
        )
        offset = _offset(site, client_id, opened[payload])
        jobs.append(Job(client_id, site.partition[client_id], anchor, order, noise, augmentation, offset))
    for trained in site.engine.train(jobs, lr):
        yield _conclude(site, plan, trained, received[trained.client_id], lr)


def _offset(site: Site, client_id: int, received: Params) -> Params:
    if site.memory is None:
        return {}
    return site.memory.offset(received, _remembered(site, client_id))


def _remembered(site: Site, client_id: int) -> Params:
    if site.memory is None:
        return {}
    return site.remembered.get(client_id) or site.memory.start(site.engine.spec)


def _conclude(site: Site, plan: RoundPlan, trained: Trained, received: Params, lr: float) -> Reply:
    """The reply; what the client keeps and remembers is stored, unless it has diverged: then all stays as it was."""
    client_id, num_examples = trained.client_id, len(site.partition[trained.client_id])
    effective_steps = site.engine.client.effective_steps(num_examples)
    metrics = {"train_loss": trained.train_loss, "effective_steps": effective_steps}
    sent: Params = trained.delta
    remembered: Params = {}
    if site.memory is not None:
        before = _remembered(site, client_id)
        beside, remembered = site.memory.conclude(received, before, trained.delta, lr * effective_steps)
        sent = trained.delta | beside
    try:
        payload, _ = encode(select(sent, plan.upload[client_id]), site.wire, site.codec)
    except PayloadError as error:
        return Reply(client_id, num_examples, b"", metrics, fault=str(error))
    if all(map(is_finite, (*trained.kept.values(), *remembered.values()))):
        if trained.kept:
            site.kept[client_id] = trained.kept
        if remembered:
            site.remembered[client_id] = remembered
    return Reply(client_id, num_examples, payload, metrics)
