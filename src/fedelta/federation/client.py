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

from torch import Generator, Tensor

from fedelta.codecs.base import Codec
from fedelta.codecs.wire import decode, encode
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.work import Job, Trained
from fedelta.errors import PayloadError
from fedelta.federation.records import Reply
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec, is_finite, select
from fedelta.seeds import stream
from fedelta.strategies.base import Memory, RoundPlan

_LOCAL, _ANCHOR = "local/", "anchor/"


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
        adrift: client id to the tensors that it has trained and not sent yet, `local/NAME` as they are and
            `anchor/NAME` as they were downloaded; changed by `accept`, saved in checkpoints.
        pending: client id to what it will remember and keep adrift if its reply is accepted; changed by `serve`.
        tiers: how deep each client runs; None: all of them through the whole model.
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
    adrift: dict[int, Params] = field(default_factory=dict)
    pending: dict[int, tuple[Params, Params]] = field(default_factory=dict)
    tiers: Tiers | None = None

    @cached_property
    def wire(self) -> ParamSpec:
        """Everything that can travel."""
        return self.engine.spec if self.memory is None else self.memory.extend(self.engine.spec)

    @cached_property
    def blank(self) -> Params:
        """What a client remembers before its first round."""
        return {} if self.memory is None else self.memory.start(self.engine.spec)

    def restore(
        self, kept: Mapping[int, Params], remembered: Mapping[int, Params], adrift: Mapping[int, Params]
    ) -> None:
        """Puts back what a checkpoint held of the clients."""
        for own, restored in ((self.kept, kept), (self.remembered, remembered), (self.adrift, adrift)):
            own.clear()
            own.update(restored)

    def accept(self, client_ids: Iterable[int]) -> None:
        """The replies of these clients were accepted: what they were about to remember and keep, they do."""
        for client_id in client_ids:
            for own, tensors in zip((self.remembered, self.adrift), self.pending.get(client_id, ()), strict=False):
                if tensors:
                    own[client_id] = tensors
                else:
                    own.pop(client_id, None)
        self.pending.clear()

    def held(self, client_id: int) -> tuple[str, ...]:
        """Names of the tensors that the client has: all, or those of the blocks that it runs."""
        names = self.engine.spec.names
        return names if self.tiers is None else tuple(name for name in names if self.tiers.owns(client_id, name))

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
    for client_id in site.adrift.keys() - plan.upload.keys():
        del site.adrift[client_id]
    opened: dict[bytes, Params] = {}  # most strategies send all clients the same bytes
    jobs, received = {}, {}
    for client_id in sorted(payloads):
        payload = payloads[client_id]
        try:
            if payload not in opened:
                opened[payload], _ = decode(payload, site.wire, site.codec)
            jobs[client_id] = _job(site, plan, client_id, opened[payload])
        except PayloadError as error:
            yield Reply(client_id, 0, b"", fault=f"download refused: {error.message}")
            continue
        received[client_id] = opened[payload]
    for trained in site.engine.train(list(jobs.values()), lr, plan.round):
        yield _reply(site, plan, jobs[trained.client_id], trained, received=received[trained.client_id], lr=lr)


def _job(site: Site, plan: RoundPlan, client_id: int, received: Params) -> Job:
    own, held = site.adrift.get(client_id, {}), site.held(client_id)
    at_hand = {name.removeprefix(_ANCHOR): tensor for name, tensor in own.items() if name.startswith(_ANCHOR)}
    at_hand |= received | site.own(client_id)
    if lacking := [name for name in held if name not in at_hand]:
        missing = f"{len(lacking)} of {len(held)} tensors"
        raise PayloadError(f"{missing} are missing that the client has not kept, first `{lacking[0]}`")
    remembered = site.remembered.get(client_id, site.blank)
    rows, client = site.partition[client_id], site.engine.client
    steps_before = (plan.round - 1) * (client.local_steps or 0)
    epoch, skip = divmod(steps_before, client.epoch_steps(len(rows)))

    def epochs(purpose: str) -> Iterator[Generator]:
        if client.local_steps is None:
            return repeat(stream(site.seed, purpose, plan.round, client_id))
        return (stream(site.seed, purpose, "epoch", number, client_id) for number in count(epoch + 1))

    return Job(
        client_id,
        rows,
        anchor=select(at_hand, held),
        order=epochs("batches"),
        noise=stream(site.seed, "dropout", plan.round, client_id),
        augmentation=epochs("augmentation"),
        skip=skip,
        local={name: own[f"{_LOCAL}{name}"] for name in held if name not in received and f"{_LOCAL}{name}" in own},
        kept=tuple(name for name in held if name not in plan.upload[client_id]),
        offset={} if site.memory is None else site.memory.offset(received, remembered),
        depth=None if site.tiers is None else site.tiers.depths[client_id],
        exits=stream(site.seed, "exits", plan.round, client_id),
    )


def _reply(site: Site, plan: RoundPlan, job: Job, trained: Trained, *, received: Params, lr: float) -> Reply:
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
    own, unsent = _divide(site.engine.spec, trained.kept)
    if not all(map(is_finite, unsent.values())):
        return Reply(client_id, num_examples, b"", metrics, fault="tensors that are sent later are NaN or infinite")
    if own and all(map(is_finite, own.values())):
        site.kept[client_id] = own
    adrift = {f"{_LOCAL}{name}": tensor for name, tensor in unsent.items()}
    adrift |= {f"{_ANCHOR}{name}": job.anchor[name] for name in unsent}
    remembered: Params = {}
    if site.memory is not None:
        # As the server decodes it: otherwise both would drift apart by what the codec rounds off.
        decoded, _ = decode(payload, site.wire, site.codec)
        remembered = site.memory.remember(site.remembered.get(client_id, site.blank), decoded)
    site.pending[client_id] = (remembered, adrift)
    return Reply(client_id, num_examples, payload, metrics)


def _divide(spec: ParamSpec, kept: Params) -> tuple[Params, Params]:
    """What never travels, and what is sent in a later round; on the CPU."""
    own: Params = {}
    unsent: Params = {}
    for name, tensor in kept.items():
        (unsent if spec.tensors[name].shared else own)[name] = tensor.cpu()
    return own, unsent
