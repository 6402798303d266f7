"""What holds for every strategy with every mean, whatever it computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.builders import CONVOLUTIONAL, assert_same_bits, start_of, tiny_data, tiny_engine
from tests.contracts.test_tuning_methods import METHODS
from tests.strategies.hand import PLAN, SPEC, params, updates

from fedelta.codecs.cast import Cast
from fedelta.federation.client import Site
from fedelta.federation.optimizers import Sgd
from fedelta.federation.rounds import Federation, federate
from fedelta.federation.training import ClientSettings, Evaluation
from fedelta.runtimes.simulation import Simulation
from fedelta.seeds import stream
from fedelta.strategies import AnyStrategy
from fedelta.strategies.base import Strategy, Update
from fedelta.strategies.fedavg import FedAvg, FedAvgM
from fedelta.strategies.fednova import FedNova
from fedelta.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from fedelta.strategies.means import Clipped, Median, Trimmed
from fedelta.strategies.scaffold import Scaffold

SIZES = {"clients_per_round": 3, "num_rounds": 2}
STRATEGIES = {
    "fedavg": FedAvg(**SIZES),
    "fedavgm": FedAvgM(**SIZES),
    "fedadagrad": FedAdagrad(**SIZES),
    "fedadam": FedAdam(**SIZES),
    "fedyogi": FedYogi(**SIZES),
    "fednova": FedNova(**SIZES),
    "scaffold": Scaffold(**SIZES),
}
MEANS = (Median(), Trimmed(), Clipped())
# FedNova and SCAFFOLD have the weighted mean and no other.
WITH_MEANS = [name for name, strategy in STRATEGIES.items() if "mean" in type(strategy).model_fields]
ALL = [
    *(pytest.param(strategy, id=name) for name, strategy in STRATEGIES.items()),
    *(
        pytest.param(STRATEGIES[name].model_copy(update={"mean": mean}), id=f"{name}-{mean.name}")
        for name, mean in itertools.product(WITH_MEANS, MEANS)
    ),
]


def sent(strategy: Strategy) -> list[Update]:
    """The updates of `hand`, with control variates where the strategy has them."""
    state = strategy.init(params(), SPEC)
    beside = {name: torch.ones_like(tensor) for name, tensor in state.items() if name.startswith("control/")}
    return [Update(each.client_id, each.num_examples, each.delta | beside, 2.0) for each in updates()]


def test_the_table_names_every_strategy():
    names = [name for kind in AnyStrategy.__args__ for name in kind.model_fields["name"].annotation.__args__]
    assert list(STRATEGIES) == names


@pytest.mark.parametrize("strategy", ALL)
def test_update_keeps_names_shapes_types_and_its_inputs(strategy: Strategy):
    before, given, state = params(), sent(strategy), strategy.init(params(), SPEC)
    copied = {name: tensor.clone() for name, tensor in state.items()}
    after, later = strategy.update(state, before, PLAN, given, SPEC)
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
    after, _ = strategy.update(strategy.init(params(), SPEC), params(), PLAN, still, SPEC)
    assert_same_bits(after, params())


@pytest.mark.parametrize("strategy", ALL)
def test_the_plan_asks_a_cohort_of_distinct_clients_for_what_it_sends(strategy: Strategy):
    plan = strategy.plan(strategy.init(params(), SPEC), 4, range(9), SPEC, stream(0, "cohort", 4))
    assert (plan.round, plan.num_clients, len(plan.cohort)) == (4, 9, 3)
    assert plan.download.keys() == plan.upload.keys() <= set(range(9))
    assert all({"a", "b"} <= set(names) for names in plan.upload.values())


def runs_of() -> list[object]:
    """Every strategy with every tuning method; every mean with one that has running statistics and one that has not."""
    every = itertools.product(STRATEGIES.items(), METHODS)
    robust = itertools.product(WITH_MEANS, MEANS, ["lora", "parallel"])
    return [
        *(pytest.param(strategy, method, id=f"{name}-{method}") for (name, strategy), method in every),
        *(
            pytest.param(STRATEGIES[name].model_copy(update={"mean": mean}), method, id=f"{name}-{mean.name}-{method}")
            for name, mean, method in robust
        ),
    ]


@pytest.mark.parametrize(("strategy", "method_name"), runs_of())
def test_every_strategy_runs_with_every_tuning_method(strategy: Strategy, method_name: str):
    method = METHODS[method_name]
    family = CONVOLUTIONAL[0] if "parallel" in method_name or "conv" in method_name else "vit"
    client = ClientSettings(batch_size=4, lr=0.05, optimizer=Sgd())
    engine, _ = tiny_engine(method, tiny_data(family), family=family, lanes=3, client=client)
    partition = dict(enumerate(torch.arange(24).split([5, 7, 4, 8])))
    site = Site(engine, partition, Cast(), seed=0, num_rounds=2, memory=strategy.memory)
    running = Federation(
        strategy=strategy, runtime=Simulation(site), codec=Cast(), spec=engine.spec, client_ids=range(4), seed=0,
        evaluate=lambda params: Evaluation(0.0, 0.0), effective_steps=engine.client.effective_steps,
    )  # fmt: skip
    start = start_of(engine)
    *_, last = federate(running, start, strategy.init(start, engine.spec))
    assert not last.rejections
    still = {name for name in start if torch.equal(start[name], last.params[name])}
    # The softmax takes out whatever a bias adds to all keys of a query: its gradient is zero.
    assert still <= {name for name in engine.spec.shared if "k_proj" in name and name.endswith("bias")}
