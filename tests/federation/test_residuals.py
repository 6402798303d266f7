"""Error feedback of uploads in whole federations: nothing of what clients compute is lost or counted twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.windowed import SPEC, START, Recording, Walking, running

from fedelta.aggregation.means import Uniform
from fedelta.codecs.changes import Mirror
from fedelta.codecs.channel import Channel
from fedelta.engine.work import ClientSettings, Job, Trained
from fedelta.federation.base import Federation, Standing
from fedelta.federation.client import Site
from fedelta.federation.memory import Memories
from fedelta.federation.records import Reply, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama

NUM_CLIENTS, NUM_ROUNDS = 3, 6
# What may become of a reply; what is damaged is refused by the server.
FATES = ("accepted", "accepted", "accepted", "unreached", "late", "damaged")
CODECS = (
    {"name": "int8"},
    {"name": "int4", "rounding": "stochastic"},
    {"name": "sign"},
    {"name": "top-k", "k": 1},
    {"name": "random-k", "k": 1},
)
STRATEGIES = (
    FedAvg(clients_per_round=2, num_rounds=NUM_ROUNDS, mean=Uniform()),
    FedAvg(clients_per_round=3, num_rounds=NUM_ROUNDS, mean=Uniform()),
    FedLama(clients_per_round=2, num_rounds=NUM_ROUNDS, mean=Uniform(), tau=1, phi=2),
)


@dataclass
class Computing(Walking):
    """Keeps what clients have computed, by round and client."""

    deltas: dict[tuple[int, int], Params] = field(default_factory=dict)

    def train(self, jobs: Sequence[Job], lr: float, round: int) -> Iterator[Trained]:
        for trained in super().train(jobs, lr, round):
            self.deltas[round, trained.client_id] = trained.delta
            yield trained


@dataclass
class Damaging(Recording):
    """Takes the last byte from the replies that it is told to."""

    fates: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> list[Reply]:
        replies = super().run(plan, payloads)
        is_damaged = {reply.client_id: self.fates[plan.round, reply.client_id] == "damaged" for reply in replies}
        return [
            replace(reply, payload=reply.payload[:-1]) if is_damaged[reply.client_id] else reply for reply in replies
        ]


def moved(round: int, client_id: int) -> Params:
    return {
        name: torch.randn(value.shape, generator=stream(0, "move", round, client_id, name))
        for name, value in START.items()
    }


def federation_with(
    channel: Channel, strategy: Strategy, fates: Mapping[tuple[int, int], str], engine: Computing
) -> tuple[Federation, Damaging]:
    """A federation whose clients remember nothing yet."""
    partition = {client_id: torch.arange(client_id, client_id + 1) for client_id in range(NUM_CLIENTS)}
    site = Site(engine, partition, channel, seed=0, num_rounds=NUM_ROUNDS, memories=Memories())
    runtime = Damaging(
        site,
        lost=lambda round, client_id: fates[round, client_id] == "unreached",
        unheard=lambda round, client_id: fates[round, client_id] == "late",
        fates=fates,
    )
    return running(strategy, runtime, site), runtime


def after(outcome: RoundOutcome) -> Standing:
    """What a checkpoint keeps of the server after a round."""
    mirror = Mirror.from_state(*outcome.mirror.to_state())
    return Standing(outcome.params, outcome.state, outcome.round, claimed=outcome.claimed, mirror=mirror)


@settings(max_examples=20)
@given(
    up=st.sampled_from(CODECS), down=st.sampled_from(({"name": "float32"}, *CODECS)),
    strategy=st.sampled_from(STRATEGIES),
    fates=st.lists(st.sampled_from(FATES), min_size=NUM_ROUNDS * NUM_CLIENTS, max_size=NUM_ROUNDS * NUM_CLIENTS),
    resumed=st.sets(st.integers(1, NUM_ROUNDS - 1), max_size=3), compresses=st.booleans(),
)  # fmt: skip
def test_what_the_server_has_added_and_what_clients_keep_is_what_they_have_computed(
    up: dict[str, object], down: dict[str, object], strategy: Strategy, fates: list[str], resumed: set[int],
    compresses: bool,
):  # fmt: skip
    channel = Channel(up=up, down=down, entropy="zstd" if compresses else "none")
    places = [(round, client_id) for round in range(1, NUM_ROUNDS + 1) for client_id in range(NUM_CLIENTS)]
    # One damaged reply at most in a round: a round in which all replies are refused ends the run.
    fate_of = dict(zip(places, fates, strict=True))
    for round, client_id in places:
        if fate_of[round, client_id] == "damaged" and client_id != round % NUM_CLIENTS:
            fate_of[round, client_id] = "late"
    engine = Computing(moved, ClientSettings(local_steps=strategy.local_steps))
    federation, runtime = federation_with(channel, strategy, fate_of, engine)
    standing = Standing(START, strategy.init(START, SPEC))
    added, computed = ({name: torch.zeros(value.shape).double() for name, value in START.items()} for _ in range(2))
    with TemporaryDirectory() as folder:
        while standing.rounds_done < NUM_ROUNDS:
            outcome = next(federate(federation, standing))
            refused = {rejection.client_id for rejection in outcome.rejections}
            accepted = [client_id for client_id in outcome.cohort if client_id not in refused]
            assert refused == {
                client_id for client_id in outcome.cohort if fate_of[outcome.round, client_id] != "accepted"
            }
            for name, value in outcome.params.items():
                # The server adds the mean of what it has decoded.
                added[name] += len(accepted) * (value - standing.params[name]).double()
            upload = runtime.plans[-1].upload
            for client_id in accepted:
                for name in upload[client_id]:
                    computed[name] += engine.deltas[outcome.round, client_id][name].double()
            standing = after(outcome)
            if outcome.round in resumed:
                mark = runtime.site.snapshot(Path(folder), outcome.round)
                federation, runtime = federation_with(channel, strategy, fate_of, engine)
                runtime.site.restore(Path(folder), mark)
        for name in SPEC:
            kept = [runtime.site.memory_of(client_id).residual.get(name, 0) for client_id in range(NUM_CLIENTS)]
            torch.testing.assert_close(added[name] + sum(kept), computed[name], rtol=1e-5, atol=1e-4)
