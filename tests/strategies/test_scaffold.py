"""SCAFFOLD by hand, from a client's step to the server's control variate, and its payloads in a real round."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.builders import assert_close, assert_same_bits, jobs_for, start_of, tiny_data, tiny_engine
from tests.strategies.hand import PLAN, SPEC, params, updates
from torch import tensor

from fedelta.codecs.cast import Cast
from fedelta.federation.client import Site
from fedelta.federation.optimizers import Sgd
from fedelta.federation.rounds import Federation, federate
from fedelta.federation.training import ClientSettings, Evaluation
from fedelta.params import add
from fedelta.runtimes.simulation import Simulation
from fedelta.seeds import stream
from fedelta.strategies.base import Strategy, Update
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.scaffold import Controls, Scaffold
from fedelta.tuning.head import Head


def federation(strategy: Strategy, *, lanes: int = 2) -> tuple[Federation, dict[str, torch.Tensor], Site]:
    client = ClientSettings(batch_size=4, lr=0.05, local_epochs=2, optimizer=Sgd(momentum=0.0))
    engine, _ = tiny_engine(Head(), tiny_data(), lanes=lanes, client=client)
    partition = dict(enumerate(torch.arange(24).split([6, 10, 8])))
    site = Site(engine, partition, Cast(), seed=0, num_rounds=4, memory=strategy.memory)
    running = Federation(
        strategy=strategy, runtime=Simulation(site), codec=Cast(), spec=engine.spec, client_ids=range(3), seed=0,
        evaluate=lambda params: Evaluation(0.0, 0.0),
    )  # fmt: skip
    return running, start_of(engine), site


def test_a_client_by_hand():
    # c = 1, c_i = 0.25: every gradient is corrected by 0.75. The client moved by -3 in 2 steps of 0.5:
    # c_i+ - c_i = -1 - (-3) / 1 = 2, so c_i+ = 2.25
    received, remembered = {"a": tensor(9.0), "control/a": tensor(1.0)}, {"control/a": tensor(0.25)}
    assert Controls().offset(received, remembered) == {"a": tensor(0.75)}
    sent, kept = Controls().conclude(received, remembered, {"a": tensor(-3.0)}, step_length=2 * 0.5)
    assert (sent, kept) == ({"control/a": tensor(2.0)}, {"control/a": tensor(2.25)})


def test_the_new_control_variate_is_the_mean_of_the_gradients():
    # One client alone, c = c_i = 0, plain SGD: w - y = lr * (sum of gradients), so c_i+ is their mean.
    gradients = tensor([1.0, -4.0, 6.0])
    _, kept = Controls().conclude(
        {"a": tensor(0.0), "control/a": tensor(0.0)}, {"control/a": tensor(0.0)}, {"a": -0.1 * gradients.sum()}, 3 * 0.1
    )
    torch.testing.assert_close(kept["control/a"], gradients.mean())


def test_the_server_by_hand():
    # a: 10 + 0.5 * (10 * 1 + 30 * -3) / 40 = 9. c: 2 + 2/5 * (10 * 4 + 30 * 8) / 40 = 2 + 0.4 * 7 = 4.8
    sent = [
        Update(0, 10, {"a": tensor(1.0), "control/a": tensor(4.0)}),
        Update(4, 30, {"a": tensor(-3.0), "control/a": tensor(8.0)}),
    ]
    state = {"control/a": tensor(2.0), "control/b": tensor([1.0, 1.0])}
    after, later = Scaffold(server_lr=0.5).update(state, params(), PLAN, sent)
    assert_close(after, {"a": tensor(9.0), "b": tensor([1.0, 2.0])}, rtol=0, atol=0)
    assert_close(later, {"control/a": tensor(4.8), "control/b": tensor([1.0, 1.0])}, rtol=1e-6, atol=0)


def test_without_control_variates_the_server_is_fedavg():
    zero = {f"control/{name}": torch.zeros_like(tensor) for name, tensor in params().items()}
    sent = [Update(each.client_id, each.num_examples, each.delta | zero) for each in updates()]
    strategy = Scaffold()
    found, state = strategy.update(strategy.init(params(), SPEC), params(), PLAN, sent)
    assert_same_bits(found, FedAvg().update({}, params(), PLAN, updates())[0])
    assert_same_bits(state, zero)


def test_the_offset_enters_every_step_of_its_lane_alone():
    # Plain SGD: an offset o moves the client by -lr * o in each step, beside what its gradients do. Three lanes for
    # four clients, so that lanes are refilled and moved; client 1 alone is steered.
    client = ClientSettings(batch_size=4, lr=0.05, local_steps=1, optimizer=Sgd(momentum=0.0))
    found = []
    for offset in (0.0, 2.0):
        engine, _ = tiny_engine(Head(), tiny_data(num_rows=24), lanes=3, client=client)
        start = start_of(engine)
        jobs = [
            replace(job, offset={"classifier.bias": torch.full((3,), offset)} if job.client_id == 1 else {})
            for job in jobs_for([4, 8, 3, 9], start)
        ]
        found.append({trained.client_id: trained.delta for trained in engine.train(jobs, lr=0.05)})
    for client_id in range(4):
        difference = found[1][client_id]["classifier.bias"] - found[0][client_id]["classifier.bias"]
        torch.testing.assert_close(difference, torch.full((3,), -0.1 if client_id == 1 else 0.0), atol=1e-7, rtol=0)


def test_the_first_round_is_fedavg_and_the_second_is_not():
    results = {}
    for strategy in (FedAvg(clients_per_round=3, num_rounds=2), Scaffold(clients_per_round=3, num_rounds=2)):
        running, start, _ = federation(strategy)
        results[strategy.name] = list(federate(running, start, strategy.init(start, running.spec)))
    assert_same_bits(results["fedavg"][0].params, results["scaffold"][0].params)
    assert not torch.equal(
        results["fedavg"][1].params["classifier.bias"], results["scaffold"][1].params["classifier.bias"]
    )


def test_the_servers_control_variate_is_the_weighted_mean_of_the_clients():
    strategy = Scaffold(clients_per_round=3, num_rounds=3)
    running, start, site = federation(strategy)
    *_, last = federate(running, start, strategy.init(start, running.spec))
    sizes = {client_id: len(rows) for client_id, rows in site.partition.items()}
    for name, server in last.state.items():
        mean = sum(sizes[client] * own[name].double() for client, own in site.remembered.items()) / sum(sizes.values())
        torch.testing.assert_close(server.double(), mean, atol=1e-5, rtol=1e-4)


def test_control_variates_are_groups_of_their_own_in_the_ledger_and_double_the_payload():
    strategy = Scaffold(clients_per_round=2, num_rounds=1)
    running, start, _ = federation(strategy)
    [outcome] = federate(running, start, strategy.init(start, running.spec))
    for transfer in outcome.transfers:
        assert transfer.tensor_bytes["control/classifier"] == transfer.tensor_bytes["classifier"] == 4 * (16 * 3 + 3)
    assert len(outcome.transfers) == 4


def test_what_clients_remember_is_none_of_the_model():
    running, start, site = federation(Scaffold(clients_per_round=3, num_rounds=1))
    list(federate(running, start, running.strategy.init(start, running.spec)))
    assert sorted(site.remembered) == [0, 1, 2]
    assert site.kept == {}
    assert set(running.spec) == set(start)
    assert_same_bits(add(start, {}), start)


def test_lanes_do_not_change_what_is_remembered():
    runs = []
    for lanes in (1, 3):
        running, start, site = federation(Scaffold(clients_per_round=3, num_rounds=2), lanes=lanes)
        list(federate(running, start, running.strategy.init(start, running.spec)))
        runs.append(
            {f"{client}/{name}": t for client, own in sorted(site.remembered.items()) for name, t in own.items()}
        )
    assert_close(*runs, rtol=1e-4, atol=1e-5)


def test_the_same_seed_draws_the_same_cohort_as_fedavg():
    ids = range(20)
    plans = [
        strategy(clients_per_round=4).plan({}, 1, ids, SPEC, stream(0, "cohort", 1)) for strategy in (FedAvg, Scaffold)
    ]
    assert plans[0].cohort == plans[1].cohort
    assert set(plans[1].upload[plans[1].cohort[0]]) == {"a", "b", "control/a", "control/b"}
