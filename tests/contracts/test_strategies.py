"""What every strategy keeps with every mean, and that it runs beside each kind of tuning method."""

from __future__ import annotations

import itertools

import pytest
from tests.builders import CONVOLUTIONAL
from tests.contracts.test_tuning_methods import METHODS, ON_CONVOLUTIONS

from fedelta import catalog
from fedelta.errors import ConfigError
from fedelta.strategies.base import Strategy
from fedelta.strategies.fedavg import FedAvg, FedAvgM
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.fedluar import FedLuar
from fedelta.strategies.fednova import FedNova
from fedelta.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from fedelta.strategies.scaffold import Scaffold
from fedelta.strategies.windows import Windows
from fedelta.testing import check, contracts
from fedelta.testing.contract import sentence_of
from fedelta.testing.federations import played, real_clients_train_with_it

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
RUN = sentence_of(real_clients_train_with_it)
# FedNova and SCAFFOLD have the weighted mean and no other.
WITH_MEANS = [name for name, strategy in STRATEGIES.items() if "mean" in type(strategy).model_fields]
OTHER_MEANS = [name for name in catalog.MEANS if name != "weighted"]
# Kinds of tuning methods beside those of `check`, which are lanes, one lane in place and statistics.
OTHER_KINDS = ("head", "accumulator+adapter")  # one group; exits
EVERY_METHOD = (*catalog.TUNING_METHODS, "lora+bias", "accumulator+adapter")


def test_the_table_names_every_strategy():
    assert list(STRATEGIES) == list(catalog.STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_keeps_every_contract(name: str):
    check(STRATEGIES[name])


@pytest.mark.parametrize(("name", "mean"), list(itertools.product(WITH_MEANS, OTHER_MEANS)))
def test_a_strategy_keeps_every_contract_with_every_mean(name: str, mean: str):
    strategy = STRATEGIES[name].model_copy(update={"mean": catalog.MEANS[mean]()})
    for contract in contracts(strategy):
        if contract.sentence != RUN:  # each mean runs in its own contracts
            contract()


@pytest.mark.parametrize(("name", "method"), list(itertools.product(STRATEGIES, OTHER_KINDS)))
def test_every_strategy_runs_beside_every_kind_of_tuning_method(name: str, method: str):
    run(STRATEGIES[name], method)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), list(itertools.product(STRATEGIES, EVERY_METHOD)))
def test_every_strategy_runs_with_every_tuning_method(name: str, method: str):
    run(STRATEGIES[name], method)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "method"), list(itertools.product(WITH_MEANS, catalog.MEANS, ("lora", "parallel")))
)
def test_every_strategy_runs_with_every_mean_with_statistics_and_without(name: str, mean: str, method: str):
    run(STRATEGIES[name].model_copy(update={"mean": catalog.MEANS[mean]()}), method)


def run(strategy: Strategy, method_name: str) -> None:
    family = CONVOLUTIONAL[0] if method_name in ON_CONVOLUTIONS else "vit"
    strategy = fitted(strategy, method_name)
    federation, standing, outcomes = played(strategy, METHODS[method_name], family)
    real_clients_train_with_it(lambda: (federation, standing, outcomes))
    saves = isinstance(strategy, Windows) or (isinstance(strategy, FedLuar) and strategy.num_recycled > 0)
    assert (min(outcome.synced_fraction for outcome in outcomes) < 1) == saves


def fitted(strategy: Strategy, method_name: str) -> Strategy:
    """FedLUAR recycles nothing where a method has one group, the head: it refuses to, as nothing would come up."""
    if not isinstance(strategy, FedLuar) or method_name != "head":
        return strategy
    with pytest.raises(ConfigError, match="expected at most 0: only one group is tuned"):
        played(strategy, METHODS[method_name], "vit")
    return strategy.model_copy(update={"num_recycled": 0})
