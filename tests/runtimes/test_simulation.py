"""The whole loop in this process: it learns, and the same seed gives the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pytest
import torch
from tests.builders import ReadyInputs, assert_close, assert_same_bits, start_of, tiny_engine
from tests.contracts.test_tuning_methods import METHODS
from torch import tensor

from fedelta.catalog import TUNING_METHODS
from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode
from fedelta.data.batches import Examples
from fedelta.data.clients import Clients
from fedelta.engine.work import ClientSettings
from fedelta.errors import RoundError
from fedelta.federation.base import Federation, Runtime, Standing
from fedelta.federation.client import Site
from fedelta.federation.records import Reply, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan
from fedelta.strategies.fedavg import FedAvg
from fedelta.tasks.labels import Labels
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lora import Lora

NUM_CLIENTS = 6


@dataclass
class Shuffled:
    """Gives the replies of another runtime in another order."""

    runtime: Runtime
    seed: int

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterable[Reply]:
        replies = list(self.runtime.run(plan, payloads))
        return [replies[index] for index in torch.randperm(len(replies), generator=stream(self.seed))]

    def accept(self, client_ids: Iterable[int]) -> None:
        self.runtime.accept(client_ids)


@dataclass
class Recorded:
    """Keeps what went down and what came up."""

    runtime: Runtime
    down: Mapping[int, bytes] | None = None
    up: list[Reply] | None = None

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterable[Reply]:
        self.down, self.up = payloads, list(self.runtime.run(plan, payloads))
        return self.up

    def accept(self, client_ids: Iterable[int]) -> None:
        self.runtime.accept(client_ids)


def brightness(num_rows: int, seed: int) -> Examples:
    """Noise whose mean is 2, 0 or -2 by class: a task that any working learner solves."""
    labels = torch.arange(num_rows) % 3
    noise = torch.randn(num_rows, 3, 8, 8, generator=stream(seed, "brightness"))
    return Examples(ReadyInputs({"pixel_values": noise + 2 * (1 - labels).view(-1, 1, 1, 1)}), Labels(labels))


def federation(
    method: TuningMethod | None = None,
    *,
    family: str = "vit",
    lanes: int = 2,
    num_rounds: int = 3,
    clients_per_round: int = 4,
    codec: Cast | None = None,
    cache_bytes: int = 0,
    **client: object,
) -> tuple[Federation, Params]:
    train, test = brightness(60, seed=0), brightness(90, seed=1)
    settings = ClientSettings(**({"batch_size": 8, "lr": 0.03, "local_epochs": 2} | client))
    engine, _ = tiny_engine(
        method or Lora(r=2), train, family=family, lanes=lanes, client=settings, cache_bytes=cache_bytes
    )
    # Sizes 5 to 15; every client has every class, as rows alternate.
    partition = dict(enumerate(torch.arange(60).split([5, 7, 9, 11, 13, 15])))
    codec = codec or Cast()
    channel = Channel(down=codec, up=codec)
    site = Site(engine, partition, channel, seed=0, num_rounds=num_rounds)
    return Federation(
        strategy=FedAvg(clients_per_round=clients_per_round, num_rounds=num_rounds),
        runtime=site,
        channel=channel,
        spec=engine.spec,
        clients=Clients.of(range(NUM_CLIENTS)),
        seed=0,
        evaluate=lambda params: engine.evaluator.evaluate(params, test),
        effective_steps=float,
    ), start_of(engine)


def run(running: Federation, start: Params) -> list[RoundOutcome]:
    return list(federate(running, Standing(start, running.strategy.init(start, running.spec))))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("full", "small-resnet"),
        *((name, "small-resnet" if name == "parallel" else "vit") for name in sorted(TUNING_METHODS)),
    ],
)
def test_every_tuning_method_learns_an_easy_task_in_a_few_rounds(name: str, family: str):
    running, start = federation(METHODS[name], family=family, num_rounds=10, lr=0.1)
    start_evaluation = running.evaluate(start)
    outcomes = run(running, start)
    assert start_evaluation.measures["accuracy"] < 0.5
    assert outcomes[-1].evaluation.measures["accuracy"] > 0.9
    assert outcomes[-1].evaluation.measures["loss_nats"] < start_evaluation.measures["loss_nats"] / 2
    assert outcomes[-1].train_loss < outcomes[0].train_loss
    assert not outcomes[-1].rejections


def test_replies_in_another_order_give_the_same_bits():
    results = []
    for seed in (None, 1, 2):
        running, start = federation()
        if seed is not None:
            running = Federation(**(vars(running) | {"runtime": Shuffled(running.runtime, seed)}))
        results.append(run(running, start))
    for reordered in results[1:]:
        for expected, outcome in zip(results[0], reordered, strict=True):
            assert_same_bits(expected.params, outcome.params)
            assert (expected.transfers, expected.train_loss, expected.evaluation) == (
                outcome.transfers,
                outcome.train_loss,
                outcome.evaluation,
            )


def test_the_same_seed_gives_the_same_bits():
    original, repeated = run(*federation()), run(*federation())
    assert_same_bits(original[-1].params, repeated[-1].params)
    assert [outcome.cohort for outcome in original] == [outcome.cohort for outcome in repeated]


def test_a_resumed_run_ends_with_the_same_bits():
    uninterrupted = run(*federation())
    running, _ = federation()
    resumed = list(federate(running, Standing(uninterrupted[0].params, uninterrupted[0].state, rounds_done=1)))
    assert_same_bits(resumed[-1].params, uninterrupted[-1].params)
    assert [outcome.train_loss for outcome in resumed] == [outcome.train_loss for outcome in uninterrupted[1:]]


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_the_number_of_lanes_changes_the_result_by_rounding_alone(cache_bytes: int):
    in_one_lane, in_four_lanes = (run(*federation(lanes=lanes, cache_bytes=cache_bytes)) for lanes in (1, 4))
    assert_close(in_one_lane[-1].params, in_four_lanes[-1].params, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_the_server_moves_by_exactly_the_mean_of_what_came_up(name: str):
    # Were the anchor the server's own value, the client's delta would be off by the rounding of the download.
    codec = Cast(name=name)
    running, start = federation(codec=codec, num_rounds=1, clients_per_round=1)
    recorded = Recorded(running.runtime)
    running = Federation(**(vars(running) | {"runtime": recorded}))
    [outcome] = run(running, start)
    delta, _ = decode(recorded.up[0].payload, running.spec, codec)
    expected = {key: (value.double() + delta[key].double()).float() for key, value in start.items()}
    assert_same_bits(outcome.params, expected)
    downloaded, _ = decode(next(iter(recorded.down.values())), running.spec, codec)
    assert_same_bits(downloaded, {key: value.to(codec.dtype).float() for key, value in start.items()})


def test_a_diverging_run_ends_with_a_hint():
    with pytest.raises(RoundError, match=r"(?s)round 1: 0 of 4 replies are usable.*hint: .*lower `client.lr`"):
        run(*federation(lr=1e30))


def test_the_task_of_these_tests_is_balanced():
    assert torch.bincount(brightness(60, seed=0).targets.values).equal(tensor([20, 20, 20]))
