"""What holds for every strategy with every mean, whatever it computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.builders import CONVOLUTIONAL, assert_same_bits, start_of, tiny_data, tiny_engine
from tests.contracts.test_tuning_methods import METHODS, ON_CONVOLUTIONS
from tests.strategies.hand import SPEC, params, step, updates
from tests.strategies.windowed import running

from fedelta import catalog
from fedelta.aggregation.base import Update
from fedelta.aggregation.means import Clipped, Uniform
from fedelta.aggregation.robust import Median, Trimmed
from fedelta.catalog import TUNING_METHODS
from fedelta.codecs.channel import Channel
from fedelta.engine.exits import ExitSettings
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings
from fedelta.errors import ConfigError
from fedelta.federation.client import Site
from fedelta.federation.rounds import Standing, federate
from fedelta.params import ParamSpec, select
from fedelta.seeds import stream
from fedelta.strategies.base import RoundPlan, Strategy
from fedelta.strategies.fedavg import FedAvg, FedAvgM
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.fedluar import FedLuar
from fedelta.strategies.fednova import FedNova
from fedelta.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from fedelta.strategies.scaffold import Scaffold
from fedelta.strategies.windows import Windows

SIZES = {"clients_per_round": 3, "num_rounds": 2}
STRATEGIES = {
    "fedavg": FedAvg(**SIZES),
    "fedavgm": FedAvgM(**SIZES),
    "fedadagrad": FedAdagrad(**SIZES),
    "fedadam": FedAdam(**SIZES),
    "fedyogi": FedYogi(**SIZES),
    "fednova": FedNova(**SIZES),
    "scaffold": Scaffold(**SIZES),
    # Windows of two rounds. FedLAMA chooses intervals after the first of them; with half the traffic nothing comes up
    # after round 1.
    "fedlama": FedLama(clients_per_round=3, num_rounds=4, phi=2, tau=2),
    "fedlama-auto": FedLamaAuto(**SIZES, phi=2, tau=2, share=0.5),
    "fedluar": FedLuar(**SIZES, num_recycled=1),
}
MEANS = (Uniform(), Median(), Trimmed(), Clipped())
# FedNova and SCAFFOLD have the weighted mean and no other.
WITH_MEANS = [name for name, strategy in STRATEGIES.items() if "mean" in type(strategy).model_fields]
ALL = [
    *(pytest.param(strategy, id=name) for name, strategy in STRATEGIES.items()),
    *(
        pytest.param(STRATEGIES[name].model_copy(update={"mean": mean}), id=f"{name}-{mean.name}")
        for name, mean in itertools.product(WITH_MEANS, MEANS)
    ),
]


def plan_of(strategy: Strategy, round: int = 2) -> RoundPlan:
    """The plan for five clients. After round 2 every strategy of the table asks for all tensors: a window ends."""
    return strategy.plan(strategy.init(params(), SPEC), round, range(5), SPEC, stream(0, "cohort", round))


def sent(strategy: Strategy) -> list[Update]:
    """The updates of `hand` from two clients of the plan, with control variates where the strategy has them."""
    state = strategy.init(params(), SPEC)
    beside = {name: torch.ones_like(tensor) for name, tensor in state.items() if name.startswith("control/")}
    plan = plan_of(strategy)
    return [
        Update(client_id, each.num_examples, select(each.delta | beside, plan.upload[client_id]), 2.0)
        for client_id, each in zip(plan.cohort, updates(), strict=False)
    ]


def test_the_table_names_every_strategy():
    assert list(STRATEGIES) == list(catalog.STRATEGIES)


@pytest.mark.parametrize("strategy", ALL)
def test_update_keeps_names_shapes_types_and_its_inputs(strategy: Strategy):
    before, given, state = params(), sent(strategy), strategy.init(params(), SPEC)
    copied = {name: tensor.clone() for name, tensor in state.items()}
    after, later = step(strategy, state, before, plan_of(strategy), given, SPEC)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in after.items()} == {
        name: (tensor.shape, torch.float32) for name, tensor in before.items()
    }
    assert later.keys() == state.keys()
    assert_same_bits(before, params())
    assert_same_bits(state, copied)
    for used, fresh in zip(given, sent(strategy), strict=True):
        assert_same_bits(used.delta, fresh.delta)


@pytest.mark.parametrize("strategy", ALL)
def test_no_movement_of_any_client_is_no_movement_of_the_server(strategy: Strategy):
    still = [
        Update(each.client_id, each.num_examples, {name: torch.zeros_like(t) for name, t in each.delta.items()}, 3.0)
        for each in sent(strategy)
    ]
    after, _ = step(strategy, strategy.init(params(), SPEC), params(), plan_of(strategy), still, SPEC)
    assert_same_bits(after, params())


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("round", [1, 2])
def test_the_plan_asks_a_cohort_of_distinct_clients_for_what_can_travel(strategy: Strategy, round: int):
    plan = plan_of(strategy, round)
    assert (plan.round, plan.num_clients, len(plan.cohort)) == (round, 5, 3)
    assert plan.download.keys() == plan.upload.keys() <= set(range(5))
    # What is sent depends on the round alone, so that every mean is over the same clients.
    [up] = set(plan.upload.values())
    wire = SPEC if strategy.steering is None else strategy.steering.extend(SPEC)
    assert list(up) == [name for name in wire if name in up]
    # A client that is new gets all of the model; in the middle of a window less, or nothing, may come up.
    assert all({"a", "b"} <= set(names) for names in plan.download.values())
    if round == 2 or not isinstance(strategy, Windows):
        assert {"a", "b"} <= set(up)


def runs_of() -> list[object]:
    """Every strategy with every tuning method, in one of its forms; every mean with statistics and without."""
    every = itertools.product(STRATEGIES.items(), [*TUNING_METHODS, "lora+bias", "accumulator+adapter"])
    robust = itertools.product(WITH_MEANS, MEANS, ["lora", "parallel"])
    return [
        *(pytest.param(strategy, method, id=f"{name}-{method}") for (name, strategy), method in every),
        *(
            pytest.param(STRATEGIES[name].model_copy(update={"mean": mean}), method, id=f"{name}-{mean.name}-{method}")
            for name, mean, method in robust
        ),
    ]


def fitted(strategy: Strategy, spec: ParamSpec) -> Strategy:
    """FedLUAR recycles nothing where a method has one group, the head: it refuses to, as nothing would come up."""
    if isinstance(strategy, FedLuar) and len(spec.sizes) == 1:
        with pytest.raises(ConfigError, match="expected at most 0: only one group is tuned"):
            strategy.init({}, spec)
        return strategy.model_copy(update={"num_recycled": 0})
    return strategy


@pytest.mark.parametrize(("strategy", "method_name"), runs_of())
def test_every_strategy_runs_with_every_tuning_method(strategy: Strategy, method_name: str):
    method = METHODS[method_name]
    family = CONVOLUTIONAL[0] if method_name in ON_CONVOLUTIONS else "vit"
    client = ClientSettings(batch_size=4, lr=0.05, optimizer=Sgd(), local_steps=strategy.local_steps)
    # At all exits, so that every head learns.
    exits = ExitSettings(train="sum")
    engine, _ = tiny_engine(method, tiny_data(family), family=family, lanes=3, client=client, exits=exits)
    strategy = fitted(strategy, engine.spec)
    partition = dict(enumerate(torch.arange(24).split([5, 7, 4, 8])))
    site = Site(engine, partition, Channel(), seed=0, num_rounds=strategy.num_rounds, steering=strategy.steering)
    start = start_of(engine)
    found = list(federate(running(strategy, site, site), Standing(start, strategy.init(start, engine.spec))))
    last = found[-1]
    assert not any(outcome.rejections for outcome in found)
    saves = isinstance(strategy, Windows) or (isinstance(strategy, FedLuar) and strategy.num_recycled > 0)
    assert (min(outcome.synced_fraction for outcome in found) < 1) == saves
    still = {name for name in start if torch.equal(start[name], last.params[name])}
    # The softmax takes out whatever a bias adds to all keys of a query: its gradient is zero.
    assert still <= {name for name in engine.spec.shared if "k_proj" in name and name.endswith("bias")}
