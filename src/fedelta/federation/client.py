"""The client's part of a round: open the download, train, encode the delta, keep what does not travel.

In simulation one call serves a whole cohort through the lane engine; on a site the cohort is that site alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

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
        remembered: client id to what it remembers; changed by `accept`, saved in checkpoints.
        pending: client id to what it will remember if its reply is accepted; changed by `serve`.
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
    pending: dict[int, Params] = field(default_factory=dict)

    @cached_property
    def wire(self) -> ParamSpec:
        """Everything that can travel."""
        return self.engine.spec if self.memory is None else self.memory.extend(self.engine.spec)

    @cached_property
    def blank(self) -> Params:
        """What a client remembers before its first round."""
        return {} if self.memory is None else self.memory.start(self.engine.spec)

    def restore(self, kept: Mapping[int, Params], remembered: Mapping[int, Params]) -> None:
        """Puts back what a checkpoint held of the clients."""
        self.kept.clear()
        self.kept.update(kept)
        self.remembered.clear()
        self.remembered.update(remembered)

    def accept(self, client_ids: Iterable[int]) -> None:
        """The replies of these clients were accepted: what they were about to remember, they remember."""
        self.remembered.update({client_id: self.pending[client_id] for client_id in client_ids if self.pending})
        self.pending.clear()

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
    lr = site.engine.client.lr_in(plan.round, site.num_rounds)
    site.pending.clear()
    opened: dict[bytes, Params] = {}  # most strategies send all clients the same bytes
    jobs, received = [], {}
    for client_id in sorted(payloads):
        payload = payloads[client_id]
        try:
            if payload not in opened:
                opened[payload], _ = decode(payload, site.wire, site.codec)
        except PayloadError as error:
            yield Reply(client_id, 0, b"", fault=f"download refused: {error.message}")
            continue
        received[client_id] = opened[payload]
        jobs.append(_job(site, plan.round, client_id, opened[payload]))
    for trained in site.engine.train(jobs, lr):
        yield _reply(site, plan, trained, received[trained.client_id], lr)


def _job(site: Site, round: int, client_id: int, received: Params) -> Job:
    anchor = select(received, (name for name in site.engine.spec if name in received)) | site.own(client_id)
    order, noise, augmentation = (
        stream(site.seed, purpose, round, client_id) for purpose in ("batches", "dropout", "augmentation")
    )
    remembered = site.remembered.get(client_id, site.blank)
    offset = {} if site.memory is None else site.memory.offset(received, remembered)
    return Job(client_id, site.partition[client_id], anchor, order, noise, augmentation, offset)


def _reply(site: Site, plan: RoundPlan, trained: Trained, received: Params, lr: float) -> Reply:
    """The reply; what the client keeps is stored, and what it may remember made ready, unless it has diverged."""
    client_id, num_examples = trained.client_id, len(site.partition[trained.client_id])
    metrics = {"train_loss": trained.train_loss}
    sent = {name: tensor.cpu() for name, tensor in trained.delta.items()}
    if site.memory is not None:
        sent |= site.memory.beside(received, sent, lr * site.engine.client.effective_steps(num_examples))
    try:
        payload, _ = encode(select(sent, plan.upload[client_id]), site.wire, site.codec)
    except PayloadError as error:
        return Reply(client_id, num_examples, b"", metrics, fault=str(error))
    if site.memory is not None:
        # As the server decodes it: otherwise both would drift apart by what the codec rounds off.
        decoded, _ = decode(payload, site.wire, site.codec)
        site.pending[client_id] = site.memory.remember(site.remembered.get(client_id, site.blank), decoded)
    if trained.kept and all(map(is_finite, trained.kept.values())):
        site.kept[client_id] = {name: tensor.cpu() for name, tensor in trained.kept.items()}
    return Reply(client_id, num_examples, payload, metrics)
