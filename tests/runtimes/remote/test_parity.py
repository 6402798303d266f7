"""A deployment computes what a simulation does: the same bits with the same lanes, and the same ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.runtimes.remote.small_sites import Small, link_of, remote_of

from fedelta.codecs.channel import Channel
from fedelta.codecs.quantize import Int8
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.strategies.base import Strategy
from fedelta.strategies.fedavg import FedAvg, FedAvgM
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.fedluar import FedLuar
from fedelta.strategies.fednova import FedNova
from fedelta.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from fedelta.strategies.scaffold import Scaffold

SIZES = {"clients_per_round": 3, "num_rounds": 4}
STRATEGIES = {
    "fedavg": FedAvg(**SIZES),
    "fedavgm": FedAvgM(**SIZES),
    "fedadagrad": FedAdagrad(**SIZES),
    "fedadam": FedAdam(**SIZES),
    "fedyogi": FedYogi(**SIZES),
    "fednova": FedNova(**SIZES),
    "scaffold": Scaffold(**SIZES),
    "fedlama": FedLama(clients_per_round=3, num_rounds=4, phi=2, tau=2),
    "fedlama-auto": FedLamaAuto(clients_per_round=3, num_rounds=6, phi=2, tau=2, share=0.5),
    "fedluar": FedLuar(**SIZES, num_recycled=1),
}


def test_the_table_names_every_strategy():
    from fedelta import catalog

    assert list(STRATEGIES) == list(catalog.STRATEGIES)


def simulated(small: Small) -> list[RoundOutcome]:
    return list(federate(small.federation(small.site(tuple(small.partition))), small.standing))


def deployed(small: Small) -> list[RoundOutcome]:
    return list(federate(small.federation(remote_of(small, link_of(small))), small.standing))


def assert_same(deployment: list[RoundOutcome], simulation: list[RoundOutcome]) -> None:
    """The same numbers in every round, to the last bit."""
    assert len(deployment) == len(simulation)
    for ours, theirs in zip(deployment, simulation, strict=True):
        assert ours.rejections == theirs.rejections
        assert ours.transfers == theirs.transfers
        assert (ours.cohort, ours.num_examples, ours.train_loss) == (
            theirs.cohort,
            theirs.num_examples,
            theirs.train_loss,
        )
        assert all(torch.equal(ours.params[name], theirs.params[name]) for name in theirs.params)
        assert all(torch.equal(ours.state[name], theirs.state[name]) for name in theirs.state)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_the_bits_of_a_simulation(name: str):
    small = Small(STRATEGIES[name])
    assert_same(deployed(small), simulated(small))
