"""The client's part of a round: decode the download, train, encode the delta, keep what does not travel.

If the plan sends a tensor down, the client trains from the download, otherwise from the value that it kept. If the plan
does not ask for a tensor, the client keeps the trained value and its anchor, which is the value of the last download; a
later upload of the tensor then holds its change over all rounds since. A client that leaves the cohort drops these
values.

A cohort is trained pack by pack (engine/packs.py). `Site.train` needs nothing but a `Pack`, so that packs may also be
trained in other processes; what their clients keep stays here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, repeat
from pathlib import Path

import torch
from torch import Generator, Tensor

from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.data.batches import Examples
from fedelta.engine.filling import Chunk, chunks_of, fill
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.packs import packs_of
from fedelta.engine.threads import arithmetic_threads, computed_with
from fedelta.engine.work import Job, Trained
from fedelta.errors import PayloadError
from fedelta.federation.forms import Forms
from fedelta.federation.memory import Drift, Memories, Memory
from fedelta.federation.packs import Answer, Pack
from fedelta.federation.pairs import Pairs
from fedelta.federation.records import Fault, Reply
from fedelta.federation.tiers import Tiers
from fedelta.modalities.dialogues import StoredDialogues
from fedelta.params import Params, ParamSpec, is_finite, select
from fedelta.privacy.local import SitePrivacy
from fedelta.seeds import derive, stream
from fedelta.strategies.base import Form, RoundPlan, Steering, Whole


@dataclass(frozen=True)
class Site:
    """A `Runtime` that runs its clients in this process, with their data and their memories.

    Downloads and replies are the bytes of a deployment, so a simulation has the same sizes and rounding errors.

    Args:
        engine: holds the model and the training data.
        partition: client id to rows.
        channel: the codecs of both directions.
        seed: of the run; batch orders are streams of it.
        num_rounds: length of the run, for the learning-rate schedule.
        start: initial values of the tensors that never travel.
        given: the tensors that every client has from the seed.
        pairs: the low-rank pairs of the model, and how they are combined; None: as all other tensors.
        steering: the client's side of the strategy; None if it has none.
        tiers: the depth of each client; None if every client runs the whole model.
        memories: what clients keep between rounds.
        places: how many packs this machine could train side by side; 1: a cohort is one pack.
        threads: number of arithmetic threads for training, constant because the last bits depend on it; None: all.
        privacy: how what the clients send is made private; None without section `[privacy]`.
        test: what the run's models are evaluated on (measuring.py); None if that is done elsewhere.
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
    places: int = 1
    threads: int | None = None
    privacy: SitePrivacy | None = None
    test: Examples | None = None
    given: Params = field(default_factory=dict)
    pairs: Pairs | None = None

    @cached_property
    def wire(self) -> ParamSpec:
        """Every tensor that can travel, as `Federation.wire`."""
        return self.engine.spec if self.steering is None else self.steering.extend(self.engine.spec)

    @cached_property
    def forms(self) -> Forms | Whole:
        """The forms of the payloads of the run."""
        return Whole(self.wire) if self.pairs is None else Forms(self.wire)

    @cached_property
    def blank(self) -> Memory:
        """The memory of a client before its first round."""
        return Memory(self.start, {} if self.steering is None else self.steering.start(self.engine.spec))

    @property
    def example_privacy(self) -> SitePrivacy | None:
        """The privacy of single examples, which training itself provides; None without it."""
        return self.privacy if self.privacy is not None and self.privacy.settings.unit == "example" else None

    def memory_of(self, client_id: int) -> Memory:
        """The memory of a client."""
        return self.memories.of(client_id) or self.blank

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        """See `Runtime.run`; yields replies in the order in which clients finish."""
        for chunk in self.chunks(payloads):
            self.fill(chunk)
        decoded: dict[bytes, Params] = {}
        for pack in self.packs(plan, payloads):
            yield from map(self.take, self.train(pack, decoded))

    def chunks(self, client_ids: Iterable[int]) -> list[Chunk]:
        """The features that these clients need and the cache does not have yet; none without a cache."""
        return chunks_of(self.engine.inputs, [self.partition[client_id] for client_id in sorted(client_ids)])

    def chunks_of_test(self) -> list[Chunk]:
        """The features that an evaluation needs and the cache does not have yet; none without a cache."""
        if self.test is None:
            return []
        inputs = self.engine.evaluator.cached(self.test).inputs
        return chunks_of(inputs, [torch.arange(len(self.test))], of_test=True)

    def fill(self, chunk: Chunk) -> None:
        """Computes features for the cache."""
        inputs = self.engine.inputs
        if chunk.of_test and self.test is not None:
            inputs = self.engine.evaluator.cached(self.test).inputs
        with arithmetic_threads(self.threads or torch.get_num_threads()):
            fill(inputs, chunk)

    def packs(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Pack]:
        """Begins a round and yields its packs, that with the most work first."""
        self.memories.begin(plan.cohort)
        for part in self._parts(payloads):
            of_part = {client_id: payloads[client_id] for client_id in part}
            memories = {client_id: self.memory_of(client_id) for client_id in part}
            upload = {client_id: plan.upload[client_id] for client_id in part}
            yield Pack(plan.round, upload, of_part, memories)

    def _parts(self, client_ids: Collection[int]) -> list[tuple[int, ...]]:
        if self.places == 1:
            return [tuple(client_ids)] if client_ids else []
        work = {client_id: self.work_of(client_id) for client_id in client_ids}
        depths = None if self.tiers is None else self.tiers.depths
        return packs_of(work, lanes=self.engine.clients_at_once, places=self.places, depths=depths)

    def work_of(self, client_id: int) -> float:
        """A client's work in a round: processed examples, or tokens of dialogues, times blocks."""
        num_processed = self.engine.client.num_processed(self.partition[client_id].shape[0])
        depth = 1 if self.tiers is None else self.tiers.depths[client_id]
        return num_processed * self.size_of(self.partition[client_id]) * depth

    def size_of(self, rows: Tensor) -> float:
        """The mean number of tokens of `rows` (int64, one axis) of dialogues; 1 for other examples."""
        inputs = self.engine.inputs
        return float(inputs.num_tokens[rows].double().mean()) if isinstance(inputs, StoredDialogues) else 1.0

    def train(self, pack: Pack, decoded: dict[bytes, Params]) -> Iterator[Answer]:
        """Yields the answers of a pack's clients in the order in which they finish; changes no memory.

        Args:
            pack: of the plan's cohort.
            decoded: the downloads of this round that are already decoded; most strategies send all clients the same.
        """
        return computed_with(self.threads, self._train(pack, decoded))

    def _train(self, pack: Pack, decoded: dict[bytes, Params]) -> Iterator[Answer]:
        lr = self.engine.client.lr_in(pack.round, self.num_rounds)
        under_way: dict[int, _Work] = {}
        # The longest first: a long client that began late would train alone in the end.
        for client_id in sorted(pack.payloads, key=lambda client_id: (-self.work_of(client_id), client_id)):
            try:
                under_way[client_id] = _work(self, pack, client_id, _received(self, pack, client_id, decoded))
            except PayloadError as error:
                fault = Fault(f"the client cannot use its download: {error.message}")
                yield Answer(Reply(client_id, 0, b"", fault=fault))
        for trained in self.engine.train([work.job for work in under_way.values()], lr, pack.round):
            yield _answer(self, pack, under_way.pop(trained.client_id), trained, lr)

    def take(self, answer: Answer) -> Reply:
        """The reply of an answer; stages the memory that the client has if its reply is accepted."""
        if answer.memory is not None:
            self.memories.stage(answer.reply.client_id, answer.memory)
        return answer.reply

    def accept(self, client_ids: Iterable[int]) -> None:
        """See `Runtime.accept`."""
        self.memories.commit(client_ids)

    def snapshot(self, folder: Path, round: int) -> str:
        """See `Runtime.snapshot`."""
        return self.memories.snapshot(folder, round)

    def restore(self, folder: Path, mark: str) -> None:
        """See `Runtime.restore`."""
        self.memories.restore(folder, mark)

    def moving(self, held: Collection[str], round: int) -> frozenset[str] | None:
        """Those of a client's tensors that it trains in `round`; None for all."""
        resting = frozenset() if self.pairs is None else self.pairs.resting(round)
        return frozenset(held) - resting if resting else None

    def staying(self, held: Sequence[str], upload: Collection[str], round: int) -> tuple[str, ...]:
        """Those of a client's tensors that it must keep after `round`, because it does not send them."""
        if self.pairs is None:
            return tuple(name for name in held if name not in upload)
        return self.pairs.staying(held, upload, round)

    def held(self, client_id: int) -> tuple[str, ...]:
        """Names of the tensors that the client trains: all, or those of the blocks that it runs."""
        names = self.engine.spec.names
        return names if self.tiers is None else tuple(name for name in names if self.tiers.owns(client_id, name))


