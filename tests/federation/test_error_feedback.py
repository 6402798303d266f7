"""Error feedback over whole runs: nothing that clients compute is lost, whatever happens to replies and the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import assert_same_bits
from tests.strategies.windowed import SPEC, START, Walking, running

from fedelta.codecs.changes import Mirror
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode
from fedelta.engine.work import ClientSettings, Job
from fedelta.federation.base import Standing
from fedelta.federation.client import Site
from fedelta.federation.records import Fault, Reply, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama

NUM_CLIENTS, NUM_ROUNDS = 4, 6
CODECS = [
    {"name": "int8"},
    {"name": "int4"},
    {"name": "int4", "rounding": "stochastic"},
    {"name": "sign"},
    {"name": "top-k", "k": 0.3},
    {"name": "random-k", "k": 0.3},
]
STRATEGIES: list[Strategy] = [
    FedAvg(clients_per_round=2, num_rounds=NUM_ROUNDS),
    FedLama(clients_per_round=2, num_rounds=NUM_ROUNDS, tau=1, phi=3),
]


def moved(round: int, client_id: int) -> Params:
    """What a client adds to its tensors in a round: numbers of different sizes."""
    return {
        name: (1 + client_id) * torch.randn(value.shape, generator=stream(0, "move", round, client_id, name))
        for name, value in START.items()
    }


def zeros() -> dict[int, Params]:
    return {client_id: {name: value.double() for name, value in START.items()} for client_id in range(NUM_CLIENTS)}


@dataclass
class Eventful:
    """A site some of whose replies are lost on their way or damaged, and the sums of what counted.

    Args:
        site: of all clients.
        events: what happens to the replies of a round, by place in the cohort.
        computed: client id to the sum of the deltas of its accepted uploads, before anything was left out.
        sent: the same of what the server has decoded.
    """

    site: Site
    events: list[list[str]]
    computed: dict[int, Params] = field(default_factory=zeros)
    sent: dict[int, Params] = field(default_factory=zeros)
    replies: dict[int, Reply] = field(default_factory=dict)
    uploads: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> list[Reply]:
        assert isinstance(self.site.engine, Walking)
        self.site.engine.round, self.uploads = plan.round, plan.upload
        replies = sorted(self.site.run(plan, payloads), key=lambda reply: reply.client_id)
        self.replies = {reply.client_id: reply for reply in replies}
        return [self._arrived(reply, event) for reply, event in zip(replies, self.events[plan.round - 1], strict=True)]

    def _arrived(self, reply: Reply, event: str) -> Reply:
        if event == "lost":
            return Reply(reply.client_id, 0, b"", fault=Fault("lost", "vanished"))
        return replace(reply, payload=reply.payload[:-1]) if event == "damaged" else reply

    def accept(self, client_ids: Iterable[int]) -> None:
        accepted = list(client_ids)
        for client_id in accepted:
            decoded, _ = decode(self.replies[client_id].payload, SPEC, self.site.channel.up)
            assert tuple(decoded) == self.uploads[client_id]
            job = self._job_of(client_id)
            for name, tensor in decoded.items():
                value = job.local.get(name, job.anchor[name]) + moved(self._round, client_id)[name]
                self.computed[client_id][name] = self.computed[client_id][name] + (value - job.anchor[name])
                self.sent[client_id][name] = self.sent[client_id][name] + tensor
        self.site.accept(accepted)

    @property
    def _round(self) -> int:
        assert isinstance(self.site.engine, Walking)
        return self.site.engine.round

    def _job_of(self, client_id: int) -> Job:
        assert isinstance(self.site.engine, Walking)
        return next(job for round, job in reversed(self.site.engine.jobs) if job.client_id == client_id)


def new_site(channel: Channel) -> Site:
    partition = dict(enumerate(torch.arange(3 * NUM_CLIENTS).split(3)))
    return Site(Walking(moved, ClientSettings(local_steps=1)), partition, channel, seed=0, num_rounds=NUM_ROUNDS)


def played(
    strategy: Strategy, channel: Channel, events: list[list[str]], stops: set[int], folder: Path
) -> tuple[Eventful, list[RoundOutcome]]:
    """A run that is stopped after some rounds, and resumed by a new process that has only what was written."""
    runtime, outcomes = Eventful(new_site(channel), events), list[RoundOutcome]()
    standing = Standing(START, strategy.init(START, SPEC))
    while len(outcomes) < NUM_ROUNDS:
        federation = running(strategy, runtime, runtime.site)
        for outcome in federate(federation, standing):
            outcomes.append(outcome)
            standing = Standing(outcome.params, outcome.state, outcome.round, mirror=outcome.mirror)
            if outcome.round in stops:
                break
        mark = runtime.site.memories.snapshot(folder, len(outcomes))
        runtime.site = new_site(channel)
        runtime.site.restore(folder, mark)
        standing = replace(standing, mirror=Mirror.from_state(*standing.mirror.to_state()))
    return runtime, outcomes


@settings(max_examples=6)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: "-".join(map(str, codec.values())))
@given(
    events=st.lists(
        st.lists(st.sampled_from(["arrives", "arrives", "lost", "damaged"]), min_size=2, max_size=2),
        min_size=NUM_ROUNDS,
        max_size=NUM_ROUNDS,
    ),
    down=st.sampled_from(["float32", "int4"]),
    stops=st.sets(st.integers(1, NUM_ROUNDS - 1)),
)
def test_what_was_decoded_and_the_residual_are_what_was_computed(
    strategy: Strategy, codec: dict[str, object], events: list[list[str]], down: str, stops: set[int]
):
    # A round whose replies are all damaged ends the run.
    events = [
        ["lost" if event == "damaged" else event for event in two] if "arrives" not in two else two for two in events
    ]
    channel = Channel.model_validate({"up": codec, "down": {"name": down}})
    with TemporaryDirectory() as parts, TemporaryDirectory() as whole:
        runtime, outcomes = played(strategy, channel, events, stops, Path(parts))
        uninterrupted, _ = played(strategy, channel, events, set(), Path(whole))
        for client_id in range(NUM_CLIENTS):
            residual = runtime.site.memory_of(client_id).residual
            assert_same_bits(residual, uninterrupted.site.memory_of(client_id).residual)
            for name, computed in runtime.computed[client_id].items():
                kept = residual.get(name, torch.zeros_like(computed))
                torch.testing.assert_close(runtime.sent[client_id][name] + kept, computed, rtol=1e-5, atol=1e-5)
    num_accepted = sum(len(outcome.cohort) - len(outcome.rejections) for outcome in outcomes)
    assert num_accepted == sum(two.count("arrives") for two in events)
