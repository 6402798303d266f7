"""A federation of four clients on a small model, as a simulation and over two sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from tests.runtimes.remote.local_link import LocalLink, LocalSite
from torch import Tensor

from fedelta.aggregation.low_rank import Apart, LowRank, prepared
from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode
from fedelta.data.clients import Clients
from fedelta.engine.exits import ExitSettings
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.federation.base import Federation, Runtime, Standing
from fedelta.federation.client import Site
from fedelta.federation.memory import Memories, Memory
from fedelta.federation.pairs import Pairs
from fedelta.federation.tiers import Tiers
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec, select
from fedelta.runtimes.remote.messages import PROTOCOL, Message
from fedelta.runtimes.remote.post import Post
from fedelta.runtimes.remote.profiles import Invitation
from fedelta.runtimes.remote.roster import gather
from fedelta.runtimes.remote.runtime import Remote
from fedelta.runtimes.remote.settings import Deployment
from fedelta.runtimes.remote.terms import Terms
from fedelta.runtimes.remote.versions import Copying
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, Strategy
from fedelta.strategies.local import Plain
from fedelta.tasks.base import Evaluation
from fedelta.testing.small import CLASS_NAMES, small_data, small_model
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.exits import owned_at
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

ROWS = (5, 7, 4, 8)  # of each client
AT = {"berlin": (0, 1), "hamburg": (2, 3)}
SETTINGS = Deployment(round_seconds=600, min_grace_seconds=20, start_seconds=60, wait_seconds=30)
INVITATION = Invitation("run-1", "seed = 0", "1.0")


@dataclass(frozen=True)
class Small:
    """What all parts of a federation have in common.

    Args:
        strategy: of the run.
        method: the tuning method.
        family: of the model.
        channel: the codecs.
        depths: of each client, in blocks.
        batch_norm: whether norms travel.
        aggregation: how pairs are combined.
        ranks: of each client; empty if all have that of the method.
    """

    strategy: Strategy
    method: TuningMethod = Lora(r=2)  # noqa: RUF009 a frozen value
    family: str = "vit"
    channel: Channel = Channel()  # noqa: RUF009 likewise
    depths: Mapping[int, int] | None = None
    batch_norm: Literal["average", "local"] = "average"
    aggregation: LowRank = Apart()  # noqa: RUF009 a frozen value
    ranks: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def backbone(self) -> Backbone:
        return replace(small_model(self.family), batch_norm=self.batch_norm)

    @cached_property
    def engine(self) -> LaneEngine:
        backbone, lanes = self.backbone, Lanes(1)
        spec = prepared(self.aggregation, backbone.module, self.method.apply(backbone, lanes, stream(0, "tuning")))
        client = ClientSettings(batch_size=4, lr=0.05, optimizer=Sgd(), local_steps=self.strategy.local_steps)
        return LaneEngine(
            backbone, spec, lanes, small_data(self.family), client=client, rule=Plain(), exits=ExitSettings(train="sum")
        )

    @cached_property
    def start(self) -> Params:
        return self.engine.bank.read(0)

    @cached_property
    def partition(self) -> dict[int, Tensor]:
        return dict(enumerate(torch.arange(sum(ROWS)).split(list(ROWS))))

    @cached_property
    def wire(self) -> ParamSpec:
        steering = self.strategy.steering
        return self.engine.spec if steering is None else steering.extend(self.engine.spec)

    @property
    def copying(self) -> Copying | None:
        steering = self.strategy.steering
        return None if steering is None else Copying(steering, self.engine.spec, self.channel.up)

    @cached_property
    def tiers(self) -> Tiers | None:
        if self.depths is None:
            return None
        backbone, spec = self.backbone, self.engine.spec
        return Tiers(self.depths, {depth: owned_at(backbone, spec, depth, range(1, depth + 1)) for depth in (1, 2)})

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.aggregation, self.engine.spec, self.strategy.cohort_rounds)

    def site(self, client_ids: Sequence[int]) -> Site:
        """A site with these clients."""
        return Site(
            self.engine, select(self.partition, client_ids), self.channel, seed=0,
            num_rounds=self.strategy.num_rounds, start=select(self.start, self.engine.spec.kept),
            given=select(self.start, self.engine.spec.given), steering=self.strategy.steering, tiers=self.tiers,
            pairs=self.pairs,
        )  # fmt: skip

    def federation(self, runtime: Runtime) -> Federation:
        """The server's part; its runs end in the bits that the clients' part gives."""
        return Federation(
            strategy=self.strategy, runtime=runtime, channel=self.channel, spec=self.engine.spec,
            clients=Clients.of(self.partition), seed=0,
            evaluate=lambda _: Evaluation({"accuracy": 0.0, "loss_nats": 0.0}),
            effective_steps=self.engine.client.effective_steps, tiers=self.tiers,
            pairs=replace(self.pairs, ranks=self.ranks),
            attendance=runtime.attendance if isinstance(runtime, Remote) else tuple,
            site_of={} if isinstance(runtime, Site) else {number: site for site in AT for number in AT[site]},
        )  # fmt: skip

    @property
    def standing(self) -> Standing:
        """Before round 1."""
        return Standing(self.start, self.strategy.init(self.start, self.engine.spec))


@dataclass
class SiteProgram:
    """The site's end of the messages, with the memories in a dictionary: versions by client.

    Args:
        small: the federation.
        client_ids: numbers of its clients.
        described: entries of its description that differ from the right ones.
        prepared: likewise of its answer to `prepare`.
    """

    small: Small
    client_ids: Sequence[int]
    described: Mapping[str, Any] = field(default_factory=dict)
    prepared: Mapping[str, Any] = field(default_factory=dict)
    versions: dict[int, dict[int, Memory]] = field(default_factory=dict)
    is_prepared: bool = False

    def __call__(self, message: Message) -> Message:
        match message.kind:
            case "describe":
                clients = [{"key": number, "num_examples": ROWS[number]} for number in self.client_ids]
                usual: dict[str, Any] = {
                    "protocol": PROTOCOL, "version": INVITATION.version, "class_names": list(CLASS_NAMES),
                    "clients": clients, "is_natural": False, "num_test_examples": 2,
                }  # fmt: skip
                return Message("described", {**usual, **self.described})
            case "prepare":
                self.is_prepared = True
                fingerprint = self.small.wire.fingerprint.hex()
                usual = {"fingerprint": fingerprint, "identity": {"base weights": "a1"}, "task": "t", "device": "cpu"}
                return Message("prepared", {**usual, **self.prepared})
            case "train" if self.is_prepared:
                return self.train(message)
            case "evaluate" if self.is_prepared:
                return Message("evaluated", {"sums": {"accuracy": [1.0, 2]}, "num_examples": 2})
            case "finish":
                return Message("finished")
        return Message("refused", {"reason": "the site does not know this run", "cause": "unprepared"})

    def train(self, message: Message) -> Message:
        round, entries = message.manifest["round"], message.manifest["clients"]
        memories, forgetful = Memories(), []
        for entry in entries:
            if version := entry["version"]:
                memory = self.versions.get(entry["id"], {}).get(version)
                if memory is None:
                    forgetful.append(entry["id"])
                    continue
                memories.stage(entry["id"], memory if entry["keeps_adrift"] else replace(memory, adrift={}))
            elif "remembered" in entry:
                blob = bytes(message.blobs[entry["remembered"]])
                memories.stage(entry["id"], Memory(remembered=decode(blob, self.small.wire, Cast())[0]))
        memories.commit([entry["id"] for entry in entries])
        ready = [entry for entry in entries if entry["id"] not in forgetful]
        uploads = message.manifest["uploads"]
        upload = {entry["id"]: tuple(uploads[entry["upload"]]) for entry in ready}
        plan = RoundPlan(round, {}, upload, message.manifest["num_clients"])
        site = replace(self.small.site(self.client_ids), memories=memories)
        downloads = {entry["id"]: bytes(message.blobs[entry["download"]]) for entry in ready}
        replies = list(site.run(plan, downloads)) if ready else []
        memories.commit(upload)
        answers: list[dict[str, Any]] = []
        for index, reply in enumerate(replies):
            number, memory = reply.client_id, memories.of(reply.client_id)
            if memory is not None:
                self.versions.setdefault(number, {})[round] = memory
            fault = None if reply.fault is None else {"reason": reply.fault.reason, "cause": reply.fault.cause}
            answers.append({
                "id": number, "num_examples": reply.num_examples, "train_loss": reply.metrics.get("train_loss"),
                "blob": index, "version": 0 if memory is None else round, "fault": fault,
            })  # fmt: skip
        fault = {"reason": "nothing is there", "cause": "forgot"}
        answers += [{"id": number, "fault": fault} for number in forgetful]
        return Message("trained", {"round": round, "clients": answers}, tuple(reply.payload for reply in replies))


def link_of(small: Small, at: Mapping[str, Sequence[int]] = AT) -> LocalLink:
    """A link to sites that serve these clients."""
    return LocalLink({name: LocalSite(SiteProgram(small, client_ids)) for name, client_ids in at.items()})


def remote_of(small: Small, link: LocalLink, settings: Deployment = SETTINGS) -> Remote:
    """A runtime over the link, with all sites prepared."""
    post = Post(link, settings, link.clock)
    roster = gather(post, settings, INVITATION)
    terms = Terms("run-1", CLASS_NAMES, small.wire.fingerprint.hex(), {"base weights": "a1"}, "t", small.depths)
    remote = Remote(post, settings, roster, invitation=INVITATION, terms=terms, wire=small.wire, copying=small.copying)
    remote.prepare()
    return remote