def _received(site: Site, pack: Pack, client_id: int, decoded: dict[bytes, Params]) -> Params:
    """The decoded download of a client.

    Raises:
        PayloadError: it cannot be decoded.
    """
    payload = pack.payloads[client_id]
    if site.channel.sends_changes:  # what equal bytes mean depends on what the client holds
        return decode(payload, site.wire, site.channel.reader(pack.memories[client_id].mirrored))[0]
    if payload not in decoded:
        form = site.forms.form_in(payload)
        narrow, _ = decode(payload, site.forms.spec_of(form), site.channel.down)
        decoded[payload] = site.forms.widened(narrow, form)
    return decoded[payload]


@dataclass(frozen=True)
class _Work:
    """A job with what the reply needs when the job is done.

    Args:
        job: the training job.
        received: the decoded download.
        memory: the client's memory before the round.
        form: of its upload: that of its download, without what is carried.
    """

    job: Job
    received: Params
    memory: Memory
    form: Form


def _work(site: Site, pack: Pack, client_id: int, received: Params) -> _Work:
    """The job of a client.

    Raises:
        PayloadError: a tensor is neither in the download nor in the client's memory.
    """
    memory, held = pack.memories[client_id], site.held(client_id)
    # A download replaces an older anchor.
    adrift = {name: drift.anchor for name, drift in memory.adrift.items()}
    form = site.forms.form_in(pack.payloads[client_id])
    anchors = site.forms.limited(site.given, form) | adrift | received | memory.local_only
    if lacking := [name for name in held if name not in anchors]:
        raise PayloadError(
            f"{len(lacking)} of {len(held)} tensors are neither in the download nor kept from an earlier round, "
            f"first `{lacking[0]}`"
        )
    rows, client, private = site.partition[client_id], site.engine.client, site.example_privacy
    steps_before = (pack.round - 1) * (client.local_steps or 0)
    epoch, skip = divmod(steps_before, client.epoch_steps(len(rows)))

    takes_samples = private is not None and not private.settings.is_reproduction

    def of_round(purpose: str) -> Generator:
        if private is not None and takes_samples:
            return private.streams(client_id).generator(purpose, pack.round, client_id)
        return stream(site.seed, purpose, pack.round, client_id)

    def epochs(purpose: str) -> Iterator[Generator]:  # makes none before the first is asked for
        if client.local_steps is None or takes_samples:
            yield from repeat(of_round(purpose))
        yield from (stream(site.seed, purpose, "epoch", number, client_id) for number in count(epoch + 1))

    job = Job(
        client_id,
        rows,
        anchor=select(anchors, held),
        order=epochs("batches"),
        noise=of_round("dropout"),
        augmentation=epochs("augmentation"),
        skip=skip,
        local={name: memory.adrift[name].value for name in held if name in memory.adrift and name not in received},
        kept=site.staying(held, pack.upload[client_id], pack.round),
        offset={} if site.steering is None else site.steering.offset(received, memory.remembered),
        depth=None if site.tiers is None else site.tiers.depths[client_id],
        moving=site.moving(held, pack.round),
        exits=stream(site.seed, "exits", pack.round, client_id) if site.engine.has_exits else None,
        noise_of_step=None if private is None else private.step_noise(pack.round, client_id),
    )
    return _Work(job, received, memory, Form(form.rank))


