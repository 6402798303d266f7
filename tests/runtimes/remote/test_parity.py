"""A deployment computes what a simulation does: the same bits with the same lanes, and the same ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.runtimes.remote.small_sites import SiteProgram, Small, link_of, remote_of

from fedelta.aggregation.means import Clipped
from fedelta.aggregation.robust import Median
from fedelta.catalog import LOW_RANK
from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.quantize import Integers
from fedelta.codecs.sparse import TopK
from fedelta.federation.base import Standing
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.strategies.fedavg import FedAvg, FedAvgM
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto
from fedelta.strategies.fedluar import FedLuar
from fedelta.strategies.fednova import FedNova
from fedelta.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from fedelta.strategies.scaffold import Scaffold
from fedelta.tuning.accumulator import Accumulator
from fedelta.tuning.full import Full
from fedelta.tuning.parallel import Parallel

SIZES = {"clients_per_round": 3, "num_rounds": 4}
EXITS = {"num_heads": 2, "mlp_width": 24, "head_width": 12}
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


@pytest.mark.parametrize("name", LOW_RANK)
def test_low_rank_aggregation_gives_the_bits_of_a_simulation_with_ranks_that_only_the_server_knows(name: str):
    small = Small(FedAvg(**SIZES), aggregation=LOW_RANK[name](), ranks={0: 1, 1: 2, 2: 2, 3: 1})
    assert_same(deployed(small), simulated(small))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_the_bits_of_a_simulation(name: str):
    small = Small(STRATEGIES[name])
    assert_same(deployed(small), simulated(small))


def resumed(small: Small, folder: Path, after: int) -> list[RoundOutcome]:
    """A deployment whose server is killed after a round, and goes on from its checkpoint with the same sites."""
    link = link_of(small)
    remote = remote_of(small, link)
    outcomes, mark = [], ""
    for outcome in federate(small.federation(remote), small.standing):
        outcomes.append(outcome)
        if outcome.round == after:
            mark = remote.snapshot(folder, outcome.round)
        if outcome.round == after + 1:  # a round whose checkpoint was not written
            break
    again = remote_of(small, link)
    again.restore(folder, mark)
    last = outcomes[after - 1]
    num_bytes = sum(transfer.payload_bytes for outcome in outcomes[:after] for transfer in outcome.transfers)
    standing = Standing(last.params, last.state, last.round, num_bytes, last.claimed, mirror=last.mirror)
    return [*outcomes[:after], *federate(small.federation(again), standing)]


KINDS = {
    "control variates": Small(Scaffold(**SIZES)),
    "statistics of batch norms": Small(FedAvg(**SIZES), Parallel(), "small-resnet"),
    "local batch norms": Small(FedAvg(**SIZES), Parallel(), "small-resnet", batch_norm="local"),
    "full": Small(FedAvg(**SIZES), Full()),
    "residuals": Small(FedAvg(**SIZES), channel=Channel(down=Cast(), up=Integers())),
    "residuals and adrift": Small(STRATEGIES["fedlama-auto"], channel=Channel(down=Integers(), up=Integers())),
    "tiers": Small(Scaffold(**SIZES), Accumulator(**EXITS), depths={0: 1, 1: 2, 2: 1, 3: 2}),
    "tiers and windows": Small(STRATEGIES["fedlama"], Accumulator(**EXITS), depths={0: 1, 1: 2, 2: 1, 3: 2}),
    "clipping": Small(FedAvg(**SIZES, mean=Clipped())),
    "median": Small(FedAvg(**SIZES, mean=Median())),
    "changes": Small(Scaffold(**SIZES), channel=Channel(down=Integers(name="int4"), up=Integers(), entropy="zstd")),
    "changes and exact uploads": Small(Scaffold(**SIZES), channel=Channel(down=Integers(name="int4"))),
    "changes and windows": Small(STRATEGIES["fedlama"], channel=Channel(down=Integers(name="int4"), up=TopK(k=0.1))),
    "control variates in float16": Small(Scaffold(**SIZES), channel=Channel(down=Cast(name="float16"))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_clients_keep_or_send_gives_the_bits_of_a_simulation(kind: str):
    small = KINDS[kind]
    assert_same(deployed(small), simulated(small))


@pytest.mark.parametrize(
    "kind",
    ["local batch norms", "residuals and adrift", "tiers", "tiers and windows", "changes", "changes and windows"],
)
def test_a_server_that_goes_on_from_its_checkpoint_ends_in_the_same_bits(kind: str, tmp_path: Path):
    small = KINDS[kind]
    simulation = simulated(small)
    for after in (1, 2):
        assert_same(resumed(small, tmp_path, after), simulation)


@pytest.mark.parametrize("name", ["scaffold", "fedlama", "fedavg"])
def test_a_server_that_begins_anew_with_sites_that_know_more_ends_in_the_same_bits(name: str):
    small = Small(STRATEGIES[name])
    link = link_of(small)
    for _ in range(2):  # the second server knows nothing of the first; the sites remember all its rounds
        outcomes = list(federate(small.federation(remote_of(small, link)), small.standing))
    assert_same(outcomes, simulated(small))


@pytest.mark.parametrize(
    "kind", ["control variates", "tiers", "control variates in float16", "changes and exact uploads"]
)
def test_control_variates_survive_the_loss_of_a_sites_disk(kind: str, tmp_path: Path):
    small = KINDS[kind]
    link = link_of(small)
    remote = remote_of(small, link)
    outcomes = []
    for outcome in federate(small.federation(remote), small.standing):
        outcomes.append(outcome)
        if outcome.round == 2:
            for site in link.sites.values():
                assert isinstance(site.handler, SiteProgram)
                assert site.handler.versions
                site.handler.versions.clear()
            # The server is killed at the same time: its copies are on its disk.
            remote.restore(tmp_path, remote.snapshot(tmp_path, outcome.round))
    simulation = simulated(small)
    assert all(t in outcomes[2].transfers for t in simulation[2].transfers)
    assert len(outcomes[2].transfers) > len(simulation[2].transfers)
    outcomes[2] = replace(outcomes[2], transfers=simulation[2].transfers)
    assert_same(outcomes, simulation)
