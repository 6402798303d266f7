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
from fedelta.params import Params, is_finite, select
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan


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
    """

    engine: LaneEngine
    partition: Mapping[int, Tensor]
    codec: Codec
    seed: int
    num_rounds: int
    start: Params = field(default_factory=dict)
    kept: dict[int, Params] = field(default_factory=dict)

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
    opened: dict[bytes, Params] = {}  # most strategies send all clients the same bytes
    jobs = []
    for client_id in sorted(payloads):
        payload = payloads[client_id]
        try:
            if payload not in opened:
                opened[payload], _ = decode(payload, site.engine.spec, site.codec)
        except PayloadError as error:
            yield Reply(client_id, 0, b"", fault=f"download refused: {error.message}")
            continue
        anchor = opened[payload] | site.own(client_id)
        order, noise, augmentation = (
            stream(site.seed, purpose, plan.round, client_id) for purpose in ("batches", "dropout", "augmentation")
        )
        jobs.append(Job(client_id, site.partition[client_id], anchor, order, noise, augmentation))
    lr = site.engine.client.lr_in(plan.round, site.num_rounds)
    for trained in site.engine.train(jobs, lr):
        reply = _reply(site, plan, trained)
        # A client that has diverged keeps what it had before.
        if trained.kept and reply.fault is None and all(map(is_finite, trained.kept.values())):
            site.kept[trained.client_id] = trained.kept
        yield reply


def _reply(site: Site, plan: RoundPlan, trained: Trained) -> Reply:
    num_examples = len(site.partition[trained.client_id])
    metrics = {"train_loss": trained.train_loss}
    delta = select(trained.delta, plan.upload[trained.client_id])
    try:
        payload, _ = encode(delta, site.engine.spec, site.codec)
    except PayloadError as error:
        return Reply(trained.client_id, num_examples, b"", metrics, fault=str(error))
    return Reply(trained.client_id, num_examples, payload, metrics)