def _answer(site: Site, pack: Pack, work: _Work, trained: Trained, lr: float) -> Answer:
    """The reply of a client, and the memory that it has if the reply is accepted."""
    client_id, num_examples = trained.client_id, work.job.rows.shape[0]
    # The loss would tell about the data what no noise covers.
    metrics = {} if site.privacy is not None or trained.train_loss is None else {"train_loss": trained.train_loss}
    delta = _delta(site, pack, trained)
    if site.steering is not None:
        step_length = lr * site.engine.client.effective_steps(num_examples)
        delta |= site.steering.beside(work.received, delta, step_length)
    sent = site.forms.narrowed(select(delta, pack.upload[client_id]), work.form)
    if site.channel.feeds_back:
        sent = _with_residual(sent, work.memory.residual)
    try:
        draws = derive(site.seed, "codec", "up", pack.round, client_id)
        spec = site.forms.spec_of(work.form)
        payload, _ = encode(sent, spec, site.channel.up, draws, compress=site.channel.compresses)
    except PayloadError as error:
        return Answer(Reply(client_id, num_examples, b"", metrics, fault=Fault(str(error))))
    to_keep = frozenset(site.engine.spec.kept)
    unsent = {name: tensor.cpu() for name, tensor in trained.kept.items() if name not in to_keep}
    if site.privacy is not None and site.privacy.is_local:  # a fault would tell about the data
        unsent = {name: tensor if is_finite(tensor) else work.job.anchor[name] for name, tensor in unsent.items()}
    if not all(map(is_finite, unsent.values())):
        fault = Fault("tensors that the client keeps for a later upload are NaN or infinite")
        return Answer(Reply(client_id, num_examples, b"", metrics, fault))
    memory = _memory_after(site, work, trained, sent=sent, payload=payload, unsent=unsent)
    return Answer(Reply(client_id, num_examples, payload, metrics), memory)


