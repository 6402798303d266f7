"""Clients of different depth: what each holds, and what travels, runs and is averaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from tests.builders import (
    assert_close,
    evaluated,
    jobs_for,
    remembered,
    start_of,
    tiny_backbone,
    tiny_data,
    tiny_engine,
)
from tests.contracts.test_strategies import STRATEGIES

from fedelta.aggregation.robust import Median, Trimmed
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.data.clients import Clients
from fedelta.engine.exits import ExitSettings
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings, Job, Trained
from fedelta.federation.client import Site
from fedelta.federation.records import Reply, RoundOutcome
from fedelta.federation.rounds import Federation, Standing, federate
from fedelta.federation.tiers import Tiers
from fedelta.models.hub import Backbone
from fedelta.params import Params, select
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.combined import Combined
from fedelta.tuning.exit_heads import ExitHeads
from fedelta.tuning.exits import exit_blocks, owned_at
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

ACCUMULATOR = Accumulator(num_heads=2, mlp_width=24, head_width=12)
WITH_LORA = Combined(methods=(ACCUMULATOR, Lora(r=2)))
SIZES = (5, 7, 4, 8)


# What each holds.


def owned(method: TuningMethod, depth: int, answers: Iterable[int], family: str = "vit") -> frozenset[str]:
    backbone = tiny_backbone(family, num_hidden_layers=3)
    return owned_at(backbone, method.apply(backbone, Lanes(1), stream(0)), depth, set(answers))


def blocks_of(names: Iterable[str]) -> set[str]:
    return {name.removeprefix("vit.layers.").partition(".")[0] for name in names}


def test_all_clients_hold_the_accumulator_and_those_that_run_a_block_hold_its_position():
    all_of_it, shallow = owned(ACCUMULATOR, 3, [3]), owned(ACCUMULATOR, 1, [1])
    assert all_of_it - shallow == {"vit.layers.1.position", "vit.layers.2.position"}
    assert owned(ACCUMULATOR, 2, [1, 2]) == owned(ACCUMULATOR, 2, [2]) == shallow | {"vit.layers.1.position"}


def test_a_head_of_its_own_belongs_to_those_who_answer_there():
    def heads(*blocks: int) -> set[str]:
        return {f"vit.layers.{block}.exit_head.out.{name}" for block in blocks for name in ("weight", "bias")}

    assert owned(ExitHeads(), 2, [2]) == heads(1)
    assert owned(ExitHeads(), 2, [1, 2]) == heads(0, 1)
    assert owned(ExitHeads(), 3, [3]) == heads(2)


def test_pairs_inside_of_blocks_belong_to_those_who_run_them():
    names = owned(Combined(methods=(ExitHeads(), Lora(r=2))), 2, [2])
    pairs = {name for name in names if "lora" in name}
    assert blocks_of(pairs) == {"0", "1"}
    assert len(pairs) == 2 * 2 * 2  # A and B of q and v in two blocks
    assert blocks_of(names - pairs) == {"1"}


def test_block_ten_is_not_a_part_of_block_one():
    backbone = tiny_backbone(num_hidden_layers=11)
    spec = ACCUMULATOR.apply(backbone, Lanes(1), stream(0))
    assert "vit.layers.10.position" not in owned_at(backbone, spec, 2, {2})


def test_a_plan_is_cut_to_what_each_client_holds():
    tiers = Tiers({0: 1, 1: 2, 2: 1, 3: 2}, {1: frozenset("a"), 2: frozenset("ab")})
    names = ("a", "b", "control/a", "control/b")
    plan = RoundPlan(4, {0: names, 1: names}, {0: ("b",), 1: ("b", "control/b")}, num_clients=4)
    restricted = tiers.restrict(plan)
    assert restricted.download == {0: ("a", "control/a"), 1: names}
    assert restricted.upload == {0: (), 1: ("b", "control/b")}
    assert (restricted.round, restricted.num_clients, restricted.cohort) == (4, 4, (0, 1))
    counts = {name: restricted.num_holders[name] for name in names}
    assert counts == {"a": 4, "control/a": 4, "b": 2, "control/b": 2}


def test_holders_of_tensors_that_are_due_are_counted_also_for_a_cohort_without_clients():
    # Client-level privacy adds noise to them all the same, and divides by the number of their holders.
    tiers = Tiers({4: 1, 5: 2, 6: 2}, {1: frozenset({"a"}), 2: frozenset({"a", "b"})})
    plan = tiers.restrict(RoundPlan(1, download={}, upload={}, num_clients=3, due=("a", "b")))
    assert plan.num_holders == {"a": 3, "b": 2}


# Whole federations.


@dataclass
class Listening:
    """Keeps what went down and came up."""

    site: Site
    down: list[Mapping[int, bytes]] = field(default_factory=list)
    up: list[dict[int, Reply]] = field(default_factory=list)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> list[Reply]:
        replies = list(self.site.run(plan, payloads))
        self.down.append(payloads)
        self.up.append({reply.client_id: reply for reply in replies})
        return replies

    def accept(self, client_ids: Iterable[int]) -> None:
        self.site.accept(client_ids)


@dataclass(frozen=True)
class Run:
    """A federation that has run."""

    start: Params
    outcomes: list[RoundOutcome]
    runtime: Listening
    site: Site
    calls: list[int]  # the blocks that ran, from 1

    @property
    def params(self) -> Params:
        return self.outcomes[-1].params

    def delta(self, client_id: int, round: int = 1) -> Params:
        """What came up from a client."""
        return decode(self.runtime.up[round - 1][client_id].payload, self.site.wire, self.site.channel.up)[0]


def run(
    strategy: Strategy,
    depths: Sequence[int],
    *,
    method: TuningMethod = WITH_LORA,
    train: str = "deepest",
    lanes: int = 2,
) -> Run:
    """Client i runs `depths[i]` of three blocks."""
    client = ClientSettings(batch_size=4, lr=0.05, optimizer=Sgd(momentum=0.0), local_steps=strategy.local_steps)
    engine, backbone = tiny_engine(
        method, tiny_data(), lanes=lanes, client=client, exits=ExitSettings(train=train), num_hidden_layers=3
    )  # fmt: skip
    calls = _counted(backbone)
    partition = dict(enumerate(torch.arange(24).split(SIZES)))
    exits = {depth: range(depth if train == "deepest" else 1, depth + 1) for depth in set(depths)}
    tiers = Tiers(
        dict(enumerate(depths)),
        {depth: owned_at(backbone, engine.spec, depth, answers) for depth, answers in exits.items()},
    )
    site = Site(
        engine, partition, Channel(), seed=0, num_rounds=strategy.num_rounds, steering=strategy.steering, tiers=tiers
    )  # fmt: skip
    runtime = Listening(site)
    federation = Federation(
        strategy=strategy, runtime=runtime, channel=Channel(), spec=engine.spec, clients=Clients.of(range(4)), seed=0,
        evaluate=lambda params: evaluated(), effective_steps=engine.client.effective_steps, tiers=tiers,
    )  # fmt: skip
    start = start_of(engine)
    outcomes = list(federate(federation, Standing(start, strategy.init(start, engine.spec))))
    return Run(start, outcomes, runtime, site, calls)


def _counted(backbone: Backbone) -> list[int]:
    calls: list[int] = []
    for number, block in enumerate(exit_blocks(backbone.module), start=1):
        block.base.register_forward_hook(lambda *_, number=number: calls.append(number))
    return calls


ALL_FOUR = FedAvg(clients_per_round=4, num_rounds=1)


@pytest.mark.parametrize("method", [WITH_LORA, ExitHeads()], ids=["accumulator+lora", "exit-heads"])
@pytest.mark.parametrize("train", ["deepest", "random"])
def test_clients_are_sent_and_send_what_they_hold_and_no_more(method: TuningMethod, train: str):
    finished = run(ALL_FOUR, [1, 2, 3, 1], method=method, train=train)
    site, [outcome] = finished.site, finished.outcomes
    sizes = {(transfer.client_id, transfer.direction): transfer.payload_bytes for transfer in outcome.transfers}
    groups = {(transfer.client_id, transfer.direction): transfer.tensor_bytes for transfer in outcome.transfers}
    assert not outcome.rejections
    for client_id, depth in enumerate([1, 2, 3, 1]):
        backbone = tiny_backbone(num_hidden_layers=3)
        spec = method.apply(backbone, Lanes(1), stream(0))
        owned_names = owned_at(backbone, spec, depth, range(depth if train == "deepest" else 1, depth + 1))
        names = [name for name in site.engine.spec if name in owned_names]
        down, _ = decode(finished.runtime.down[0][client_id], site.wire, site.channel.down)
        assert list(down) == list(finished.delta(client_id)) == names
        expected, _ = encode(select(finished.start, names), site.wire, site.channel.down)
        assert sizes[client_id, "down"] == sizes[client_id, "up"] == len(expected)
        # float32: four bytes a scalar.
        num_bytes = 4 * sum(site.engine.spec.tensors[name].numel for name in names)
        assert sum(groups[client_id, "up"].values()) == sum(groups[client_id, "down"].values()) == num_bytes
    if method is WITH_LORA:
        assert sizes[0, "up"] == sizes[3, "up"] < sizes[1, "up"] < sizes[2, "up"]


def test_blocks_above_a_client_never_run():
    assert set(run(ALL_FOUR, [1, 2, 1, 2]).calls) == {1, 2}
    assert set(run(ALL_FOUR, [1, 1, 1, 1], train="sum").calls) == {1}
    # Depth 1: 5 and 4 rows, two steps side by side. Depth 3: 7 and 8 rows, two steps side by side.
    calls = run(ALL_FOUR, [1, 3, 1, 3]).calls
    assert [calls.count(number) for number in (1, 2, 3)] == [4, 2, 2]


def test_a_tensor_is_averaged_over_those_who_hold_it():
    # Clients 0 and 1 with 5 and 7 examples; what belongs to blocks 2 and 3 is the delta of client 1 alone.
    finished = run(FedAvg(clients_per_round=4, num_rounds=1), [1, 3, 2, 3], train="sum")
    deltas = [finished.delta(client_id) for client_id in range(4)]
    assert {len(delta) for delta in deltas} == {len(deltas[0]), len(deltas[1]), len(deltas[2])}
    for name, start in finished.start.items():
        holders = [client_id for client_id in range(4) if name in deltas[client_id]]
        layer = int(name.removeprefix("vit.layers.").partition(".")[0])
        assert holders == [[0, 1, 2, 3], [1, 2, 3], [1, 3]][layer]
        total = sum(SIZES[client_id] for client_id in holders)
        mean = sum(SIZES[client_id] / total * deltas[client_id][name].double() for client_id in holders)
        torch.testing.assert_close(finished.params[name], (start.double() + mean).float())


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_tensor_that_no_client_holds_stays_as_it_is(name: str):
    strategy = STRATEGIES[name].model_copy(update={"num_rounds": 4})
    finished = run(strategy, [1, 2, 2, 1], train="sum")
    for tensor_name, start in finished.start.items():
        if tensor_name.startswith("vit.layers.2."):
            assert torch.equal(finished.params[tensor_name], start)
    assert not torch.equal(finished.params["vit.layers.0.position"], finished.start["vit.layers.0.position"])


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_tensor_that_no_client_of_the_cohort_holds_stays_for_that_round(name: str):
    strategy = STRATEGIES[name].model_copy(update={"num_rounds": 8, "clients_per_round": 1})
    finished = run(strategy, [1, 3, 1, 3], train="sum")
    alone, previous, tried = "vit.layers.2.position", finished.start, []
    for outcome in finished.outcomes:
        tried.append([1, 3, 1, 3][outcome.cohort[0]])
        if tried[-1] == 1:
            assert torch.equal(outcome.params[alone], previous[alone])
        previous = outcome.params
    assert set(tried) == {1, 3}
    if tried.index(3) < len(tried) - 1:
        assert not torch.equal(finished.params[alone], finished.start[alone])


RUNS = {
    **STRATEGIES,
    "median": FedAvg(clients_per_round=3, num_rounds=2, mean=Median()),
    "trimmed": FedAvg(clients_per_round=3, num_rounds=2, mean=Trimmed(fraction=0.34)),
}


# How exits are trained is the clients' affair: three strategies that remember nothing, control variates and windows
# stand for the others.
OFTEN = ("fedavg", "scaffold", "fedlama")


@pytest.mark.parametrize(
    ("name", "train"),
    [
        pytest.param(name, train, marks=[] if train == "deepest" or name in OFTEN else pytest.mark.slow)
        for name in RUNS
        for train in ("deepest", "random", "distill")
    ],
)
def test_every_strategy_runs_with_clients_of_different_depth(name: str, train: str):
    method = WITH_LORA if train != "random" else Combined(methods=(ExitHeads(), Lora(r=2)))
    finished = run(RUNS[name], [1, 3, 2, 3], method=method, train=train)
    assert not any(outcome.rejections for outcome in finished.outcomes)
    assert all(bool(torch.isfinite(value).all()) for value in finished.params.values())
    assert any(not torch.equal(finished.params[name], start) for name, start in finished.start.items())


@pytest.mark.parametrize("train", ["deepest", "random", "sum"])
def test_the_number_of_lanes_does_not_matter(train: str):
    strategy = FedAvg(clients_per_round=4, num_rounds=2)
    alone, beside = (run(strategy, [1, 3, 2, 3], train=train, lanes=lanes) for lanes in (1, 3))
    assert_close(alone.params, beside.params, rtol=1e-3, atol=1e-5)
    for outcome, outcome_in_lanes in zip(alone.outcomes, beside.outcomes, strict=True):
        assert outcome.train_loss == pytest.approx(outcome_in_lanes.train_loss, rel=1e-4)


def test_a_control_variate_is_divided_by_all_who_hold_its_tensor():
    # All clients hold block 1, clients 1 and 2 hold block 2; the cohort of three has at least one of these.
    finished = run(STRATEGIES["scaffold"].model_copy(update={"num_rounds": 1}), [1, 3, 3, 1], train="sum")
    [outcome] = finished.outcomes
    deltas = [finished.delta(client_id) for client_id in outcome.cohort]
    for name, num_holders in (("vit.layers.0.position", 4), ("vit.layers.1.position", 2)):
        changes = [delta[f"control/{name}"] for delta in deltas if f"control/{name}" in delta]
        assert 1 <= len(changes) <= num_holders
        torch.testing.assert_close(outcome.state[f"control/{name}"], (sum(changes) / num_holders).float())


def test_what_a_shallow_client_remembers_of_tensors_that_it_does_not_hold_is_nothing():
    finished = run(STRATEGIES["scaffold"].model_copy(update={"clients_per_round": 4}), [1, 3, 3, 1])
    for name, control in remembered(finished.site)[0].items():
        is_zero = bool((control == 0).all())
        assert is_zero == name.startswith(("control/vit.layers.1.", "control/vit.layers.2."))


def test_what_a_diverged_client_leaves_in_a_lane_does_not_reach_a_shallow_one():
    engine, backbone = tiny_engine(WITH_LORA, tiny_data(), num_hidden_layers=3)
    start = start_of(engine)
    owned_names = owned_at(backbone, engine.spec, 1, {1})
    [job] = jobs_for((5,), {name: value for name, value in start.items() if name in owned_names})
    [fresh] = engine.train([replace(job, depth=1)], 0.05)
    [deep] = jobs_for((5,), {name: torch.full_like(value, torch.nan) for name, value in start.items()})
    list(engine.train([deep], 0.05))
    [job] = jobs_for((5,), {name: value for name, value in start.items() if name in owned_names})
    [refilled] = engine.train([replace(job, depth=1)], 0.05)
    for name in owned_names:
        assert torch.equal(fresh.delta[name], refilled.delta[name])


def test_every_client_draws_its_exits_anew_in_every_round():
    engine, _ = tiny_engine(ExitHeads(), tiny_data(), exits=ExitSettings(train="random"))
    site = Site(engine, dict(enumerate(torch.arange(24).split(SIZES))), Channel(), seed=0, num_rounds=2)
    payload, _ = encode(start_of(engine), site.wire, site.channel.down)
    seeds: list[int] = []
    train = engine.train

    def listen(jobs: Sequence[Job], lr: float, round: int) -> Iterator[Trained]:
        seeds.extend(job.exits.initial_seed() for job in jobs)
        return train(jobs, lr, round)

    engine.train = listen
    for round in (1, 2, 1):
        everything = dict.fromkeys((0, 1), engine.spec.shared)
        list(site.run(RoundPlan(round, everything, everything, num_clients=4), dict.fromkeys((0, 1), payload)))
    assert len(set(seeds)) == 4
    assert seeds[:2] == seeds[4:]