def _delta(site: Site, pack: Pack, trained: Trained) -> Params:
    """What the client has changed; under `unit = "local"` only what it sends of that, with noise."""
    delta = {name: tensor.cpu() for name, tensor in trained.delta.items()}
    if site.privacy is None or not site.privacy.is_local:
        return delta
    sent = select(delta, (name for name in pack.upload[trained.client_id] if name in delta))
    return site.privacy.randomised(sent, site.engine.spec, pack.round, trained.client_id)


def _memory_after(site: Site, work: _Work, trained: Trained, *, sent: Params, payload: bytes, unsent: Params) -> Memory:
    """The client's memory once its reply is accepted.

    Args:
        site: of the client.
        work: the job and the memory before it.
        trained: the result of the job.
        sent: the upload, before it was encoded.
        payload: `sent`, encoded.
        unsent: trained values of the tensors that travel in a later round.
    """
    previous, steering, feeds_back = work.memory, site.steering, site.channel.feeds_back
    local_only = {name: tensor.cpu() for name, tensor in trained.kept.items() if name not in unsent}
    # What the server decodes, so that server and client do not drift apart by the codec's rounding errors.
    spec = site.forms.spec_of(work.form)
    decoded = decode(payload, spec, site.channel.up)[0] if steering is not None or feeds_back else {}
    return Memory(
        # A client whose statistics diverged goes on with its previous ones.
        local_only=local_only if all(map(is_finite, local_only.values())) else previous.local_only,
        remembered={} if steering is None else steering.remember(previous.remembered, decoded),
        # Cloned, because the anchor may be a view that keeps the whole download in memory.
        adrift={name: Drift(tensor, work.job.anchor[name].clone()) for name, tensor in unsent.items()},
        residual=previous.residual | {name: sent[name] - decoded[name] for name in sent} if feeds_back else {},
        mirrored=previous.mirrored | _mirrored(site, work.received) if site.channel.sends_changes else {},
    )


def _mirrored(site: Site, received: Params) -> Params:
    """What the client holds of a download; exact, because mirrored values are numbers of float16."""
    return {name: tensor.half() for name, tensor in received.items() if site.wire.tensors[name].trained}


def _with_residual(delta: Params, residual: Params) -> Params:
    """`delta` plus what the codec left out of earlier uploads of the same tensors."""
    return {name: tensor + residual[name] if name in residual else tensor for name, tensor in delta.items()}
